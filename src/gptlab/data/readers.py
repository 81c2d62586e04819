"""Text files, plain or compressed, as streams of blocks. What tables are made of is in tables.py.

Text is UTF-8; a byte-order mark is dropped and line ends (\\r\\n of Windows, \\r) become \\n, so that the same text has
the same tokens whichever machine wrote it.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gptlab.errors import DataError

PLAIN = (".txt", ".text", ".md")
TABLES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
SUPPORTED = f"{', '.join(PLAIN + TABLES)}, each but .parquet also with {', '.join(COMPRESSIONS)}"

BLOCK_BYTES = 1 << 18

Progress = Callable[[int], None]
"""Is told how many bytes of the file on disk have been read so far."""


@dataclass(frozen=True)
class Block:
    """Whole lines of a file; `line` is the number of the first, from 1."""

    text: str
    line: int


def format_of(path: Path) -> str | None:
    """`".jsonl"` for `a.jsonl.gz`; None where it is no format that is read."""
    suffix = path.suffix.lower()
    compressed = suffix in COMPRESSIONS
    if compressed:
        suffix = Path(path.stem).suffix.lower()
    known = suffix in PLAIN + TABLES and not (compressed and suffix == ".parquet")
    return suffix if known else None


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """What the system or a decompressor says about `path` becomes a DataError."""
    try:
        yield
    except OSError as error:
        damaged = f"{error}; it is damaged, or not what its name says: copy or download it again"
        raise DataError(f"{path}: cannot be read: {error.strerror or damaged}") from error


def read_blocks(path: Path, progress: Progress) -> Iterator[Block]:
    """The file's text in blocks of about a quarter of a megabyte (more only where a line is longer).

    DataError where it cannot be opened, its compressed data is damaged or cut off, or it is not UTF-8.
    """
    offset, line = 0, 1
    with file_errors(path), path.open("rb", buffering=0) as file:
        for data in _whole_lines(_decompressed(path, file), lambda: progress(file.tell())):
            yield Block(_decoded(data, path, offset, line), line)
            offset += len(data)
            line += data.count(b"\n")


def read_lines(path: Path, progress: Progress) -> Iterator[tuple[int, str]]:
    """The lines of the file that are not blank, without their newline, each after its number from 1."""
    for block in read_blocks(path, progress):
        for number, line in enumerate(block.text.split("\n"), start=block.line):
            if line and not line.isspace():
                yield number, line


def _decompressed(path: Path, file: io.FileIO) -> BinaryIO | io.FileIO:
    compression = COMPRESSIONS.get(path.suffix.lower())
    if compression is None:
        return file
    import pyarrow

    # Arrow reads all three at least as fast as Python's own modules, and none that is cut off passes as whole.
    return pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), compression)


def _whole_lines(stream: BinaryIO | io.FileIO, on_read: Callable[[], None]) -> Iterator[bytes]:
    begun: list[bytes] = []
    while data := stream.read(BLOCK_BYTES):
        on_read()
        end = data.rfind(b"\n") + 1
        if end:
            yield b"".join([*begun, data[:end]])
            begun = []
        begun.append(data[end:])
    if rest := b"".join(begun):
        yield rest


def _decoded(data: bytes, path: Path, offset: int, line: int) -> str:
    """`data`, which begins at byte `offset` and in line `line` of the text, as str with \\n line ends."""
    try:
        text = (data.removeprefix(codecs.BOM_UTF8) if offset == 0 else data).decode("utf-8")
    except UnicodeDecodeError as error:
        data = error.object
        line += data.count(b"\n", 0, error.start)
        raise DataError(
            f"{path}, line {line}: byte {data[error.start]:#04x} at offset {offset + error.start} is not UTF-8 text; "
            "convert the file first (iconv -f LATIN1 -t UTF-8)"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
