"""Samplers equal transformers' logits processors."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gptlab.generation.sampling import Sampling, adjust

SEEN = torch.tensor([[1, 5, 5, 90], [0, 2, 3, 4], [7, 7, 7, 7]])


def reference(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    processors = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty),
            TemperatureLogitsWarper(sampling.temperature),
            *([TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []),
            *([TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []),
            *([MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []),
        ]
    )
    return processors(SEEN, logits.clone()).softmax(-1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.7),
        Sampling(temperature=3.0),
        Sampling(top_k=1),
        Sampling(top_k=40),
        Sampling(top_k=1000),
        Sampling(top_p=0.9),
        Sampling(top_p=0.001),
        Sampling(min_p=0.1),
        Sampling(repetition_penalty=1.3),
        Sampling(repetition_penalty=0.8),
        Sampling(temperature=0.8, top_k=50, top_p=0.95, min_p=0.02, repetition_penalty=1.2),
    ],
)
def test_processors(sampling: Sampling, seed: int) -> None:
    logits = torch.randn(3, 100, generator=torch.Generator().manual_seed(seed)) * 3
    ours, theirs = adjust(logits, sampling, SEEN), reference(logits, sampling)
    assert torch.equal(ours > 0, theirs > 0)
    torch.testing.assert_close(ours, theirs)


def test_ties_at_the_kth_place_stay_together() -> None:
    """bfloat16 logits often tie; transformers keeps all that are as large as the k-th."""
    logits = torch.tensor([[1.0, 2.0, 1.0, 0.0, 1.0]]).repeat(3, 1)
    ours = adjust(logits, Sampling(top_k=2))
    torch.testing.assert_close(ours, TopKLogitsWarper(2)(SEEN, logits.clone()).softmax(-1))
    assert ours[0].count_nonzero() == 4
