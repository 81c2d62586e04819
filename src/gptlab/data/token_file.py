"""A prepared split on disk: one self-describing file, read through the page cache (docs/formats.md).

    prelude   64 bytes: magic, version, bytes a token, tokens, documents, place and size of the header, CRC-32
    tokens    uint16 where the vocabulary has at most 65,536 entries, else uint32; EOS after each document
    documents int64, where each document's first token stands
    header    JSON: tokenizer fingerprint, vocab_size, eos_id, text_bytes, words, what each source gave

All numbers are little-endian. token_writer.py writes it.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from gptlab.errors import DataError, TokenizerError

MAGIC = b"GPTLABTK"
VERSION = 1
PRELUDE_BYTES = 64
_PRELUDE = struct.Struct("<8sIIQQQQI")
CHUNK_TOKENS = 1 << 20


class Fingerprinted(Protocol):
    """Whatever has a fingerprint: a Tokenizer."""

    @property
    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class Prelude:
    """The first 64 bytes: where everything else stands."""

    version: int
    token_bytes: int
    tokens: int
    documents: int
    header_at: int
    header_bytes: int
    crc32: int

    @property
    def documents_at(self) -> int:
        """Where the document offsets start: after the tokens, at a multiple of 8."""
        return -(-(PRELUDE_BYTES + self.tokens * self.token_bytes) // 8) * 8

    def pack(self) -> bytes:
        return _PRELUDE.pack(MAGIC, *asdict(self).values()).ljust(PRELUDE_BYTES, b"\0")


class TokenFile:
    """A prepared split.

    path:       where it is
    tokens:     (count,) uint16 or uint32, memory-mapped, read-only
    documents:  (n,) int64, memory-mapped: where each document starts; the token before the next start is EOS
    header:     what the file says about itself
    """

    def __init__(self, path: Path, prelude: Prelude, header: dict[str, Any]) -> None:
        self.path, self.header, self._prelude = path, header, prelude
        dtype = np.dtype(f"<u{prelude.token_bytes}")
        self.tokens = np.memmap(path, dtype, mode="r", offset=PRELUDE_BYTES, shape=(prelude.tokens,))
        self.documents = np.memmap(
            path, np.dtype("<i8"), mode="r", offset=prelude.documents_at, shape=(prelude.documents,)
        )

    @classmethod
    def open(cls, path: Path, tokenizer: Fingerprinted | str | None = None) -> TokenFile:
        """The token file at `path`, which must be of this tokenizer (or this fingerprint) where one is given.

        Raises DataError where the file is missing, foreign, newer or not whole, TokenizerError where it was made
        with another tokenizer.
        """
        path = Path(path)
        try:
            with path.open("rb") as file:
                prelude = _read_prelude(path, file)
                header = _read_header(path, file, prelude)
        except OSError as error:
            raise DataError(f"{path}: this token file cannot be read: {error.strerror}") from error
        wanted = tokenizer if tokenizer is None or isinstance(tokenizer, str) else tokenizer.fingerprint
        if wanted is not None and header["tokenizer"] != wanted:
            raise TokenizerError(
                f"{path}: was made with the tokenizer {header['tokenizer']}, but {wanted} is to read it. "
                "Its numbers would mean other words: prepare the corpus again with this tokenizer, or use the other."
            )
        return cls(path, prelude, header)

    @property
    def count(self) -> int:
        """Tokens in the file, an EOS for each document among them."""
        return self._prelude.tokens

    @property
    def checksum(self) -> str:
        """Count and CRC-32 of the tokens: the same text by the same tokenizer, wherever and whenever prepared."""
        return f"{self.count}-{self._prelude.crc32:08x}"

    @property
    def eos_id(self) -> int:
        return self.header["eos_id"]

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of the text that the tokens stand for."""
        return self.header["text_bytes"]

    @property
    def words(self) -> int:
        """Words of that text, separated by white space."""
        return self.header["words"]

    def document(self, number: int) -> np.ndarray:
        """The ids of one document, without its EOS."""
        last = number + 1 == len(self.documents)
        end = self.count if last else int(self.documents[number + 1])
        return self.tokens[int(self.documents[number]) : end - 1]

    def verify(self) -> None:
        """Reads all tokens and compares their CRC-32; DataError where a bit has changed."""
        crc = 0
        for start in range(0, self.count, CHUNK_TOKENS):
            crc = zlib.crc32(self.tokens[start : start + CHUNK_TOKENS].tobytes(), crc)
        if crc != self._prelude.crc32:
            raise DataError(
                f"{self.path}: is damaged (CRC-32 {crc:08x}, wanted {self._prelude.crc32:08x}). "
                "Delete it and prepare the corpus again."
            )


def _read_prelude(path: Path, file: BinaryIO) -> Prelude:
    data = file.read(PRELUDE_BYTES)
    if data[: len(MAGIC)] != MAGIC:
        raise DataError(f"{path}: is not a token file of gptlab (it does not start with {MAGIC.decode()})")
    if len(data) < PRELUDE_BYTES:
        raise DataError(f"{path}: is cut off after {len(data)} bytes. Delete it and prepare the corpus again.")
    prelude = Prelude(*_PRELUDE.unpack_from(data)[1:])
    if prelude.version > VERSION:
        raise DataError(
            f"{path}: is a token file of version {prelude.version}; this gptlab reads up to {VERSION}. "
            "Update gptlab, or prepare the corpus again."
        )
    found, wanted = path.stat().st_size, prelude.header_at + prelude.header_bytes
    consistent = prelude.header_at == prelude.documents_at + 8 * prelude.documents
    if found != wanted or not consistent or prelude.token_bytes not in (2, 4):
        raise DataError(
            f"{path}: is not whole: {found:,} bytes, but {prelude.tokens:,} tokens of {prelude.documents:,} documents "
            f"make {wanted:,}. Delete it and prepare the corpus again."
        )
    return prelude


def _read_header(path: Path, file: BinaryIO, prelude: Prelude) -> dict[str, Any]:
    file.seek(prelude.header_at)
    try:
        return json.loads(file.read(prelude.header_bytes))
    except ValueError as error:
        raise DataError(f"{path}: is damaged ({error}). Delete it and prepare the corpus again.") from error
