"""The contract between the training loop and what is learned; and what objectives of classes, and of pairs, share.

    sums = objective(model, batch)      # a dict of tensors, each a SUM over the batch

"loss" is descended, and is a sum over the batch's `weight` items (supervised tokens, texts, or pairs). Sums,
never means: dividing is the loop's, once, by the weight of the whole step over all its micro-batches. So the
cut into micro-batches changes no number; a mean of means would. A sum that is a vector holds counts, and is for
`metrics` alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gptlab.data.batch import Batch


class Objective(Protocol):
    """An objective is immutable: what it needs it was built with."""

    @property
    def weights(self) -> Mapping[str, str]:
        """Sums that are over something else than the batch's weight: key → the key that counts it."""
        ...

    def __call__(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """The sums of this batch, scalars and vectors of counts; "loss" among them."""
        ...

    def metrics(self, sums: Mapping[str, Any], weight: float) -> dict[str, float]:
        """What is reported beside the means: what is no mean of its items (a perplexity, a correlation). `sums` are
        floats, and lists of them where they are counts."""
        ...


def means(objective: Objective, sums: Mapping[str, Any], weight: float) -> dict[str, float]:
    """Each sum divided by its own weight; a key that only counts, or has a list of counts, is left out."""
    counting = set(objective.weights.values())
    return {
        key: value / (sums[objective.weights[key]] if key in objective.weights else weight)
        for key, value in sums.items()
        if key not in counting and not isinstance(value, list)
    }


def exp(nats: float) -> float:
    """e to the `nats`, infinite where a float cannot hold it: a perplexity from a mean."""
    return math.exp(nats) if nats < 700 else math.inf


def classified(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """A classifier's logits (texts, classes), float32 at least, and the texts' classes (texts,) int64; both stand at a
    row's last token."""
    hidden = model(batch.tokens).flatten(0, 1).index_select(0, batch.positions)  # (texts, width)
    logits = model.classify(hidden)
    classes = batch.targets.flatten().index_select(0, batch.positions)
    return logits.to(torch.promote_types(logits.dtype, torch.float32)), classes


def class_counts(logits: Tensor, classes: Tensor, n_classes: int) -> dict[str, Tensor]:
    """For logits (texts, classes) and the right classes (texts,): "accuracy", the number of texts with the right one;
    and by class, (n_classes,), the texts that are of it ("true"), that are said to be ("predicted"), and both ("hits").
    """
    every = torch.arange(n_classes, device=logits.device)
    true = classes[:, None] == every  # compared, not counted by bincount, for which a GPU would have to wait
    predicted = logits.argmax(dim=1, keepdim=True) == every
    hits = true & predicted
    counts = {"true": true, "predicted": predicted, "hits": hits}
    return {"accuracy": hits.sum(), **{key: found.sum(dim=0) for key, found in counts.items()}}


def class_metrics(sums: Mapping[str, Any]) -> dict[str, float]:
    """The correlation ("matthews") and the mean of F1 ("f1") of summed `class_counts`."""
    counts = [np.array(sums[key]) for key in ("true", "predicted", "hits")]
    return {"matthews": float(matthews(*counts)), "f1": float(macro_f1(*counts))}


def matthews(true: np.ndarray, predicted: np.ndarray, hits: np.ndarray) -> np.ndarray:
    """Matthews' correlation for any number of classes, (…,), from float64 counts (…, classes): texts of a class, said
    to be, and both. 0 where one class alone is true, or predicted.

    Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient", 2004; the same as
    scikit-learn's matthews_corrcoef.
    """
    texts = true.sum(axis=-1)
    covariance = hits.sum(axis=-1) * texts - (true * predicted).sum(axis=-1)
    variances = (texts**2 - (true**2).sum(axis=-1)) * (texts**2 - (predicted**2).sum(axis=-1))
    return covariance / np.sqrt(np.where(variances > 0, variances, np.inf))


def macro_f1(true: np.ndarray, predicted: np.ndarray, hits: np.ndarray) -> np.ndarray:
    """The mean of F1 = 2 · hits / (true + predicted), (…,), from float64 counts (…, classes) as `matthews` has them,
    over the classes that any text is of or said to be; scikit-learn's f1_score with average="macro", zero_division=0.
    """
    either = true + predicted
    f1 = 2 * hits / np.where(either > 0, either, np.inf)
    return f1.sum(axis=-1) / np.maximum(1, (either > 0).sum(axis=-1))


def margins(rewards: Tensor) -> Tensor:
    """Of the `rewards` (pairs, 2) of each pair's chosen and rejected answer, the first minus the second, (pairs,)."""
    return rewards[:, 0] - rewards[:, 1]


def pair_sums(rewards: Tensor) -> dict[str, Tensor]:
    """For `rewards` (pairs, 2) as `margins` has them, summed over the pairs: "accuracy", how many chosen answers have
    the higher one, a tie being half right; "margin"; "chosen_reward" and "rejected_reward"."""
    margin = margins(rewards)
    chosen, rejected = rewards.sum(dim=0)
    return {
        "accuracy": (1 + margin.sign()).sum() / 2,
        "margin": margin.sum(),
        "chosen_reward": chosen,
        "rejected_reward": rejected,
    }
