"""Scores of a classifier with their intervals, and whether one is better than another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from gptlab.data.batch import Rows
from gptlab.device import Precision
from gptlab.errors import UserError
from gptlab.evaluation.scores import read_rows
from gptlab.model.classifier import labels_of
from gptlab.objectives.base import classified, macro_f1, matthews

RESAMPLES = 2_000
LEVEL = 0.95
"""Of every interval. Those over texts are percentile bootstraps (Efron and Tibshirani, An Introduction to the
Bootstrap, 1993, chapter 13)."""


def class_logits(
    model: nn.Module,
    rows: Rows,
    *,
    device: torch.device,
    precision: Precision,
    micro_batch_size: int,
    on_batch: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """A classifier's logits of every row, (n, classes) float32, in the order of the rows, which are read as
    `Scorer.rows` does: the model is left in the mode that it was in.

    UserError where the model is no classifier; ModelError where its logits are not finite.
    """
    labels = labels_of(model)
    if labels is None:
        raise UserError("a language model has no classes: name a classifier, which gptlab train makes of it")
    return read_rows(
        lambda model, batch: classified(model, batch)[0], len(labels), "logits", model, rows, device=device,
        precision=precision, micro_batch_size=micro_batch_size, on_batch=on_batch,
    )  # fmt: skip


def classification_scores(
    truth: np.ndarray, logits: np.ndarray, labels: Sequence[str], *, majority: int, seed: int = 0
) -> dict[str, Any]:
    """Scores of `logits` (n, classes) for texts whose classes are `truth` (n,), numbers into `labels`.

    texts, loss: how many, and their mean cross-entropy in nats
    majority, majority_accuracy: the label of class `majority`, the most frequent one in training, and the accuracy of
        answering it always
    accuracy, matthews, f1: each with `_low` and `_high`, its 95 % bootstrap interval over the texts. matthews is the
        correlation of Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient", 2004
        (of two classes Matthews' own), 0 where either side is of one class. f1 is the mean over the classes that are
        true or predicted of any text.
    per_class: label → {precision, recall, f1, texts}; 0 where there is nothing to divide by
    confusion: texts, [[…]]: rows are true classes, columns predicted ones

    UserError where there are no texts, or not as many logits as texts and labels.
    """
    from scipy.special import log_softmax
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    if not len(truth) or logits.shape != (len(truth), len(labels)):
        raise UserError(f"logits {logits.shape} of {len(truth)} texts and {len(labels)} labels: wanted one of each")
    predicted, numbers = logits.argmax(axis=1), np.arange(len(labels))
    log_probs = log_softmax(logits.astype(np.float64), axis=1)
    confusion = confusion_matrix(truth, predicted, labels=numbers)
    each = precision_recall_fscore_support(truth, predicted, labels=numbers, zero_division=0)
    return {
        "texts": len(truth),
        "loss": float(-log_probs[np.arange(len(truth)), truth].mean()),
        "majority": labels[majority],
        "majority_accuracy": float(np.mean(truth == majority)),
        **_with_intervals(confusion, seed),
        "per_class": {
            label: {"precision": float(precision), "recall": float(recall), "f1": float(f1), "texts": int(texts)}
            for label, precision, recall, f1, texts in zip(labels, *each, strict=True)
        },
        "confusion": confusion.tolist(),
    }


def _with_intervals(confusion: np.ndarray, seed: int) -> dict[str, float]:
    """The three scores that have an interval. They depend on the texts through the confusion matrix alone, so texts
    are drawn anew by drawing its cells: the same distribution, whatever the number of texts."""
    true, predicted = confusion.nonzero()
    counts = confusion[true, predicted]  # (cells,)
    drawn = np.random.default_rng(seed).multinomial(counts.sum(), counts / counts.sum(), size=RESAMPLES)
    classes = np.eye(len(confusion))
    right = classes[true] * (true == predicted)[:, None]
    at, many = ((of @ classes[true], of @ classes[predicted], of @ right) for of in (counts, drawn))
    scores: dict[str, float] = {}
    for name, score in WITH_INTERVAL.items():
        low, high = _interval(score(*many))
        scores |= {name: float(score(*at)), f"{name}_low": low, f"{name}_high": high}
    return scores


def accuracy(true: np.ndarray, predicted: np.ndarray, hits: np.ndarray) -> np.ndarray:
    """The share of texts that are right, (…,), from counts (…, classes) as `matthews` has them."""
    return hits.sum(axis=-1) / true.sum(axis=-1)


WITH_INTERVAL = {"accuracy": accuracy, "matthews": matthews, "f1": macro_f1}
"""One function makes a score and all its resamples at once."""


def paired_difference(truth: np.ndarray, a: np.ndarray, b: np.ndarray, *, seed: int = 0) -> dict[str, Any]:
    """Whether the predicted classes `a` are better than `b`, both (n,) of the same texts, whose classes are `truth`.

    difference, low, high: accuracy of a − accuracy of b, with its 95 % bootstrap interval over the texts
    only_a, only_b: texts that only one of them has right
    p: of McNemar's test (1947), exact: how often a fair coin would divide only_a + only_b at least so unevenly

    UserError where there are no texts, or not as many of one as of another.
    """
    from scipy.stats import binomtest

    if not len(truth) == len(a) == len(b) != 0:
        raise UserError(f"{len(a)} and {len(b)} predictions of {len(truth)} texts: wanted one of each")
    right_a, right_b = a == truth, b == truth
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    shares = np.array([only_a, only_b, len(truth) - only_a - only_b]) / len(truth)
    drawn = np.random.default_rng(seed).multinomial(len(truth), shares, size=RESAMPLES)
    low, high = _interval((drawn[:, 0] - drawn[:, 1]) / len(truth))
    p = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    difference = (only_a - only_b) / len(truth)
    return {"difference": difference, "low": low, "high": high, "p": p, "only_a": only_a, "only_b": only_b}


def seeds_difference(a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
    """Whether the scores `a` are better than `b`, a[i] and b[i] being of runs with the same seed.

    difference, low, high: the mean of a[i] − b[i], with its 95 % interval by Student's t
    p: of the paired t-test; 1 where no pair differs
    seeds: the number of pairs

    UserError where there are fewer than two pairs, or not as many of one as of another.
    """
    from scipy.stats import t

    if len(a) != len(b) or len(a) < 2:
        raise UserError(f"{len(a)} and {len(b)} scores: a paired difference wants as many of each, and at least two")
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    mean, error = float(differences.mean()), float(differences.std(ddof=1) / np.sqrt(len(differences)))
    freedom = len(differences) - 1
    margin = float(t.ppf((1 + LEVEL) / 2, freedom)) * error
    p = 2 * float(t.sf(abs(mean) / error, freedom)) if error else float(mean == 0)
    return {"difference": mean, "low": mean - margin, "high": mean + margin, "p": p, "seeds": len(differences)}


def _interval(values: np.ndarray) -> tuple[float, float]:
    """Of a score's resamples (n,)."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
