"""Rows on disk, of dialogues or of pairs: for each split four files beside counts.json, read through the page cache.

    SPLIT.tokens    uint16 where the vocabulary has at most 65,536 entries, else uint32: all rows, one after the other
    SPLIT.learned   bytes 0 and 1: whether a token is one that is predicted
    SPLIT.starts    int64: where each row's first token stands, and the number of tokens
    SPLIT.prompts   JSON lines: some of the dialogues, as lists of messages, the last of which is an answer

Numbers are little-endian. What counts.json says of a split is a Header, by which it is read and verified.
"""

from __future__ import annotations

import heapq
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gptlab.data.digests import digest
from gptlab.data.token_writer import sync
from gptlab.errors import DataError
from gptlab.text.dialogue import Message

PARTS = ("tokens", "learned", "starts", "prompts")
KEPT_PROMPTS = 512
"""Of each split so many dialogues are kept as text: enough to be written samples of and judged by."""
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Header:
    """What a split's files hold.

    text_bytes, words: of the learned text (UTF-8; separated by white space), special tokens and the template's words
        left out
    sources: names
    sizes, crc32s: of PARTS, in their order
    """

    rows: int
    tokens: int
    learned: int
    longest: int
    token_bytes: int
    eos_id: int
    text_bytes: int
    words: int
    sources: Sequence[str]
    sizes: Sequence[int]
    crc32s: Sequence[int]


class RowFile:
    """A prepared split.

    path:    of its tokens
    tokens:  (count,) uint16 or uint32; learned: (count,) bool; starts: (rows + 1,) int64: memory-mapped, read-only
    eos_id, text_bytes, words: as its header has them

    DataError where a file is missing or is not what was written.
    """

    def __init__(self, folder: Path, split: str, header: Header) -> None:
        self.path, self.info = folder / f"{split}.tokens", header
        self.eos_id, self.text_bytes, self.words = header.eos_id, header.text_bytes, header.words
        for part, size, crc32 in zip(PARTS, header.sizes, header.crc32s, strict=True):
            _verify(self.path.with_suffix(f".{part}"), size, crc32)
        self.tokens = self._map("tokens", f"<u{header.token_bytes}")
        self.learned = self._map("learned", "?")
        self.starts = self._map("starts", "<i8")

    @property
    def count(self) -> int:
        """Tokens in the file."""
        return self.info.tokens

    @property
    def header(self) -> dict[str, Any]:
        """What a message about it names: its sources."""
        return {"sources": [{"name": name} for name in self.info.sources]}

    @property
    def checksum(self) -> str:
        """Count and CRC-32 of tokens, learned and starts: the same rows, wherever and whenever prepared."""
        return "-".join([str(self.count), *(f"{crc32:08x}" for crc32 in self.info.crc32s[:3])])

    def row(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(n,) int64 ids of a row, and (n,) bool, whether each is one that is predicted."""
        row = slice(self.starts[number], self.starts[number + 1])
        return self.tokens[row].astype(np.int64), self.learned[row]

    def prompts(self, n: int) -> list[tuple[list[Message], str]]:
        """At most `n` of the dialogues, evenly chosen: each as far as its last answer, and that answer."""
        chosen = np.linspace(0, len(self.dialogues) - 1, min(n, len(self.dialogues))).astype(int)
        return [(self.dialogues[number][:-1], self.dialogues[number][-1].content) for number in chosen]

    @cached_property
    def dialogues(self) -> list[list[Message]]:
        """At most KEPT_PROMPTS of the dialogues, in their order, each ending with an answer."""
        lines = self.path.with_suffix(".prompts").read_text(encoding="utf-8").split("\n")
        return [[Message(**message) for message in json.loads(line)] for line in lines if line]

    def _map(self, part: str, dtype: str) -> np.ndarray:
        """A plain view of the memory map: indexing np.memmap itself is slower."""
        return np.asarray(np.memmap(self.path.with_suffix(f".{part}"), dtype, mode="r"))


@dataclass
class RowFileWriter:
    """Appends rows to a split's files; `finish` ends them and returns their header."""

    folder: Path
    split: str
    vocab_size: int
    eos_id: int
    rows: int = 0
    tokens: int = 0
    learned: int = 0
    longest: int = 0
    text_bytes: int = 0
    words: int = 0
    _kept: list[tuple[int, int, Sequence[Message]]] = field(default_factory=list)
    _seen: int = 0

    def __post_init__(self) -> None:
        self._dtype = np.dtype("<u2" if self.vocab_size <= 1 << 16 else "<u4")
        self._files = {part: (self.folder / f"{self.split}.{part}").open("wb") for part in PARTS}
        self._sizes, self._crc32s = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0)

    def append(self, ids: np.ndarray, learned: np.ndarray, learned_texts: Sequence[str]) -> None:
        """One row: (n,) ids, (n,) bool, and the texts that the learned ones stand for."""
        self._write("starts", np.array([self.tokens], "<i8").tobytes())
        self._write("tokens", ids.astype(self._dtype).tobytes())
        self._write("learned", learned.astype("?").tobytes())
        self.rows += 1
        self.tokens += len(ids)
        self.learned += int(learned.sum())
        self.longest = max(self.longest, len(ids))
        self.text_bytes += sum(len(text.encode()) for text in learned_texts)
        self.words += sum(len(text.split()) for text in learned_texts)

    def keep(self, messages: Sequence[Message], dialogue_digest: bytes) -> None:
        """Offers a dialogue to be kept as text: those with the smallest keys are, an even choice from all of them."""
        key = int.from_bytes(digest(dialogue_digest)[:8], "little")
        self._seen += 1
        place = heapq.heappush if len(self._kept) < KEPT_PROMPTS else heapq.heappushpop
        place(self._kept, (-key, self._seen, messages))

    def finish(self, sources: Iterable[str]) -> Header:
        """Brings everything onto the disk."""
        self._write("starts", np.array([self.tokens], "<i8").tobytes())
        for _, _, messages in sorted(self._kept, key=lambda kept: kept[1]):
            turns = [{"role": message.role, "content": message.content} for message in messages]
            self._write("prompts", f"{json.dumps(turns, ensure_ascii=False)}\n".encode())
        for file in self._files.values():
            sync(file)
        self.close()
        return Header(
            self.rows, self.tokens, self.learned, self.longest, self._dtype.itemsize, self.eos_id, self.text_bytes,
            self.words, list(sources), list(self._sizes.values()), list(self._crc32s.values()),
        )  # fmt: skip

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _write(self, part: str, data: bytes) -> None:
        self._files[part].write(data)
        self._sizes[part] += len(data)
        self._crc32s[part] = zlib.crc32(data, self._crc32s[part])


def _verify(path: Path, size: int, crc32: int) -> None:
    again = "Delete its folder and prepare the data again."
    try:
        found, crc = path.stat().st_size, 0
        with path.open("rb") as file:
            while data := file.read(CHUNK_BYTES):
                crc = zlib.crc32(data, crc)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. {again}") from error
    if (found, crc) != (size, crc32):
        raise DataError(
            f"{path}: is damaged (CRC-32 {crc:08x} of {found:,} bytes, not {crc32:08x} of {size:,}). {again}"
        )
