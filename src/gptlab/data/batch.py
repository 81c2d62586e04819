"""Rows, batches, and which rows a step sees.

A row is `(ids, targets)`: `targets[t]` is what position t should say, or IGNORE. Rows are padded on the
right; under causal attention padding reaches no real position, so training needs no attention mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

IGNORE = -100
"""The target of a position that is not learned (the field's value, torch's default `ignore_index`)."""


@dataclass(frozen=True)
class Batch:
    """Rows of one step, or of one micro-batch of it. A row is one sequence of tokens; or a pair of them, which no
    micro-batch separates, and then two follow each other: the chosen one, the rejected one.

    tokens:    (rows, time), of pairs (2 · rows, time), int64, padded on the right with 0
    targets:   of the same shape, int64, IGNORE where nothing is learned
    positions: (n,) int64, the flat indices of the supervised positions. They are found on the host, so
               that the head can select them on a GPU without waiting for it.
    rows:      (rows,) int64, which rows of the data these are
    weight:    the number of items the objective's sums are over: supervised tokens; texts, where a row's class stands
               at its last token alone; pairs
    values:    what was computed once for each row, by name: (rows, …)
    pairs:     whether a row is a pair
    """

    tokens: Tensor
    targets: Tensor
    positions: Tensor
    rows: Tensor
    weight: float
    values: Mapping[str, Tensor] = field(default_factory=dict)
    pairs: bool = False

    def __len__(self) -> int:
        return self.rows.shape[0]

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`; asynchronous from pinned memory."""
        if device.type == "cpu":
            return self

        def there(tensor: Tensor) -> Tensor:
            return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)

        tokens, targets, positions = there(self.tokens), there(self.targets), there(self.positions)
        values = {name: there(value) for name, value in self.values.items()}
        return replace(self, tokens=tokens, targets=targets, positions=positions, values=values)

    def split(self, micro_batch_size: int) -> Iterator[Batch]:
        """Consecutive micro-batches of at most `micro_batch_size` rows, each cut to its own longest row. Rows that come
        longest first are cut once more wherever that spares a good part of the padding."""
        lengths = self._lengths()
        for start in range(0, len(self), micro_batch_size):
            for length in _even_lengths(lengths[start : start + micro_batch_size]):
                part = slice(start, start + length)
                sequences = slice(2 * start, 2 * (start + length)) if self.pairs else part
                values = {name: value[part] for name, value in self.values.items()}
                tokens, targets = self.tokens[sequences], self.targets[sequences]
                yield make_batch(tokens, targets, self.rows[part], values, pairs=self.pairs)
                start += length

    def _lengths(self) -> np.ndarray:
        """Positions of each row up to its last supervised one, of a pair those of the longer, (rows,)."""
        supervised = self.targets.numpy() != IGNORE
        lengths = np.where(supervised.any(axis=1), supervised.shape[1] - supervised[:, ::-1].argmax(axis=1), 1)
        return lengths.reshape(len(self), -1).max(axis=1, initial=0)


def make_batch(
    tokens: Tensor, targets: Tensor, rows: Tensor, values: Mapping[str, Tensor] | None = None, *, pairs: bool = False
) -> Batch:
    """A batch of (rows, time) tokens and targets whose weight is the supervised positions; or of `pairs`, (2 · rows,
    time), whose weight is their number.

    Columns in which no row learns anything any more are cut off, but for a few: causal attention never looks there.
    """
    supervised = targets != IGNORE
    learned = supervised.any(dim=0).nonzero()
    time = -(-(int(learned[-1]) + 1 if len(learned) else 1) // COLUMNS) * COLUMNS
    tokens, targets, supervised = tokens[:, :time], targets[:, :time], supervised[:, :time]
    positions = supervised.reshape(-1).nonzero().squeeze(1)
    weight = float(len(rows) if pairs else len(positions))
    return Batch(tokens.contiguous(), targets.contiguous(), positions, rows, weight, values or {}, pairs)


SPARED = 0.15
"""A batch of uneven rows is cut in two where that spares so much of its positions: each part has a cost of its own."""


ROWS, COLUMNS = 4, 16
"""Batches are cut at multiples of so many rows and positions, so that the same shapes come again: oneDNN keeps code and
memory for each (without, a run of DailyDialog grew from 0.7 to 3.0 GB)."""


def _even_lengths(lengths: np.ndarray) -> list[int]:
    """How many rows go together: `lengths` (n,) cut, where they fall, into parts of about one length."""
    if (np.diff(lengths) > 0).any():
        return [len(lengths)]
    before = np.arange(ROWS, len(lengths), ROWS)
    positions = before * lengths[0] + (len(lengths) - before) * lengths[before]  # together, for each place to cut
    if not len(positions) or positions.min() > (1 - SPARED) * len(lengths) * lengths[0]:
        return [len(lengths)]
    cut = int(before[positions.argmin()])
    return [*_even_lengths(lengths[:cut]), *_even_lengths(lengths[cut:])]


def pad_rows(
    rows: Sequence[tuple[Sequence[int], Sequence[int]]], numbers: Sequence[int], *, pairs: bool = False
) -> Batch:
    """One batch of rows `(ids, targets)` of different lengths, padded on the right; `numbers` name them. Of `pairs`
    there are two for each number, the chosen and the rejected one."""
    time = max(len(ids) for ids, _ in rows)
    tokens = np.zeros((len(rows), time), dtype=np.int64)
    targets = np.full((len(rows), time), IGNORE, dtype=np.int64)
    for r, (ids, wanted) in enumerate(rows):
        tokens[r, : len(ids)] = ids
        targets[r, : len(wanted)] = wanted
    named = torch.as_tensor(numbers, dtype=torch.int64)
    return make_batch(torch.from_numpy(tokens), torch.from_numpy(targets), named, pairs=pairs)


class Rows(Protocol):
    """What training and validation read: rows that can be had by number.

    context: the length of the longest row
    scored:  the items that an objective's sums are over: supervised tokens, texts, or pairs
    """

    @property
    def context(self) -> int: ...
    @property
    def scored(self) -> int: ...
    def __len__(self) -> int: ...

    def batch(self, rows: np.ndarray, epoch: int = 0) -> Batch:
        """The rows with these numbers, (n,) int64, as one batch on the host. `epoch` matters to a training corpus
        alone, whose windows are shifted anew in each epoch."""
        ...


class TextRows(Rows, Protocol):
    """Rows of text: what a language model is trained on and scored by.

    text_bytes: UTF-8 bytes of the text that the supervised tokens stand for; words: separated by white space
    """

    @property
    def text_bytes(self) -> int: ...
    @property
    def words(self) -> int: ...

    def targets_array(self) -> np.ndarray:
        """The ids of all supervised tokens, (scored,), perhaps a memory map."""
        ...


class ValuedRows:
    """Rows with what was computed once for each of them: `values`, by name, (len(rows), …)."""

    def __init__(self, rows: Rows, values: Mapping[str, Tensor]) -> None:
        self.inner, self.values = rows, values
        self.context, self.scored = rows.context, rows.scored

    def __len__(self) -> int:
        return len(self.inner)

    def batch(self, rows: np.ndarray, epoch: int = 0) -> Batch:
        batch = self.inner.batch(rows, epoch)
        return replace(batch, values={name: value[batch.rows] for name, value in self.values.items()})


def steps_per_epoch(n_rows: int, batch_size: int) -> int:
    """Optimizer steps in an epoch; the last may be short."""
    return -(-n_rows // batch_size)


def rows_of_step(n_rows: int, batch_size: int, seed: int, step: int) -> tuple[int, np.ndarray]:
    """Which rows step `step` (from 0) sees: a pure function of (seed, step), each row once an epoch.

    Returns (epoch, row numbers (≤ batch_size,) int64). Nothing is kept in memory and nothing has to be
    skipped when a run continues. The last step of an epoch may be short.
    """
    epoch, place = divmod(step, steps_per_epoch(n_rows, batch_size))
    positions = np.arange(place * batch_size, min((place + 1) * batch_size, n_rows))
    return epoch, permute(positions, n_rows, key=(seed << 20) ^ epoch)


def permute(positions: np.ndarray, n: int, key: int) -> np.ndarray:
    """Where a keyed random permutation of 0…n-1 sends `positions`, without holding the permutation.

    A balanced Feistel network of four rounds on 2b bits with 4**b ≥ n; a value that falls outside 0…n-1
    is sent through again until it falls inside (cycle walking: Black & Rogaway, "Ciphers with arbitrary
    finite domains", 2002), at most four times on average, since 4**b < 4n.
    """
    half_bits = np.uint64(max(1, (max(n - 1, 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half_bits)) - 1)
    round_keys = np.random.SeedSequence(key % 2**128).generate_state(4, np.uint64)
    result = positions.astype(np.uint64)
    outside = np.arange(len(result))
    while len(outside):
        values = result[outside]
        left, right = values >> half_bits, values & mask
        for round_key in round_keys:
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        result[outside] = (left << half_bits) | right
        outside = outside[result[outside] >= n]
    return result.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer: every input bit reaches every output bit (Steele et al., 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
