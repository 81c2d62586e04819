"""Dialogues as rows of a batch: one by one, padded on the right; or joined, in windows as of a corpus."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gptlab.data.batch import IGNORE, Batch, Rows, pad_rows
from gptlab.data.examples import first_that_fits, marked
from gptlab.data.row_file import RowFile
from gptlab.text.dialogue import Message
from gptlab.text.tokenizer import Tokenizer

ROWS_LOOKED_AT = 20


class DialogueRows:
    """The rows of a split (data/batch.py's TextRows). `windows`: over the same file, where dialogues are joined.

    context:    the positions a row may take; max_length: those of the longest
    scored:     supervised tokens
    text_bytes, words: of the text that they stand for, without special tokens and the template's own words
    checksum:   the same rows have the same
    """

    def __init__(self, file: RowFile, context: int, windows: Rows | None = None) -> None:
        self.file, self.context, self._windows = file, context, windows
        self.max_length = file.info.longest - 1 if windows is None else context
        self.scored, self.text_bytes, self.words = file.info.learned, file.text_bytes, file.words

    def __len__(self) -> int:
        return len(self._windows) if self._windows is not None else self.file.info.rows

    def batch(self, rows: np.ndarray, epoch: int = 0) -> Batch:
        """The rows with these numbers, (n,) int64. Those that are not joined are sorted, the longest first, so that a
        micro-batch holds rows of about one length and little padding."""
        if self._windows is not None:
            return self._windows.batch(rows, epoch)
        starts = self.file.starts
        rows = rows[np.argsort(starts[rows] - starts[rows + 1], kind="stable")]
        return pad_rows([self._row(int(number)) for number in rows], rows.tolist())

    def targets_array(self) -> np.ndarray:
        """The ids of all supervised tokens, (scored,)."""
        return self.file.tokens[self.file.learned]

    def prompts(self, n: int) -> list[tuple[list[Message], str]]:
        """At most `n` dialogues, evenly chosen: each as far as its last answer, and that answer."""
        return self.file.prompts(n)

    def example(self, tokenizer: Tokenizer, characters: int = 1200) -> str:
        """One of the first rows as text, its tokens divided by ·, those that are learned in ⟦…⟧."""
        texts = (marked(*self.file.row(row), tokenizer) for row in range(min(ROWS_LOOKED_AT, self.file.info.rows)))
        return first_that_fits(texts, characters)

    def _row(self, number: int) -> tuple[Sequence[int], Sequence[int]]:
        """(ids, targets), each a position for every token but the last."""
        tokens, learned = self.file.row(number)
        return tokens[:-1].tolist(), np.where(learned[1:], tokens[1:], IGNORE).tolist()
