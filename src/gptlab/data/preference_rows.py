"""Preferences as rows of a batch: a row is a pair, two sequences that begin with the same prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from gptlab.data.batch import IGNORE, Batch, pad_rows
from gptlab.data.examples import first_that_fits, marked
from gptlab.data.row_file import RowFile
from gptlab.text.dialogue import Message
from gptlab.text.tokenizer import Tokenizer

Targets = Literal["answers", "last"]
"""What is predicted: every token of the answers, where a language model is aligned; or nothing, and a mark (0) stands
at the last token of each sequence, where a reward model reads its reward."""

PAIRS_LOOKED_AT = 20


class PreferenceRows:
    """The pairs of a split (data/batch.py's Rows).

    context:      tokens that a sequence was cut to
    max_length:   positions of the longest: one for every token, but not for the last where it is only predicted
    scored:       pairs
    tokens:       ids of both sides of all pairs
    answer_bytes: of all answers, as UTF-8, without the template's own words
    checksum:     the same pairs have the same, whatever the targets
    """

    def __init__(self, file: RowFile, context: int, targets: Targets) -> None:
        self.file, self.context, self.targets = file, context, targets
        self.max_length = file.info.longest - (targets == "answers")
        self.scored, self.tokens, self.answer_bytes = file.info.rows // 2, file.count, file.text_bytes
        self.checksum = file.checksum

    def __len__(self) -> int:
        return self.scored

    def batch(self, rows: np.ndarray, epoch: int = 0) -> Batch:
        """The pairs with these numbers, (n,) int64, that with the longest side first, so that a micro-batch holds pairs
        of about one length and little padding. `epoch` changes nothing."""
        starts = self.file.starts
        longer = np.maximum(starts[2 * rows + 1] - starts[2 * rows], starts[2 * rows + 2] - starts[2 * rows + 1])
        rows = rows[np.argsort(-longer, kind="stable")]
        sequences = [self._sequence(number) for row in rows.tolist() for number in (2 * row, 2 * row + 1)]
        return pad_rows(sequences, rows.tolist(), pairs=True)

    def with_targets(self, targets: Targets) -> PreferenceRows:
        """The same pairs, for a model of the other kind."""
        return PreferenceRows(self.file, self.context, targets)

    def lengths(self) -> np.ndarray:
        """Tokens of the chosen and of the rejected answer, with what closes them: (pairs, 2) int64."""
        return np.add.reduceat(self.file.learned, self.file.starts[:-1], dtype=np.int64).reshape(-1, 2)

    def prompts(self, n: int) -> list[tuple[list[Message], str]]:
        """At most `n` prompts, evenly chosen, no two the same, each with the chosen answer."""
        return self.file.prompts(n)

    def example(self, tokenizer: Tokenizer, characters: int = 1200) -> str:
        """One of the first pairs as text, its tokens divided by ·: the prompt, the chosen answer ≻ the rejected one; in
        ⟦…⟧ what has a target."""
        return first_that_fits(
            (self._marked(row, tokenizer) for row in range(min(PAIRS_LOOKED_AT, len(self)))), characters
        )

    def _sequence(self, number: int) -> tuple[Sequence[int], Sequence[int]]:
        """(ids, targets) of a side."""
        tokens, learned = self.file.row(number)
        if self.targets == "last":
            return tokens.tolist(), [*[IGNORE] * (len(tokens) - 1), 0]
        return tokens[:-1].tolist(), np.where(learned[1:], tokens[1:], IGNORE).tolist()

    def _marked(self, row: int, tokenizer: Tokenizer) -> str:
        texts = []
        for number in (2 * row, 2 * row + 1):
            tokens, answer = self.file.row(number)
            shown = slice(0 if number % 2 == 0 else int(answer.argmax()), None)  # the prompt once
            target = answer if self.targets == "answers" else np.arange(len(tokens)) == len(tokens) - 1
            texts.append(marked(tokens[shown], target[shown], tokenizer))
        return " ≻ ".join(texts)
