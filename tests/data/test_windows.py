"""Rows of a token file: each token once an epoch in training, each token once in scoring."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.data.batch import IGNORE, make_batch
from gptlab.data.token_file import TokenFile
from gptlab.data.token_writer import TokenFileWriter
from gptlab.data.windows import ScoredWindows, TrainingWindows
from gptlab.errors import DataError

EOS = 50_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("windows")


def file_of(folder: Path, count: int) -> TokenFile:
    """A file whose tokens are 0 … count - 2, EOS: each tells its place."""
    path = folder / f"{count}.tokens"
    if not path.exists():
        writer = TokenFileWriter(path, EOS + 1, EOS)
        writer.append([np.arange(count - 1, dtype=np.uint32)])
        writer.finish({"tokenizer": "", "eos_id": EOS, "text_bytes": 3 * count, "words": count})
    return TokenFile.open(path)


@settings(deadline=None)
@given(count=st.integers(10, 80), context=st.integers(1, 9), seed=st.integers(0, 2**40), epoch=st.integers(0, 5))
def test_training_is_a_ring(folder: Path, count: int, context: int, seed: int, epoch: int) -> None:
    file = file_of(folder, count)
    windows = TrainingWindows(file, context, seed)
    assert len(windows) == count // context
    batch = windows.batch(np.arange(len(windows)), epoch)
    tokens, targets = batch.tokens.numpy(), batch.targets.numpy()
    ring = file.tokens.astype(np.int64)
    start = windows.shift(epoch)
    assert 0 <= start < context
    assert np.array_equal(tokens.reshape(-1), np.roll(ring, -start)[: tokens.size])  # in order, none twice
    assert np.array_equal(targets.reshape(-1), np.roll(ring, -start - 1)[: tokens.size])


def test_training_batch_is_what_make_batch_makes(folder: Path) -> None:
    windows = TrainingWindows(file_of(folder, 1000), 16, seed=3)
    batch = windows.batch(np.array([5, 0, 61]), epoch=2)
    reference = make_batch(batch.tokens, batch.targets, batch.rows)
    assert torch.equal(batch.positions, reference.positions)
    assert batch.rows.tolist() == [5, 0, 61]
    assert batch.weight == reference.weight == 48
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64
    assert batch.tokens.is_contiguous()
    assert batch.targets.is_contiguous()


def test_the_shift_is_keyed_by_seed_and_epoch(folder: Path) -> None:
    file = file_of(folder, 1000)
    shifts = {(seed, epoch): TrainingWindows(file, 500, seed).shift(epoch) for seed in range(5) for epoch in range(5)}
    assert len(set(shifts.values())) > 20
    assert shifts == {key: TrainingWindows(file, 500, key[0]).shift(key[1]) for key in shifts}


def test_too_few_tokens(folder: Path) -> None:
    with pytest.raises(DataError, match=r"10 tokens are too few for one row of 10.*smaller model\.context"):
        TrainingWindows(file_of(folder, 10), 10, 0)
    assert len(TrainingWindows(file_of(folder, 10), 9, 0)) == 1


@settings(deadline=None)
@given(count=st.integers(2, 80), context=st.integers(1, 30), size=st.integers(1, 7))
def test_every_token_is_scored_once(folder: Path, count: int, context: int, size: int) -> None:
    file = file_of(folder, count)
    windows = ScoredWindows(file, context)
    scored = []
    for start in range(0, len(windows), size):
        rows = np.arange(start, min(start + size, len(windows)))
        batch = windows.batch(rows, epoch=start)
        real = batch.targets != IGNORE
        assert batch.weight == real.sum()
        before = batch.tokens[real].tolist()
        targets = batch.targets[real].tolist()
        assert before == [EOS if target == 0 else file.tokens[target - 1] if target != EOS else count - 2
                          for target in targets]  # fmt: skip
        scored += targets
    assert scored == file.tokens.tolist()
    assert windows.scored == count
    assert windows.padded == len(windows) * context - count < context
    assert (windows.text_bytes, windows.words) == (3 * count, count)


def test_scoring_does_not_depend_on_the_epoch(folder: Path) -> None:
    windows = ScoredWindows(file_of(folder, 50), 7)
    first, second = (windows.batch(np.array([7, 0]), epoch) for epoch in (0, 3))
    assert torch.equal(first.tokens, second.tokens)
    assert torch.equal(first.targets, second.targets)
    assert first.tokens[0].tolist() == [48, *[0] * 6]
    assert first.targets[0].tolist() == [EOS, *[IGNORE] * 6]


def test_only_what_is_learned_is_supervised(folder: Path) -> None:
    file = file_of(folder, 50)
    learned = np.arange(50) % 3 == 1
    learned[35:49] = False
    wanted = file.tokens[learned].tolist()
    training, scored = TrainingWindows(file, 7, 3, learned), ScoredWindows(file, 7, learned)
    for windows in (training, scored):
        assert windows.scored == len(wanted)
        assert windows.targets_array().tolist() == wanted
    batch = scored.batch(np.arange(len(scored)))
    assert batch.targets[batch.targets != IGNORE].tolist() == wanted
    assert batch.weight == len(wanted)
    every = training.batch(np.arange(len(training)), epoch=1)
    place = (training.shift(1) + 1 + np.arange(49)) % 50
    assert every.targets[every.targets != IGNORE].tolist() == file.tokens[place[learned[place]]].tolist()
    assert training.batch(np.array([5])).weight <= 7


def test_all_tokens_are_targets_by_default(folder: Path) -> None:
    file = file_of(folder, 50)
    for windows in (TrainingWindows(file, 7, 3), ScoredWindows(file, 7)):
        assert windows.targets_array().tolist() == file.tokens.tolist()
        assert windows.scored == sum(windows.batch(np.array([n])).weight for n in range(len(windows)))
