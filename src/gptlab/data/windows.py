"""A token file as rows: windows of `context` tokens, each token to be predicted once.

tokens   a b c d e f g h        context 4
row 0    a b c d → b c d e
row 1    e f g h → f g h a      training: the tokens are a ring

Both kinds are TextRows (data/batch.py). `learned`, (count,) bool, says which tokens are predicted where it is not all
of them: the answers of joined dialogues.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch

from gptlab.data.batch import IGNORE, Batch, make_batch
from gptlab.errors import DataError


class JoinedText(Protocol):
    """What is cut into windows: a TokenFile, say, or the joined dialogues of a RowFile."""

    @property
    def tokens(self) -> np.ndarray: ...
    @property
    def header(self) -> dict[str, Any]: ...
    @property
    def count(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    @property
    def text_bytes(self) -> int: ...
    @property
    def words(self) -> int: ...


class _Windows:
    """context, text_bytes, words: as TextRows has them; file: what is read."""

    def __init__(self, file: JoinedText, context: int, learned: np.ndarray | None) -> None:
        self.file, self.context, self.learned = file, context, learned
        self.text_bytes, self.words = file.text_bytes, file.words
        self._tokens = np.asarray(file.tokens)  # a plain view: indexing np.memmap itself is slower

    def targets_array(self) -> np.ndarray:
        """The ids of all supervised tokens; in training those that an epoch's shift leaves out are among them."""
        return self._tokens if self.learned is None else self._tokens[self.learned]


class TrainingWindows(_Windows):
    """Windows over the ring of a file's tokens, shifted in each epoch by a key of (seed, epoch).

    There are `count // context` rows. In epoch e row r starts at (s(seed, e) + r · context) mod count, so that no
    token is seen twice in an epoch, and the windows' edges fall elsewhere in the next. Windows cross documents and
    sources. DataError where the file has not even one window.

    scored: supervised tokens of an epoch; with `learned`, of the file
    """

    def __init__(self, file: JoinedText, context: int, seed: int, learned: np.ndarray | None = None) -> None:
        if file.count < context + 1:
            names = ", ".join(source["name"] for source in file.header.get("sources", ()))
            raise DataError(
                f"{names or 'the text'}: {file.count:,} tokens are too few for one row of {context} and the token "
                "after it. Give more text, or a smaller model.context."
            )
        super().__init__(file, context, learned)
        self.seed = seed
        self.scored = len(self) * context if learned is None else int(np.count_nonzero(learned))
        self._inside = np.arange(context + 1)

    def __len__(self) -> int:
        return self.file.count // self.context

    def batch(self, rows: np.ndarray, epoch: int = 0) -> Batch:
        """The rows with these numbers, (n,) int64; all n · context positions are supervised, or those of `learned`."""
        places = self.shift(epoch) + rows[:, None] * self.context + self._inside
        window = self._tokens.take(places, mode="wrap").astype(np.int64)
        tokens, targets = torch.from_numpy(window[:, :-1].copy()), torch.from_numpy(window[:, 1:].copy())
        numbers = torch.from_numpy(rows.astype(np.int64))
        if self.learned is not None:
            wanted = torch.from_numpy(self.learned.take(places[:, 1:], mode="wrap"))
            return make_batch(tokens, targets.where(wanted, IGNORE), numbers)
        return Batch(tokens, targets, torch.arange(tokens.numel()), numbers, float(tokens.numel()))

    def shift(self, epoch: int) -> int:
        """Where the first window of this epoch starts, in [0, context)."""
        key = np.random.SeedSequence([self.seed, epoch]).generate_state(1, np.uint64)[0]
        return int(key % np.uint64(self.context))


class ScoredWindows(_Windows):
    """Windows that score each token of a file exactly once, the same in every epoch.

    The first token is predicted from an EOS put before it, which training sees between documents. The last row is
    padded. Within a row every token sees the row before it: context 1 to `context`, stride `context`.

    scored: tokens that are predicted, an EOS for each document among them
    padded: positions of the last row that are none
    """

    def __init__(self, file: JoinedText, context: int, learned: np.ndarray | None = None) -> None:
        super().__init__(file, context, learned)
        self.scored = file.count if learned is None else int(np.count_nonzero(learned))
        self.padded = len(self) * context - file.count

    def __len__(self) -> int:
        return -(-self.file.count // self.context)

    def batch(self, rows: np.ndarray, epoch: int = 0) -> Batch:
        """The rows with these numbers, (n,) int64; `epoch` changes nothing."""
        places = rows[:, None] * self.context + np.arange(self.context)
        real = places < self.file.count
        wanted = real if self.learned is None else real & self.learned.take(places, mode="clip")
        targets = np.where(wanted, self._tokens.take(places, mode="clip").astype(np.int64), IGNORE)
        tokens = np.where(real, self._tokens.take(places - 1, mode="clip").astype(np.int64), 0)
        tokens[places == 0] = self.file.eos_id
        numbers = torch.from_numpy(rows.astype(np.int64))
        return make_batch(torch.from_numpy(tokens), torch.from_numpy(targets), numbers)
