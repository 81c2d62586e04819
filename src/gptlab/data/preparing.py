"""Pieces of text → token files: with all cores, in the same order always, and to be continued after a kill.

The calling thread reads, digests, decides what is dropped and writes; worker threads encode (tiktoken lets go of
the interpreter meanwhile). In `folder` stand the token files in the making, `digests` (16 bytes for every piece read)
and `journal.json`, which says how much of all that is safely on disk. To continue, the text is read again and
compared with the digests up to there, and nothing of it is encoded again.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import chain, compress
from pathlib import Path
from typing import Protocol

import numpy as np

from gptlab.data.digests import DIGEST_BYTES, DigestSet, as_array
from gptlab.data.splitting import SPLITS, Piece, Split
from gptlab.data.token_writer import ContinueError, TokenFileWriter, Written, open_at, sync
from gptlab.data.word_count import count_words
from gptlab.errors import DataError

BATCH_CHARACTERS = 1 << 19
BATCH_PIECES = 2048
WAITING_CHARACTERS = 1 << 22
"""More than this, for each encoder, is not read ahead, so that a few huge documents do not fill the memory."""
JOURNAL_SECONDS = 2.0
REPORT_SECONDS = 0.25
COUNT_SECONDS = 10.0
"""How long overlapping documents are counted on after the first, for the error's message."""

COUNTS = ("documents", "bytes", "words", "tokens", "overlapping", "duplicates")
"""What is counted for each source and split: the columns of Preparation.table."""
WRITTEN = COUNTS.index("tokens") + 1
"""The columns before this one count what was written, the others what was dropped."""
KEPT, OVERLAPPING, DUPLICATE = 0, COUNTS.index("overlapping"), COUNTS.index("duplicates")


class Encoder(Protocol):
    """What preparing needs of a Tokenizer."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]: ...


@dataclass(frozen=True)
class PieceBatch:
    """Consecutive pieces, of so many characters in all. rows (n,): where each is counted; digests (n,); fates (n,):
    KEPT, or the column it is counted in."""

    pieces: list[Piece]
    characters: int
    rows: np.ndarray
    digests: np.ndarray
    fates: np.ndarray

    def after(self, count: int) -> PieceBatch:
        """Without the first `count` pieces."""
        return PieceBatch(
            self.pieces[count:], self.characters, self.rows[count:], self.digests[count:], self.fates[count:]
        )

    def kept(self) -> list[Piece]:
        return list(compress(self.pieces, self.fates == KEPT))


class Preparation:
    """Token files in the making: `run` writes the pieces, `repeat` and `writers[split].finish` follow.

    table: (sources · splits, len(COUNTS)) int64, what has been written and dropped; `names` are the sources'.
    Raises ContinueError where `folder` holds the work on other text.
    """

    def __init__(self, folder: Path, splits: Sequence[Split], names: Sequence[str], encoder: Encoder) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.names, self.encoder = folder, names, encoder
        self.table = np.zeros((len(names) * len(SPLITS), len(COUNTS)), dtype=np.int64)
        self.pieces = 0
        written = self._read_journal()
        self.writers = {
            split: TokenFileWriter(
                folder / f"{split}.tokens", encoder.vocab_size, encoder.eos_id, written.get(split, Written())
            )
            for split in splits
        }
        self._log = open_at(folder / "digests", DIGEST_BYTES * self.pieces)
        self._held, self._seen = DigestSet(), DigestSet()
        self._journaled_at = time.monotonic()

    def run(
        self, pieces: Iterable[Piece], *, held: Sequence[bytes], drop_overlap: bool, report: Callable[[], None]
    ) -> None:
        """Writes all pieces. `held` are digests that stand in validation or test and come later than training.

        `report` is called at least four times a second. DataError where training overlaps validation or test and
        `drop_overlap` is false.
        """
        self._held.add(as_array(held))
        workers = _cores()
        waiting: deque[tuple[PieceBatch, Future]] = deque()
        batches = self._batches(pieces, report)
        with ThreadPoolExecutor(workers) as pool:
            for batch in self._unwritten(batches):
                if not drop_overlap and (batch.fates == OVERLAPPING).any():
                    raise self._overlap(batch, batches)
                waiting.append((batch, pool.submit(self._encode, batch.kept())))
                while len(waiting) > 2 * workers or _too_much([b for b, _ in waiting], workers * WAITING_CHARACTERS):
                    self._write(*waiting.popleft(), report)
            while waiting:
                self._write(*waiting.popleft(), report)
        self._write_journal()
        report()

    def repeat(self, times: Sequence[int]) -> None:
        """Writes the training documents of each training source so many times in all (they come first by number).

        What has been written is copied: it is neither read nor encoded again.
        """
        writer, tokens, documents = self.writers["train"], 0, 0
        for row, n in zip(self.table[:: len(SPLITS)], times, strict=False):
            more_documents, _, _, more_tokens = row[:WRITTEN].tolist()
            for _ in range(n - 1):
                writer.repeat(slice(tokens, tokens + more_tokens), slice(documents, documents + more_documents))
            row[:WRITTEN] *= n
            tokens, documents = tokens + more_tokens, documents + more_documents

    def counts(self, source: int, split: Split) -> dict[str, int]:
        """COUNTS of one source in one split."""
        return dict(zip(COUNTS, self.table[_row(source, split)].tolist(), strict=True))

    @property
    def documents(self) -> int:
        return int(self.table[:, COUNTS.index("documents")].sum())

    @property
    def tokens(self) -> int:
        return int(self.table[:, COUNTS.index("tokens")].sum())

    def close(self) -> None:
        """Closes the files; where the disk is full, what was not written stays unwritten."""
        for close in (self._log.close, *(writer.close for writer in self.writers.values())):
            with suppress(OSError):
                close()

    def _batches(self, pieces: Iterable[Piece], report: Callable[[], None]) -> Iterator[PieceBatch]:
        batch: list[Piece] = []
        characters = 0
        reported_at = 0.0
        for piece in pieces:
            batch.append(piece)
            characters += len(piece.text)
            if characters >= BATCH_CHARACTERS or len(batch) >= BATCH_PIECES:
                yield self._decide(batch, characters)
                batch, characters = [], 0
            if time.monotonic() - reported_at > REPORT_SECONDS:
                report()
                reported_at = time.monotonic()
        if batch:
            yield self._decide(batch, characters)

    def _decide(self, pieces: list[Piece], characters: int) -> PieceBatch:
        """Training drops what stands in validation or test, and what it has seen; they themselves drop nothing."""
        digests = as_array([piece.digest for piece in pieces])
        rows = np.array([_row(piece.source, piece.split) for piece in pieces])
        fates = np.full(len(pieces), KEPT)
        training = rows % len(SPLITS) == SPLITS.index("train")
        self._held.add(digests[~training])
        fates[training & self._held.contains(digests)] = OVERLAPPING
        candidates = np.flatnonzero(training & (fates == KEPT))
        fates[candidates[~self._seen.add(digests[candidates])]] = DUPLICATE
        return PieceBatch(pieces, characters, rows, digests, fates)

    def _unwritten(self, batches: Iterator[PieceBatch]) -> Iterator[PieceBatch]:
        """Leaves out what the journal says is written, after comparing it with what was read then."""
        left = self.pieces
        with (self.folder / "digests").open("rb") as log:
            for batch in batches:
                known = min(left, len(batch.pieces))
                if log.read(DIGEST_BYTES * known) != batch.digests[:known].tobytes():
                    raise ContinueError
                left -= known
                if known < len(batch.pieces):
                    yield batch.after(known)
        if left:
            raise ContinueError

    def _encode(self, pieces: list[Piece]) -> tuple[list[np.ndarray], np.ndarray]:
        texts = [piece.text for piece in pieces]
        return self.encoder.encode_documents(texts), count_words(texts)

    def _write(self, batch: PieceBatch, encoding: Future, report: Callable[[], None]) -> None:
        while not wait([encoding], REPORT_SECONDS).done:
            report()
        ids, words = encoding.result()
        kept = batch.fates == KEPT
        rows, sizes = batch.rows[kept], [piece.size for piece in batch.kept()]
        counted = [np.ones(len(rows), np.int64), np.array(sizes, np.int64), words, np.array([len(i) + 1 for i in ids])]
        for column, values in enumerate(counted):
            np.add.at(self.table[:, column], rows, values.astype(np.int64))
        np.add.at(self.table, (batch.rows[~kept], batch.fates[~kept]), 1)
        for split, writer in self.writers.items():
            writer.append([ids[i] for i in np.flatnonzero(rows % len(SPLITS) == SPLITS.index(split))])
        self._log.write(batch.digests.tobytes())
        self.pieces += len(batch.pieces)
        if time.monotonic() - self._journaled_at > JOURNAL_SECONDS:
            self._write_journal()

    def _overlap(self, batch: PieceBatch, rest: Iterator[PieceBatch]) -> DataError:
        first = batch.pieces[int(np.flatnonzero(batch.fates == OVERLAPPING)[0])]
        deadline = time.monotonic() + COUNT_SECONDS
        count, whole = 0, True
        for each in chain([batch], rest):
            count += int((each.fates == OVERLAPPING).sum())
            if time.monotonic() > deadline:
                whole = False
                break
        return DataError(
            f"{'' if whole else 'at least '}{count:,} training document(s) also stand in validation or test; one, "
            f"of the source {self.names[first.source]!r}, starts {first.text.strip()[:60]!r}. What is "
            'scored must not have been trained on: set data.overlap = "drop" to drop them from training.'
        )

    def _read_journal(self) -> dict[str, Written]:
        path = self.folder / "journal.json"
        if not path.exists():
            return {}
        try:
            journal = json.loads(path.read_text(encoding="utf-8"))
            self.pieces, self.table[:] = journal["pieces"], journal["table"]
            return {split: Written(**written) for split, written in journal["files"].items()}
        except (ValueError, KeyError, TypeError) as error:
            raise ContinueError from error

    def _write_journal(self) -> None:
        files = {split: asdict(writer.flush()) for split, writer in self.writers.items()}
        sync(self._log)
        path = self.folder / "journal.json"
        with path.with_suffix(".new").open("wb") as file:
            file.write(json.dumps({"pieces": self.pieces, "files": files, "table": self.table.tolist()}).encode())
            sync(file)
        os.replace(path.with_suffix(".new"), path)
        self._journaled_at = time.monotonic()


def _row(source: int, split: Split) -> int:
    """Where in the table a split of a source is counted."""
    return source * len(SPLITS) + SPLITS.index(split)


def _too_much(waiting: Sequence[PieceBatch], limit: int) -> bool:
    """Whether more than one batch, and more text than the limit, waits for the encoders."""
    return len(waiting) > 1 and sum(batch.characters for batch in waiting) > limit


def _cores() -> int:
    """Cores this process may use: a container may have fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
