"""Texts with labels as rows of a batch: a text's ids, and its class where the last of them stands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from hashlib import blake2b

import numpy as np

from gptlab.data.batch import IGNORE, Batch, pad_rows
from gptlab.data.examples import first_that_fits, spelled
from gptlab.errors import DataError
from gptlab.text.tokenizer import Tokenizer

TEXTS_AT_ONCE = 2048
"""So many texts a thread encodes in one go."""
ROWS_LOOKED_AT = 20


class LabelRows:
    """Texts with their classes, in memory (data/batch.py's Rows).

    texts:   one or two a row, as they were read
    ids:     (tokens,) uint32, of all rows one after the other; starts: (rows + 1,) int64, where each begins
    classes: (rows,) int64, from 0; labels: their names
    context: positions of the longest row
    scored:  rows; tokens: ids in all

    It is made from the ids of each row, of which there is one at least.
    """

    def __init__(
        self, texts: Sequence[tuple[str, ...]], ids: Sequence[np.ndarray], classes: np.ndarray, labels: Sequence[str]
    ) -> None:
        lengths = [len(row) for row in ids]
        self.texts, self.classes, self.labels = texts, classes.astype(np.int64), tuple(labels)
        self.ids = np.concatenate(ids).astype(np.uint32)
        self.starts = np.cumsum([0, *lengths], dtype=np.int64)
        self.context, self.scored, self.tokens = max(lengths), len(texts), len(self.ids)

    def __len__(self) -> int:
        return len(self.texts)

    def batch(self, rows: np.ndarray, epoch: int = 0) -> Batch:
        """The rows with these numbers, (n,) int64, the longest first, so that a micro-batch holds rows of about one
        length and little padding. `epoch` changes nothing."""
        rows = rows[np.argsort(self.starts[rows] - self.starts[rows + 1], kind="stable")]
        return pad_rows([self._row(number) for number in rows.tolist()], rows.tolist())

    def counts(self) -> np.ndarray:
        """Rows of each class, (classes,) int64."""
        return np.bincount(self.classes, minlength=len(self.labels))

    @property
    def majority(self) -> int:
        """The most frequent class, the first of several."""
        return int(self.counts().argmax())

    @cached_property
    def checksum(self) -> str:
        """32 hex digits: the same rows, classes and labels have the same, on every machine."""
        hasher = blake2b("\x1f".join(self.labels).encode(), digest_size=16)
        for array, dtype in ((self.ids, "<u4"), (self.starts, "<i8"), (self.classes, "<i8")):
            hasher.update(array.astype(dtype).tobytes())
        return hasher.hexdigest()

    def example(self, tokenizer: Tokenizer, characters: int = 1200) -> str:
        """One of the first rows as text, its tokens divided by ·, the last, where the class is read, in ⟦…⟧."""
        rows = (self._marked(number, tokenizer) for number in range(min(ROWS_LOOKED_AT, len(self))))
        return first_that_fits(rows, characters)

    def _row(self, number: int) -> tuple[Sequence[int], Sequence[int]]:
        """(ids, targets): IGNORE but at the last token."""
        ids = self.ids[self.starts[number] : self.starts[number + 1]].tolist()
        return ids, [*[IGNORE] * (len(ids) - 1), int(self.classes[number])]

    def _marked(self, number: int, tokenizer: Tokenizer) -> str:
        *before, last = spelled(self._row(number)[0], tokenizer)
        return f"{'·'.join([*filter(None, before), f'⟦{last}⟧'])} → {self.labels[self.classes[number]]}"


def encode_texts(texts: Sequence[tuple[str, ...]], tokenizer: Tokenizer, separator: str) -> Iterator[np.ndarray]:
    """The ids of each text, of a pair as one text with `separator` between the two: (n,) uint32, in order, as threads
    make them. A special token's name in a text is text; no EOS is added."""
    joined = [separator.join(each) for each in texts]
    groups = [joined[start : start + TEXTS_AT_ONCE] for start in range(0, len(joined), TEXTS_AT_ONCE)]
    with ThreadPoolExecutor() as pool:
        for group in pool.map(tokenizer.encode_documents, groups):
            yield from group


def rows_of_texts(
    texts: Sequence[tuple[str, ...]], tokenizer: Tokenizer, *, context: int, labels: Sequence[str], separator: str
) -> LabelRows:
    """Texts alone, to be classified: rows as those of training, cut from the right to `context` tokens, all of class 0.

    DataError where there is no text, or one has nothing but space.
    """
    if not texts:
        raise DataError("there is no text to be classified")
    if blank := [number for number, each in enumerate(texts, start=1) if not any(text.strip() for text in each)]:
        raise DataError(f"text {blank[0]} is empty: nothing of it can be classified. Leave it out, or fill it.")
    ids = [row[:context] for row in encode_texts(texts, tokenizer, separator)]
    return LabelRows(texts, ids, np.zeros(len(texts), np.int64), labels)
