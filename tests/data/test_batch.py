"""Which rows a step sees, and that micro-batches are only another cut of the same rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.data.batch import IGNORE, make_batch, pad_rows, permute, rows_of_step, steps_per_epoch


@pytest.mark.parametrize("n", [*range(1, 70), 255, 256, 257, 1000, 4095, 4097, 65_537])
def test_permute_is_a_permutation(n: int) -> None:
    for key in (0, 1, 2**70):
        assert np.array_equal(np.sort(permute(np.arange(n), n, key)), np.arange(n))


@settings(deadline=None)
@given(st.integers(1, 10**12), st.integers(0, 2**40), st.data())
def test_permute_keeps_inside_and_apart(n: int, key: int, data: st.DataObject) -> None:
    positions = np.array(data.draw(st.lists(st.integers(0, n - 1), unique=True, min_size=1, max_size=50)))
    sent = permute(positions, n, key)
    assert len(set(sent.tolist())) == len(positions)
    assert ((sent >= 0) & (sent < n)).all()
    assert np.array_equal(permute(positions[::-1], n, key)[::-1], sent)


def test_permute_is_random_enough() -> None:
    """Where position 0 goes under many keys is uniform: a chi-square of 16 cells stays below its 1e-6 quantile."""
    places = np.array([permute(np.array([0]), 16, key)[0] for key in range(3200)])
    counts = np.bincount(places, minlength=16)
    assert ((counts - 200) ** 2 / 200).sum() < 57


@pytest.mark.parametrize(("n_rows", "batch_size"), [(10, 4), (12, 4), (1, 8), (1000, 7)])
def test_each_row_once_an_epoch(n_rows: int, batch_size: int) -> None:
    steps = steps_per_epoch(n_rows, batch_size)
    orders = []
    for wanted in range(3):
        seen = []
        for step in range(wanted * steps, (wanted + 1) * steps):
            epoch, rows = rows_of_step(n_rows, batch_size, 5, step)
            assert epoch == wanted
            seen += rows.tolist()
        assert sorted(seen) == list(range(n_rows))
        orders.append(seen)
    if n_rows > 4:
        assert orders[0] != orders[1] != orders[2]


def test_the_seed_decides_the_order() -> None:
    first, again, other = (rows_of_step(1000, 32, seed, 3)[1].tolist() for seed in (1, 1, 2))
    assert first == again != other


ROWS = [([1, 2, 3], [2, 3, IGNORE]), ([4], [5]), ([6, 7, 8, 9, 10], [IGNORE] * 3 + [10, 11]), ([12, 13], [IGNORE] * 2)]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 9])
def test_micro_batches_are_the_same_rows(size: int) -> None:
    batch = pad_rows(ROWS, [10, 11, 12, 13])
    parts = list(batch.split(size))
    assert sum(part.weight for part in parts) == batch.weight == 2 + 1 + 2
    assert torch.cat([part.rows for part in parts]).tolist() == [10, 11, 12, 13]
    supervised = [
        (int(row), int(token), int(target))
        for part in parts
        for row, tokens, targets in zip(part.rows, part.tokens, part.targets, strict=True)
        for token, target in zip(tokens, targets, strict=True)
        if target != IGNORE
    ]
    assert supervised == [(10, 1, 2), (10, 2, 3), (11, 4, 5), (12, 9, 10), (12, 10, 11)]


def test_positions_are_the_supervised_ones() -> None:
    for part in pad_rows(ROWS, range(4)).split(2):
        assert part.positions.tolist() == (part.targets.reshape(-1) != IGNORE).nonzero().squeeze(1).tolist()
        assert part.weight == len(part.positions)


def test_a_micro_batch_is_cut_to_what_it_learns_at_a_multiple_of_sixteen() -> None:
    lengths = (60, 33, 32, 16, 1)
    batch = pad_rows([([1] * 60, [1] * length + [IGNORE] * (60 - length)) for length in lengths], range(5))
    assert [part.tokens.shape[1] for part in batch.split(1)] == [60, 48, 32, 16, 16]


def test_a_batch_that_learns_nothing_has_weight_zero() -> None:
    batch = make_batch(torch.ones(2, 30, dtype=torch.int64), torch.full((2, 30), IGNORE), torch.arange(2))
    assert batch.weight == 0
    assert batch.tokens.shape == (2, 16)


@pytest.mark.parametrize("micro_batch_size", [64, 5, 1])
def test_rows_that_come_longest_first_are_cut_where_padding_is_spared(micro_batch_size: int) -> None:
    random = np.random.default_rng(0)
    lengths = sorted(random.integers(2, 200, 64), reverse=True)
    whole = pad_rows([(random.integers(9, size=n), random.integers(9, size=n)) for n in lengths], range(64))
    parts = list(whole.split(micro_batch_size))
    assert torch.cat([part.rows for part in parts]).tolist() == list(range(64))
    assert sum(part.weight for part in parts) == whole.weight == sum(lengths)
    for part in parts:
        for row, number in enumerate(part.rows.tolist()):
            n = lengths[number]
            assert torch.equal(part.tokens[row, :n], whole.tokens[number, :n])
    if micro_batch_size == 64:
        assert 1 < len(parts) < 10
        assert sum(part.tokens.numel() for part in parts) < 0.75 * whole.tokens.numel()


def test_rows_of_one_length_stay_together() -> None:
    even = pad_rows([([1] * 8, [1] * 8)] * 10, range(10))
    assert [len(part) for part in even.split(10)] == [10]
    assert [len(part) for part in even.split(4)] == [4, 4, 2]
