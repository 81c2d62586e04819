"""Samplers against the exact distribution; against transformers' processors: tests/parity/test_sampling.py."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.errors import UserError
from gptlab.generation.sampling import Sampling, adjust, choose, draw


def generators(n: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + i) for i in range(n)]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), [0.4, 0.3, 0.2, 0.1]),
        (Sampling(temperature=0.5), [0.16 / 0.3, 0.09 / 0.3, 0.04 / 0.3, 0.01 / 0.3]),
        (Sampling(top_k=2), [4 / 7, 3 / 7, 0, 0]),
        (Sampling(top_k=9), [0.4, 0.3, 0.2, 0.1]),
        (Sampling(top_p=0.65), [4 / 7, 3 / 7, 0, 0]),
        (Sampling(top_p=0.1), [1.0, 0, 0, 0]),
        (Sampling(min_p=0.6), [4 / 7, 3 / 7, 0, 0]),
        (Sampling(min_p=1.0), [1.0, 0, 0, 0]),
        (Sampling(top_k=3, top_p=0.7), [4 / 7, 3 / 7, 0, 0]),  # top-p looks at what top-k left: 4/9 + 3/9 ≥ 0.7
    ],
)
def test_closed_forms(sampling: Sampling, expected: list[float]) -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log() + 7  # logits are known up to a constant
    torch.testing.assert_close(adjust(logits, sampling), torch.tensor([expected]))


def test_repetition_penalty_lowers_positive_and_negative_logits_once() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0], [2.0, -2.0, 1.0]])
    probabilities = adjust(logits, Sampling(repetition_penalty=2.0), [torch.tensor([0, 1, 1]), torch.tensor([2])])
    expected = torch.tensor([[1.0, -4.0, 1.0], [2.0, -2.0, 0.5]]).softmax(-1)
    torch.testing.assert_close(probabilities, expected)
    assert logits[0, 0] == 2.0  # the caller's logits are as they were


@pytest.mark.parametrize("temperature", [1e-30, 1e30])
def test_extreme_temperatures_stay_finite(temperature: float) -> None:
    probabilities = adjust(torch.tensor([[3e4, -3e4, 1.0]]), Sampling(temperature=temperature))
    assert probabilities.isfinite().all()
    torch.testing.assert_close(probabilities.sum(), torch.tensor(1.0))


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.7),
        Sampling(top_k=5),
        Sampling(top_p=0.8),
        Sampling(min_p=0.05),
        Sampling(temperature=1.5, top_k=10, top_p=0.9, min_p=0.05),
    ],
)
def test_frequencies_are_the_exact_distribution(sampling: Sampling) -> None:
    """Pearson's chi-square over 20,000 draws, with a fixed seed, below its 99.9 % quantile."""
    n = 20_000
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(5)) * 1.5
    exact = adjust(logits, sampling)[0].double()
    one = torch.Generator().manual_seed(17)
    drawn = draw(exact.expand(n, -1), [one] * n)
    counts = torch.bincount(drawn, minlength=12).double()
    assert not counts[exact == 0].any()
    possible = exact > 0
    expected = exact[possible] / exact.sum() * n
    statistic = float(((counts[possible] - expected) ** 2 / expected).sum())
    freedom = int(possible.sum()) - 1
    # Wilson and Hilferty's (1931) quantile of chi-square; 3.09 is the normal's at 99.9 %.
    quantile = freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < quantile


@pytest.mark.parametrize(
    "sampling", [Sampling(top_k=7), Sampling(top_k=7, top_p=0.8, temperature=0.6), Sampling(top_k=1)]
)
@pytest.mark.parametrize("distinct", [10_000, 9, 2, 1])
def test_drawing_among_the_top_k_is_drawing_from_all(sampling: Sampling, distinct: int) -> None:
    """`choose` looks at few tokens, `adjust` at all; also where many are as probable as the k-th."""
    logits = torch.randint(distinct, (60, 300), generator=torch.Generator().manual_seed(4)) * (4 / distinct)
    chosen = choose(logits, sampling, [], generators(60))
    assert torch.equal(chosen, draw(adjust(logits, sampling), generators(60)))
    assert distinct == 1 or len(chosen.unique()) > 7


@pytest.mark.parametrize("spread", [0.0, 0.1, 3.0])
def test_the_nucleus_of_a_large_vocabulary(spread: float) -> None:
    """Larger than 2,048 tokens, and smaller; against its definition in float64."""
    logits = torch.randn(3, 9_000, generator=torch.Generator().manual_seed(8)) * spread
    for top_p in (1e-6, 0.3, 0.9):
        kept = adjust(logits, Sampling(top_p=top_p)) > 0
        exact = logits.double().softmax(-1)
        for row, probabilities in zip(kept, exact, strict=True):
            least = probabilities[row].min()
            assert torch.equal(row, probabilities >= least)
            assert probabilities[row].sum() >= top_p - 1e-5
            assert probabilities[probabilities > least].sum() < top_p + 1e-5


def test_a_row_is_drawn_alone_as_in_a_batch() -> None:
    probabilities = torch.randn(5, 40, generator=torch.Generator().manual_seed(1)).softmax(-1)
    together = draw(probabilities, generators(5))
    alone = [int(draw(probabilities[i : i + 1], generators(1, seed=i))) for i in range(5)]
    assert together.tolist() == alone
    assert len(set(alone)) > 1


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from([0.0, 1e-38, 1e-7, 1e-3, 1.0]), min_size=1, max_size=30).filter(any), st.integers(0, 9))
def test_probability_zero_is_never_drawn(weights: list[float], seed: int) -> None:
    probabilities = torch.tensor([weights])
    probabilities /= probabilities.sum()
    if probabilities.sum() > 0:
        assert probabilities[0, int(draw(probabilities, generators(1, seed)))] > 0


@pytest.mark.parametrize("uniform", [0.0, 1.0])
@pytest.mark.parametrize("zeros", [[0, 3], [0, 1, 3], []])
def test_the_ends_of_the_uniform_number(uniform: float, zeros: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """0 must not give a leading id of probability 0, nor 1 (which rand never gives) one behind the last."""
    monkeypatch.setattr(torch, "rand", lambda *size, dtype, **_: torch.full(size, uniform, dtype=dtype))
    probabilities = torch.full((1, 4), 0.25)
    probabilities[0, zeros] = 0
    assert probabilities[0, int(draw(probabilities, generators(1)))] > 0


def test_greedy_is_the_largest_logit_and_draws_no_number() -> None:
    logits = torch.tensor([[0.0, 1.0, 1.0 + 1e-6], [3.0, 1.0, 2.0]])
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    assert choose(logits, Sampling(greedy=True), [], [generator] * 2).tolist() == [2, 0]
    assert torch.equal(before, generator.get_state())


def test_greedy_heeds_the_repetition_penalty() -> None:
    logits = torch.tensor([[2.0, 1.9]])
    assert choose(logits, Sampling(greedy=True, repetition_penalty=1.5), [torch.tensor([0])], []).tolist() == [1]


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("temperature", 0.0, "use greedy"),
        ("temperature", -1.0, "above 0"),
        ("temperature", math.nan, "above 0"),
        ("temperature", math.inf, "above 0"),
        ("top_k", -1, "at least 0"),
        ("top_p", 0.0, "above 0 and at most 1"),
        ("top_p", 1.1, "above 0 and at most 1"),
        ("min_p", -0.1, "from 0"),
        ("min_p", 2.0, "to 1"),
        ("repetition_penalty", 0.0, "above 0"),
    ],
)
def test_impossible_values_are_named(name: str, value: float, wanted: str) -> None:
    with pytest.raises(UserError, match=f"{name} = .*{wanted}"):
        Sampling(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("temperature", 0.5), ("top_k", 3), ("top_p", 0.5), ("min_p", 0.1)])
def test_greedy_and_a_sampler_contradict(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{name} = {value} beside greedy"):
        Sampling(greedy=True, **{name: value})
