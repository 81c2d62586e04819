"""Which of two answers a model prefers: rewards of pairs, their scores and intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from gptlab.data.batch import Rows
from gptlab.device import Precision
from gptlab.errors import UserError
from gptlab.evaluation.classification_scores import LEVEL
from gptlab.evaluation.scores import read_rows, rows_at_once
from gptlab.model.classifier import labels_of, task_of
from gptlab.objectives.dpo import batch_log_probs
from gptlab.objectives.reward import batch_rewards

BINS = 10
"""Of the calibration, equally wide."""


def pairs_at_once(rows: Rows) -> int:
    """How many pairs, of two sequences each, a model reads at once where nothing but scoring needs memory."""
    return max(1, rows_at_once(rows) // 2)


def answer_log_probs(
    model: nn.Module,
    rows: Rows,
    *,
    device: torch.device,
    precision: Precision,
    micro_batch_size: int,
    on_batch: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """log p of the chosen and the rejected answer of every pair, (pairs, 2) float32, in the order of the rows, whose
    targets are the answers' tokens. They are read as `Scorer.rows` does: the model is left in the mode that it was in.

    ModelError where the model is a classifier, or its log-probabilities are not finite.
    """
    return read_rows(
        lambda model, batch: batch_log_probs(model, batch)[0], 2, "log-probabilities", model, rows, device=device,
        precision=precision, micro_batch_size=micro_batch_size, on_batch=on_batch,
    )  # fmt: skip


def pair_rewards(
    model: nn.Module,
    rows: Rows,
    *,
    device: torch.device,
    precision: Precision,
    micro_batch_size: int,
    on_batch: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """A reward model's rewards of the chosen and the rejected answer of every pair, (pairs, 2) float32, in the order of
    the rows, which have a target at the last token of each sequence. They are read as `answer_log_probs` does.

    UserError where the model is no reward model; ModelError where its rewards are not finite.
    """
    if task_of(labels_of(model)) != "reward":
        raise UserError("the model gives no rewards: name a reward model, which gptlab train makes of pairs")
    return read_rows(
        batch_rewards, 2, "rewards", model, rows, device=device, precision=precision,
        micro_batch_size=micro_batch_size, on_batch=on_batch,
    )  # fmt: skip


def preference_scores(rewards: np.ndarray, answer_tokens: np.ndarray) -> dict[str, Any]:
    """Scores of the `rewards` (pairs, 2) of chosen and rejected answers, implicit ones or a reward model's, whose
    lengths are `answer_tokens` (pairs, 2).

    pairs: how many
    accuracy: the share whose chosen answer has the higher reward, a tie being half right. `accuracy_low` and `_high`,
        its 95 % interval, are Wilson's ("Probable inference, the law of succession, and statistical inference", 1927):
        not of no width where all are right, as a bootstrap's is; ties, which vary less, make it a little too wide.
    margin: the mean of chosen minus rejected reward; `margin_low` and `_high` by Student's t, which a bootstrap of so
        simple a mean only repeats, in time and memory that grow with the pairs
    chosen_reward, rejected_reward, chosen_tokens, rejected_tokens: means
    longer_accuracy: of who always prefers the longer answer
    calibration: of σ(|margin|), the probability of Bradley and Terry's model that the answer of the higher reward is
        preferred. Ten equal "bins" of it, from 0.5 to 1, each {"low", "high", "pairs", "confidence", "accuracy"}, those
        without pairs left out; "error" is the mean over the pairs of |accuracy − confidence| of their bins (Guo et al.,
        "On Calibration of Modern Neural Networks", 2017, equation 3).

    UserError where there are no pairs, or not as many lengths as rewards.
    """
    if not len(rewards) or rewards.shape[1:] != (2,) or rewards.shape != answer_tokens.shape:
        raise UserError(f"rewards {rewards.shape} of answers {answer_tokens.shape}: wanted two of each pair")
    chosen, rejected = rewards.T.astype(np.float64)
    chosen_tokens, rejected_tokens = answer_tokens.T
    right = _right(chosen - rejected)
    accuracy, margin = float(right.mean()), float((chosen - rejected).mean())
    accuracy_low, accuracy_high = _share_interval(accuracy, len(right))
    margin_low, margin_high = _mean_interval(chosen - rejected)
    return {
        "pairs": len(rewards),
        "accuracy": accuracy,
        "accuracy_low": accuracy_low,
        "accuracy_high": accuracy_high,
        "margin": margin,
        "margin_low": margin_low,
        "margin_high": margin_high,
        "chosen_reward": float(chosen.mean()),
        "rejected_reward": float(rejected.mean()),
        "chosen_tokens": float(chosen_tokens.mean()),
        "rejected_tokens": float(rejected_tokens.mean()),
        "longer_accuracy": float(_right(chosen_tokens - rejected_tokens).mean()),
        "calibration": _calibration(chosen - rejected, right),
    }


def _right(differences: np.ndarray) -> np.ndarray:
    """1 where what is preferred is the chosen one, 1/2 where it is a tie, 0 where it is the other."""
    return (1 + np.sign(differences)) / 2


def _share_interval(share: float, n: int) -> tuple[float, float]:
    """Wilson's interval of a `share` of `n`."""
    from scipy.stats import norm

    z = float(norm.ppf((1 + LEVEL) / 2))
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def _mean_interval(values: np.ndarray) -> tuple[float, float]:
    """Student's interval of the mean of `values` (n,); of one value it is that value."""
    from scipy.stats import t

    mean, n = float(values.mean()), len(values)
    half = float(t.ppf((1 + LEVEL) / 2, n - 1) * values.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    return mean - half, mean + half


def _calibration(margins: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    confidence = 1 / (1 + np.exp(-np.abs(margins)))
    edges = np.linspace(0.5, 1, BINS + 1)
    bin_of = np.digitize(confidence, edges[1:-1])  # (pairs,), from 0 to BINS − 1
    bins = [
        {
            "low": float(edges[number]),
            "high": float(edges[number + 1]),
            "pairs": int((bin_of == number).sum()),
            "confidence": float(confidence[bin_of == number].mean()),
            "accuracy": float(right[bin_of == number].mean()),
        }
        for number in np.unique(bin_of)
    ]
    error = sum(each["pairs"] * abs(each["accuracy"] - each["confidence"]) for each in bins) / len(margins)
    return {"error": error, "bins": bins}
