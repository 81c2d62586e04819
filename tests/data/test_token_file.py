"""Token files: what is written is read, and everything that is no such file is refused by name."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from gptlab.data.token_file import MAGIC, PRELUDE_BYTES, TokenFile
from gptlab.data.token_writer import ContinueError, TokenFileWriter, Written
from gptlab.errors import DataError, TokenizerError

EOS = 9
DOCUMENTS = [np.array(ids, np.uint32) for ids in ([1, 2, 3], [4], [5, 6, 7, 8])]
HEADER = {"tokenizer": "abc", "vocab_size": 10, "eos_id": EOS, "text_bytes": 12, "words": 5, "sources": []}


def write(path: Path, vocab_size: int = 10) -> Path:
    writer = TokenFileWriter(path, vocab_size, EOS)
    writer.append(DOCUMENTS[:2])
    writer.append(DOCUMENTS[2:])
    writer.finish(HEADER)
    return path


@pytest.mark.parametrize(("vocab_size", "dtype"), [(10, np.uint16), (65_536, np.uint16), (65_537, np.uint32)])
def test_round_trip(tmp_path: Path, vocab_size: int, dtype: type) -> None:
    file = TokenFile.open(write(tmp_path / "train.tokens", vocab_size), "abc")
    assert file.tokens.dtype == dtype
    assert file.tokens.tolist() == [1, 2, 3, EOS, 4, EOS, 5, 6, 7, 8, EOS]
    assert file.documents.tolist() == [0, 4, 6]
    assert [file.document(d).tolist() for d in range(3)] == [ids.tolist() for ids in DOCUMENTS]
    assert (file.count, file.eos_id, file.text_bytes, file.words) == (11, EOS, 12, 5)
    assert file.header == HEADER
    file.verify()


def test_an_id_above_two_bytes_survives(tmp_path: Path) -> None:
    writer = TokenFileWriter(tmp_path / "t.tokens", 100_000, 99_999)
    writer.append([np.array([70_000], np.uint32)])
    writer.finish(HEADER)
    assert TokenFile.open(tmp_path / "t.tokens").tokens.tolist() == [70_000, 99_999]


def test_tokens_cannot_be_written_to(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        TokenFile.open(write(tmp_path / "t.tokens")).tokens[0] = 0


def test_repeat_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptlab.data.token_writer.CHUNK_TOKENS", 3)  # chunks end inside documents
    writer = TokenFileWriter(tmp_path / "t.tokens", 10, EOS)
    writer.append(DOCUMENTS)
    writer.repeat(slice(4, 11), slice(1, 3))
    writer.finish(HEADER)
    file = TokenFile.open(tmp_path / "t.tokens")
    assert file.tokens.tolist()[11:] == file.tokens.tolist()[4:11]
    assert file.documents.tolist() == [0, 4, 6, 11, 13]
    file.verify()


def test_continuing_cuts_off_what_was_not_flushed(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.tokens").read_bytes()
    writer = TokenFileWriter(tmp_path / "t.tokens", 10, EOS)
    writer.append(DOCUMENTS[:1])
    written = writer.flush()
    writer.append(DOCUMENTS[:2])
    writer.close()
    writer = TokenFileWriter(tmp_path / "t.tokens", 10, EOS, written)
    writer.append(DOCUMENTS[1:])
    writer.finish(HEADER)
    assert (tmp_path / "t.tokens").read_bytes() == whole


def test_less_on_disk_than_was_written_is_no_start(tmp_path: Path) -> None:
    with pytest.raises(ContinueError):
        TokenFileWriter(tmp_path / "t.tokens", 10, EOS, Written(tokens=5, documents=1))


def test_an_unfinished_file_is_no_token_file(tmp_path: Path) -> None:
    writer = TokenFileWriter(tmp_path / "t.tokens", 10, EOS)
    writer.append(DOCUMENTS)
    writer.flush()
    with pytest.raises(DataError, match="not a token file"):
        TokenFile.open(tmp_path / "t.tokens")


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.tokens: this token file cannot be read"):
        TokenFile.open(tmp_path / "none.tokens")


@pytest.mark.parametrize("content", [b"", b"hello", bytes(200), b"PK\3\4" + bytes(100)])
def test_foreign(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "foreign.tokens"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"foreign\.tokens: is not a token file of gptlab"):
        TokenFile.open(path)


def test_truncated_anywhere(tmp_path: Path) -> None:
    data = write(tmp_path / "t.tokens").read_bytes()
    path = tmp_path / "cut.tokens"
    for size in range(len(MAGIC), len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(DataError, match=r"cut\.tokens: is (cut off|not whole).*prepare the corpus again"):
            TokenFile.open(path)
    path.write_bytes(data + b"x")
    with pytest.raises(DataError, match="not whole"):
        TokenFile.open(path)


def test_newer(tmp_path: Path) -> None:
    path = write(tmp_path / "t.tokens")
    data = bytearray(path.read_bytes())
    data[8:12] = struct.pack("<I", 7)
    path.write_bytes(data)
    with pytest.raises(DataError, match="version 7; this gptlab reads up to 1"):
        TokenFile.open(path)


def test_wrong_tokenizer_names_both(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer abc, but def is to read it.*prepare the corpus again"):
        TokenFile.open(write(tmp_path / "t.tokens"), "def")


def test_a_flipped_bit_is_found_by_verify(tmp_path: Path) -> None:
    path = write(tmp_path / "t.tokens")
    data = bytearray(path.read_bytes())
    data[PRELUDE_BYTES + 4] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="damaged"):
        TokenFile.open(path).verify()


def test_a_damaged_header(tmp_path: Path) -> None:
    path = write(tmp_path / "t.tokens")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match="damaged"):
        TokenFile.open(path)
