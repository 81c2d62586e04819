"""A token file as rows: windows of `context` tokens, each token to be predicted once.

tokens   a b c d e f g h        context 4
row 0    a b c d → b c d e
row 1    e f g h → f g h a      training: the tokens are a ring
"""

from __future__ import annotations

import numpy as np
import torch

from gptlab.data.batch import IGNORE, Batch, make_batch
from gptlab.data.token_file import TokenFile
from gptlab.errors import DataError


class TrainingWindows:
    """Windows over the ring of a file's tokens, shifted in each epoch by a key of (seed, epoch).

    There are `count // context` rows. In epoch e row r starts at (s(seed, e) + r · context) mod count, so that no
    token is seen twice in an epoch, and the windows' edges fall elsewhere in the next. Windows cross documents and
    sources. DataError where the file has not even one window.
    """

    def __init__(self, file: TokenFile, context: int, seed: int) -> None:
        if file.count < context + 1:
            names = ", ".join(source["name"] for source in file.header.get("sources", ()))
            raise DataError(
                f"{names or file.path}: {file.count:,} tokens are too few for one row of {context} and the token "
                "after it. Give more text, or a smaller model.context."
            )
        self.file, self.context, self.seed = file, context, seed
        self._tokens = np.asarray(file.tokens)  # a plain view: indexing np.memmap itself is slower
        self._inside = np.arange(context + 1)

    def __len__(self) -> int:
        return self.file.count // self.context

    def batch(self, rows: np.ndarray, epoch: int = 0) -> Batch:
        """The rows with these numbers, (n,) int64; all n · context positions are supervised."""
        starts = self.shift(epoch) + rows * self.context
        window = self._tokens.take(starts[:, None] + self._inside, mode="wrap").astype(np.int64)
        tokens, targets = torch.from_numpy(window[:, :-1].copy()), torch.from_numpy(window[:, 1:].copy())
        numbers = torch.from_numpy(rows.astype(np.int64))
        return Batch(tokens, targets, torch.arange(tokens.numel()), numbers, float(tokens.numel()))

    def shift(self, epoch: int) -> int:
        """Where the first window of this epoch starts, in [0, context)."""
        key = np.random.SeedSequence([self.seed, epoch]).generate_state(1, np.uint64)[0]
        return int(key % np.uint64(self.context))


class ScoredWindows:
    """Windows that score each token of a file exactly once, the same in every epoch.

    The first token is predicted from an EOS put before it, which training sees between documents. The last row is
    padded. Within a row every token sees the row before it: context 1 to `context`, stride `context`.

    scored:      tokens that are predicted, an EOS for each document among them
    padded:      positions of the last row that are none
    text_bytes, words: of the text they stand for
    """

    def __init__(self, file: TokenFile, context: int) -> None:
        self.file, self.context = file, context
        self.scored, self.text_bytes, self.words = file.count, file.text_bytes, file.words
        self.padded = len(self) * context - file.count
        self._tokens = np.asarray(file.tokens)

    def __len__(self) -> int:
        return -(-self.file.count // self.context)

    def batch(self, rows: np.ndarray, epoch: int = 0) -> Batch:
        """The rows with these numbers, (n,) int64; `epoch` changes nothing."""
        places = rows[:, None] * self.context + np.arange(self.context)
        real = places < self.scored
        targets = np.where(real, self._tokens.take(places, mode="clip").astype(np.int64), IGNORE)
        tokens = np.where(real, self._tokens.take(places - 1, mode="clip").astype(np.int64), 0)
        tokens[places == 0] = self.file.eos_id
        numbers = torch.from_numpy(rows.astype(np.int64))
        return make_batch(torch.from_numpy(tokens), torch.from_numpy(targets), numbers)
