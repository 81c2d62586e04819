"""Writes a token file bit by bit, in a way that can be continued after a kill."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gptlab.data.token_file import CHUNK_TOKENS, PRELUDE_BYTES, VERSION, Prelude


@dataclass(frozen=True)
class Written:
    """How much of a token file is safely on disk."""

    tokens: int = 0
    documents: int = 0
    crc32: int = 0


class TokenFileWriter:
    """Appends documents to `path`; `finish` makes a token file of it, which until then no reader accepts.

    `written` continues a file of which so much was on disk (what `flush` returned); what stands behind it is cut
    off. Offsets are collected in a file beside it, so that memory does not grow with the number of documents.
    """

    def __init__(self, path: Path, vocab_size: int, eos_id: int, written: Written = Written()) -> None:
        self.path, self.written = path, written
        self.dtype = np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
        self._eos = np.array([eos_id], dtype=np.uint32)
        self._tokens = open_at(path, PRELUDE_BYTES + written.tokens * self.dtype.itemsize if written.tokens else 0)
        self._tokens.seek(0)
        self._tokens.write(bytes(PRELUDE_BYTES))
        self._tokens.seek(0, os.SEEK_END)
        self._offsets = open_at(path.with_suffix(".offsets"), 8 * written.documents)

    def append(self, documents: Sequence[np.ndarray]) -> None:
        """Writes documents, each (n,) ids, with EOS after each."""
        if not documents:
            return
        tokens = np.concatenate([part for ids in documents for part in (ids, self._eos)]).astype(self.dtype)
        lengths = np.array([len(ids) + 1 for ids in documents])
        self._write(tokens, np.cumsum(lengths) - lengths)

    def repeat(self, tokens: slice, documents: slice) -> None:
        """Writes what stands at these tokens, which are these documents, once more."""
        self.flush()
        stored = np.memmap(self.path, self.dtype, mode="r", offset=PRELUDE_BYTES, shape=(self.written.tokens,))
        offsets = np.fromfile(self._offsets.name, "<i8", documents.stop - documents.start, offset=8 * documents.start)
        for start in range(tokens.start, tokens.stop, CHUNK_TOKENS):
            chunk = stored[start : min(start + CHUNK_TOKENS, tokens.stop)]
            inside = offsets[(offsets >= start) & (offsets < start + len(chunk))]
            self._write(chunk, inside - start)

    def flush(self) -> Written:
        """Brings everything onto the disk, and says how much that is."""
        for file in (self._tokens, self._offsets):
            sync(file)
        return self.written

    def finish(self, header: Mapping[str, Any]) -> None:
        """Adds offsets and header and, last, the prelude that makes the file a token file.

        The offsets' file stays: while it is there, the work can be continued even from here.
        """
        data = json.dumps(header, indent=1, ensure_ascii=False).encode()
        written = self.written
        prelude = Prelude(VERSION, self.dtype.itemsize, written.tokens, written.documents, 0, len(data), written.crc32)
        prelude = Prelude(**(asdict(prelude) | {"header_at": prelude.documents_at + 8 * written.documents}))
        self._tokens.seek(prelude.documents_at)
        self._offsets.seek(0)
        shutil.copyfileobj(self._offsets, self._tokens)
        self._tokens.write(data)
        self._tokens.truncate()
        sync(self._tokens)
        self._tokens.seek(0)
        self._tokens.write(prelude.pack())
        sync(self._tokens)
        self.close()

    def close(self) -> None:
        self._tokens.close()
        self._offsets.close()

    def _write(self, tokens: np.ndarray, starts: np.ndarray) -> None:
        """Tokens (n,) of the file's type, and where among them documents start."""
        before = self.written
        data = tokens.tobytes()
        self._tokens.write(data)
        self._offsets.write((starts + before.tokens).astype("<i8").tobytes())
        self.written = Written(
            before.tokens + len(tokens), before.documents + len(starts), zlib.crc32(data, before.crc32)
        )


class ContinueError(Exception):
    """What is on disk is not what was written, or not of this text: start over."""


def open_at(path: Path, size: int) -> BinaryIO:
    """The file open for writing on after its first `size` bytes; made where it is not there.

    Raises ContinueError where it has fewer bytes.
    """
    path.touch()
    if path.stat().st_size < size:
        raise ContinueError(path)
    file = path.open("r+b")
    file.truncate(size)
    file.seek(size)
    return file


def sync(file: BinaryIO) -> None:
    """Flushes the file to the disk itself."""
    file.flush()
    os.fsync(file.fileno())
