"""Sources: every format gives the same documents, each rule cuts where it says, and what cannot be read is named."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.data import readers
from gptlab.data.sources import Source, SourceSettings
from gptlab.errors import DataError
from gptlab.settings import build

STORIES = ["One.\n\nTwo lines,\nof “text”.", 'Second, with a "quote" and a comma', "Dritte: Zürich 🙂 \u2028 end"]

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def source(path: Path | str | None = None, **keys: Any) -> Source:
    tree = keys if path is None else {"path": str(path), **keys}
    return Source(build(SourceSettings, tree, "recipe.toml"))


def documents(path: Path | str | None = None, **keys: Any) -> list[str]:
    return list(source(path, **keys).documents())


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def table(path: Path, texts: list[Any], compression: str = "", column: str = "text") -> Path:
    """A table of `texts` with an `id` column before, in the format of the path's suffix."""
    name = path.with_name(path.name + compression)
    rows = list(enumerate(texts))
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"id": range(len(texts)), column: texts}), name)
        return name
    if path.suffix == ".jsonl":
        content = "".join(json.dumps({"id": n, column: text}) + "\n" for n, text in rows)
    elif path.suffix == ".tsv":
        content = "".join(f"{n}\t{text}\n" for n, text in [("id", column), *rows])
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("id", column), *rows])
        content = path.read_text(encoding="utf-8")
    return write(name, COMPRESS[compression](content.encode()))


# ---- formats


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("suffix", [".txt", ".md", ".text", ".TXT"])
def test_plain_text(tmp_path: Path, suffix: str, compression: str) -> None:
    path = write(tmp_path / f"a{suffix}{compression}", COMPRESS[compression](STORIES[0].encode()))
    one = source(path)
    assert list(one.documents()) == [STORIES[0]]
    assert one.bytes_read == one.bytes_total() == path.stat().st_size


@pytest.mark.parametrize(
    ("suffix", "compression"), [*((s, c) for s in (".jsonl", ".csv") for c in COMPRESS), (".parquet", "")]
)
def test_tables(tmp_path: Path, suffix: str, compression: str) -> None:
    path = table(tmp_path / f"a{suffix}", STORIES, compression)
    one = source(path)
    assert list(one.documents()) == STORIES
    assert one.bytes_read == one.bytes_total() == path.stat().st_size
    assert documents(table(tmp_path / f"b{suffix}", STORIES, compression, column="story"), column="story") == STORIES


def test_tab_separated_values_have_no_quoting(tmp_path: Path) -> None:
    texts = ['a "quoted', "word", 'end"']
    assert documents(table(tmp_path / "a.tsv", texts)) == texts


def test_a_large_field_of_a_csv(tmp_path: Path) -> None:
    assert documents(table(tmp_path / "a.csv", ["x" * 500_000, "y"])) == ["x" * 500_000, "y"]


def test_parquets_kinds_of_text(tmp_path: Path) -> None:
    for kind in (pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())):
        column = pyarrow.array(STORIES).cast(pyarrow.string()).cast(kind)
        pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
        assert documents(tmp_path / "a.parquet") == STORIES


def test_several_members_in_one_compressed_file(tmp_path: Path) -> None:
    for suffix, compress in list(COMPRESS.items())[1:]:
        path = write(tmp_path / f"a.txt{suffix}", compress(b"one\n") + compress(b"two\n"))
        assert documents(path, document="line") == ["one", "two"]


def test_line_ends_and_the_byte_order_mark(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert documents(path) == ["one\ntwo\nthree\n"]
    windows = write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "one"}\r\n\r\n{"text": "a\\r\\nb"}\r\n')
    assert documents(windows) == ["one", "a\r\nb"], "what JSON escapes is the text's own"


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet="ab\n \r é🙂\u2028\x0c"), block=st.integers(1, 8))
def test_blocks_never_change_the_text(tmp_path_factory: pytest.TempPathFactory, text: str, block: int) -> None:
    path = write(tmp_path_factory.getbasetemp() / "blocks.txt", text)
    expected = text.replace("\r\n", "\n").replace("\r", "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "BLOCK_BYTES", block)
        blocks = list(readers.read_blocks(path, lambda position: None))
    assert "".join(block.text for block in blocks) == expected


# ---- rules


def test_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "one\n\n two \n \nthree\u2028still three")
    one = source(path, document="line")
    assert list(one.documents()) == ["one", " two ", "three\u2028still three"]
    assert one.documents_empty == 2


def test_blank_line_blocks(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\n \none\nmore\n\n\t\n\n  two\n\nthree  \n\n\n")
    one = source(path, document="block")
    assert list(one.documents()) == ["one\nmore", "  two", "three"]
    assert one.documents_empty == 0


def test_wikitexts_articles(tmp_path: Path) -> None:
    first = " = Robert Boulter = \n \n Robert Boulter is an actor . \n = = Career = = \n A play . \n"
    second = " = Du Fu = \n Du Fu was a poet . \n"
    path = write(tmp_path / "wiki.txt", " \n" + first + second)
    one = source(path, document="pattern", pattern=r"^ = [^=].* = $")
    assert list(one.documents()) == [first, second]
    assert one.documents_empty == 1, "the white space before the first title"


def test_a_record_is_a_text_of_its_own(tmp_path: Path) -> None:
    path = table(tmp_path / "a.jsonl", ["a\nb", "c\n\nd"])
    assert documents(path, document="line") == ["a", "b", "c", "d"]
    assert documents(path, document="block") == ["a\nb", "c", "d"]


def test_empty_documents_and_nulls_are_skipped_and_counted(tmp_path: Path) -> None:
    for suffix in (".jsonl", ".parquet"):
        one = source(table(tmp_path / f"a{suffix}", ["a", None, "", " \n", "b"]))
        assert list(one.documents()) == ["a", "b"]
        assert one.documents_empty == 3
        assert list(one.documents()) == ["a", "b"]
        assert one.documents_empty == 3, "reading again counts again"


# ---- which files


def test_a_folder_is_every_file_below_it_in_order(tmp_path: Path) -> None:
    write(tmp_path / "b.txt", "b")
    write(tmp_path / "a" / "z.md", "z")
    write(tmp_path / "a" / "b.jsonl", '{"text": "json"}\n')
    write(tmp_path / "photo.png", b"\x89PNG")
    write(tmp_path / ".git" / "hidden.txt", "hidden")
    (tmp_path / "folder.txt").mkdir()
    assert documents(tmp_path) == ["json", "z", "b"]


def test_globs_and_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b", "a"):
        write(tmp_path / "books" / f"{name}.txt", name)
    (tmp_path / "books" / "c.txt").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for path in ("books/*.txt", "~/books/*.txt", "**/*.txt", "~/books"):
        assert documents(path) == ["a", "b"], path


def test_a_name_with_a_bracket_is_a_name_where_there_is_such_a_file(tmp_path: Path) -> None:
    assert documents(write(tmp_path / "a[1].txt", "one")) == ["one"]


# ---- how much of it


def test_a_share_is_a_fixed_fraction(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "".join(f"{n}\n" for n in range(4000)))
    tenth, half = (documents(path, document="line", share=share) for share in (0.1, 0.5))
    assert documents(path, document="line", share=0.1) == tenth
    assert 300 < len(tenth) < 500
    assert 1850 < len(half) < 2150
    assert set(tenth) < set(half), "a larger share adds documents and takes none away"
    assert half == sorted(half, key=int)


def test_limits(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "ééé\n" * 100)
    assert len(documents(path, document="line", limit_documents=7)) == 7
    assert len(documents(path, document="line", limit_bytes=60)) == 11, "ten are 60 bytes; the eleventh passes them"
    assert len(documents(path, document="line", limit_bytes=59)) == 10
    assert len(documents(path, document="line", limit_documents=5, limit_bytes=60)) == 5
    assert len(documents(path, document="line", share=0.5, limit_documents=20)) == 20


def test_a_limit_stops_reading(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "line\n" * 1_000_000)
    one = source(path, document="line", limit_documents=10)
    assert len(list(one.documents())) == 10
    assert one.bytes_read == readers.BLOCK_BYTES < path.stat().st_size


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    tracemalloc = pytest.importorskip("tracemalloc")
    record = json.dumps({"text": "word " * 200}) + "\n"
    path = write(tmp_path / "a.jsonl.gz", gzip.compress(record.encode() * 30_000, 1))
    one = source(path, document="line")
    tracemalloc.start()
    try:
        assert sum(1 for _ in one.documents()) == 30_000
        assert tracemalloc.get_traced_memory()[1] < 8e6, "of 30 MB of text"
    finally:
        tracemalloc.stop()


# ---- fingerprints


def test_a_fingerprint_changes_with_text_and_settings(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "one")
    os.utime(path, ns=(1, 1))
    before = source(path).fingerprint()
    assert source(path).fingerprint() == before
    assert len(before) == 16
    os.utime(path, ns=(1, 2))
    touched = source(path).fingerprint()
    write(path, "more")
    os.utime(path, ns=(1, 2))
    assert len({before, touched, source(path).fingerprint(), source(path, document="line").fingerprint()}) == 4
    glob = str(tmp_path / "*.txt")
    one_file = source(glob).fingerprint()
    write(tmp_path / "b.txt", "b")
    assert source(glob).fingerprint() != one_file


def test_the_embedded_source(monkeypatch: pytest.MonkeyPatch) -> None:
    one = source(embedded="python-docs", limit_documents=5)
    given = list(one.documents())
    assert len(given) == 5
    assert one.bytes_read == sum(len(text.encode()) for text in given)
    assert one.bytes_total() is None
    before = one.fingerprint()
    monkeypatch.setattr(platform, "python_version", lambda: "2.7.18")
    assert source(embedded="python-docs", limit_documents=5).fingerprint() != before


# ---- what cannot be read


@pytest.mark.parametrize(
    ("name", "content", "keys", "message"),
    [
        ("a.txt", b"one\ntwo \xe9\n", {}, r"a\.txt, line 2: byte 0xe9 at offset 8 is not UTF-8"),
        ("a.txt", b"\xff\xfeo\x00n\x00", {}, "line 1: byte 0xff at offset 0 is not UTF-8"),
        ("a.jsonl", b'{"text": "\xe9"}\n', {}, "line 1: byte 0xe9"),
        ("a.jsonl", '{"text": "a"}\n\n{"text": \n', {}, r"a\.jsonl, line 3: is not JSON"),
        ("a.jsonl", '["a"]\n', {}, "line 1: is a list, not an object"),
        ("a.jsonl", '{"txt": "a", "id": 1}\n', {}, r"no column 'text' \(did you mean 'txt'\?\); there is 'txt', 'id'"),
        ("a.jsonl", '{"text": "a"}\n{"text": 5}\n', {}, r"line 2: column 'text' holds '5' \(int\), not text"),
        ("a.jsonl", r'{"text": "\ud83d"}', {}, "line 1: column 'text' holds half a surrogate pair"),
        ("a.csv", "id,title\n1,a\n", {"column": "titel"}, r"did you mean 'title'\?\); there is 'id', 'title'"),
        ("a.csv", "id,text\n1,a\n2,b,c\n", {}, "line 3: 3 fields where the header has 2"),
        ("a.csv", 'id,text\n1,"a\n', {}, "unexpected end of data"),
        ("a.csv", "", {}, "no column 'text'; there is none"),
        ("a.tsv", "id\ttitle\n1\ta\n", {}, "no column 'text'"),
        ("a.parquet", b"PAR1", {}, "cannot be read"),
        ("a.txt.gz", gzip.compress(b"text " * 999, mtime=0)[:-9], {}, r"a\.txt\.gz: cannot be read: Truncated"),
        ("a.txt.zst", COMPRESS[".zst"](b"text " * 999)[:-1], {}, "cannot be read: Truncated"),
        ("a.txt.bz2", bz2.compress(b"text " * 999)[:-9], {}, "cannot be read: Truncated"),
        ("a.txt.gz", b"plain text", {}, r"a\.txt\.gz: cannot be read: .*header"),
        ("a.pdf", b"%PDF", {}, r"a\.pdf: \.pdf is not read; wanted \.txt, \.text, \.md, \.jsonl"),
        ("a.parquet.gz", b"", {}, "is not read"),
        ("README", b"", {}, "a file without suffix is not read"),
        ("a.txt", b"", {}, r"source 'a\.txt' yields nothing: all of its documents are empty .1."),
        ("a.txt", b"\n \n", {"document": "line"}, "yields nothing: all of its documents are empty .2."),
        ("a.txt", b"a\nb\n", {"document": "line", "share": 1e-9}, "share = 1e-09 keeps none of its 2 documents"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: str | bytes, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        documents(write(tmp_path / name, content), **keys)


def test_the_offset_of_bad_bytes_is_that_in_the_file(tmp_path: Path) -> None:
    good = b"line\n" * 200_000
    with pytest.raises(DataError, match=f"line 200001: byte 0x80 at offset {len(good)} "):
        documents(write(tmp_path / "a.txt", b"\xef\xbb\xbf" + good[3:] + b"\x80"), document="line")


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").mkdir()
    for path, message in [
        ("none.txt", "there is no such file or folder"),
        ("*.txt", "no file matches"),
        ("empty.txt", "a folder with no file in it that is read"),
    ]:
        with pytest.raises(DataError, match=message):
            documents(tmp_path / path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "secret")
    path.chmod(0)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        documents(path)


def test_numbers_in_a_parquet_column(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"record 1: column 'id' holds '0' \(int\), not text"):
        documents(table(tmp_path / "a.parquet", STORIES), column="id")
    with pytest.raises(DataError, match="no column 'story'; there is 'id', 'text'"):
        documents(tmp_path / "a.parquet", column="story")


def test_records_of_a_table_are_the_lines_a_pattern_looks_at(tmp_path: Path) -> None:
    """WikiText on the hub: a line a record, some of them empty; an article runs over many."""
    lines = ["", " = One = \n", "", " a b \n", " = = Part = = \n", " = Two = \n", None, " c \n"]
    path = write(tmp_path / "lines.jsonl", "".join(json.dumps({"text": line}) + "\n" for line in lines))
    found = documents(path, document="pattern", pattern=r"^ = [^=]+ = $")
    assert found == [" = One = \n\n a b \n = = Part = = \n", " = Two = \n\n c \n"]
