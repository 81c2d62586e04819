"""Zero-shot tests of a language model: cloze (LAMBADA), multiple choice (HellaSwag), minimal pairs (BLiMP).

The scores are those of lm-evaluation-harness 0.4.13 (`process_results` in lm_eval/api/task.py, and its tasks blimp,
lambada_openai and hellaswag), so that they stand beside others'; benchmarks/zero_shot.py runs both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from gptlab.data.choices import Item, Kind, read_choices
from gptlab.device import Precision
from gptlab.evaluation.continuations import LogLikelihoods, log_likelihoods
from gptlab.model.folder import Model
from gptlab.objectives.base import exp
from gptlab.text.tokenizer import Tokenizer

LEVEL = 0.95
"""Of the intervals."""

T = TypeVar("T")


def evaluate_choices(
    kind: Kind,
    model: Model,
    tokenizer: Tokenizer,
    place: str | Path | None = None,
    *,
    device: torch.device,
    precision: Precision,
    batch_tokens: int = 8192,
    limit: int = 0,
    on_batch: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """The scores of a language model on `device` in the test `kind`, whose items are at `place` (see `read_choices`;
    None: the published ones, from the hub).

    accuracy:  the share of the items whose right continuation is the most probable one (of equal ones the first
               counts); in LAMBADA, of the last words of which every token is the most probable one. With
               `accuracy_low` and `accuracy_high`, the 95 % interval by Wilson's score (1927)
    chance:    the accuracy of guessing; 0 for LAMBADA, where any word may follow
    items:     how many were asked; `truncated`: how many of them were read without their beginning, being longer than
               the model's context
    blimp:     `fields`, `phenomena` and `paradigms`: name → accuracy. The whole accuracy is over pairs: where the
               paradigms are equally large, as published, that is their mean too
    lambada:   `perplexity`: exp of the mean −log p of a last word
    hellaswag: `accuracy_normalised` with its interval: each ending's log-probability divided by its characters

    batch_tokens: at most so many tokens are read at once
    limit:        only so many items, evenly chosen; 0: all
    on_batch:     is told (done, total) of the continuations

    DataError and GptlabError as `read_choices` raises them; ModelError where a probability is not finite.
    """
    items = evenly(read_choices(kind, place), limit)
    found = log_likelihoods(
        model, tokenizer, items, device=device, precision=precision, batch_tokens=batch_tokens,
        greedy=kind == "lambada", on_batch=on_batch,
    )  # fmt: skip
    return {**SCORES[kind](items, found), "items": len(items), "truncated": found.truncated}


def evenly(items: Sequence[T], limit: int) -> list[T]:
    """At most `limit` of the items (0: all), at even distances from the first on."""
    n = min(limit, len(items)) or len(items)
    return [items[place * len(items) // n] for place in range(n)]


def _pair_scores(items: Sequence[Item], found: LogLikelihoods) -> dict[str, Any]:
    right = _chosen_right(items, found.log_probs)
    groups: dict[str, dict[str, list[bool]]] = {of: {} for of in items[0].groups}
    for item, is_right in zip(items, right.tolist(), strict=True):
        for of, name in item.groups.items():
            groups[of].setdefault(name, []).append(is_right)
    means = {
        of: {name: float(np.mean(each)) for name, each in sorted(members.items())} for of, members in groups.items()
    }
    return {**_share("accuracy", right), "chance": 0.5, **means}


def _cloze_scores(items: Sequence[Item], found: LogLikelihoods) -> dict[str, Any]:
    return {**_share("accuracy", found.greedy), "chance": 0.0, "perplexity": exp(-float(found.log_probs.mean()))}


def _ending_scores(items: Sequence[Item], found: LogLikelihoods) -> dict[str, Any]:
    characters = np.array([len(ending) - 1 for item in items for ending in item.continuations])  # without the space
    return {
        **_share("accuracy", _chosen_right(items, found.log_probs)),
        **_share("accuracy_normalised", _chosen_right(items, found.log_probs / characters)),
        "chance": 0.25,
    }


SCORES: dict[Kind, Callable[[Sequence[Item], LogLikelihoods], dict[str, Any]]] = {
    "blimp": _pair_scores,
    "lambada": _cloze_scores,
    "hellaswag": _ending_scores,
}


def _chosen_right(items: Sequence[Item], scores: np.ndarray) -> np.ndarray:
    """Whether the right continuation of each item has the highest of its `scores`: (items,) bool, from (items · n,)."""
    answers = np.array([item.answer for item in items])
    chosen: np.ndarray = scores.reshape(len(items), -1).argmax(axis=1)
    return chosen == answers


def _share(name: str, right: np.ndarray) -> dict[str, float]:
    """The share of what is right, with its interval."""
    from scipy.stats import binomtest

    interval = binomtest(int(right.sum()), len(right)).proportion_ci(LEVEL, method="wilson")
    return {name: float(right.mean()), f"{name}_low": float(interval.low), f"{name}_high": float(interval.high)}
