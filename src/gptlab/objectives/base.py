"""The contract between the training loop and what is learned.

    sums = objective(model, batch)      # a dict of scalar tensors, each a SUM over the batch

"loss" is descended, and is a sum over the batch's `weight` items (supervised tokens, texts, or pairs). Sums,
never means: dividing is the loop's, once, by the weight of the whole step over all its micro-batches. So the
cut into micro-batches changes no number; a mean of means would.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from gptlab.data.batch import Batch


class Objective(Protocol):
    """An objective is immutable: what it needs it was built with."""

    @property
    def weights(self) -> Mapping[str, str]:
        """Sums that are over something else than the batch's weight: key → the key that counts it."""
        ...

    def __call__(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """The sums of this batch; "loss" among them."""
        ...

    def metrics(self, sums: Mapping[str, float], weight: float) -> dict[str, float]:
        """What is reported beside the means: what is no mean of its items (a perplexity, a correlation)."""
        ...


def means(objective: Objective, sums: Mapping[str, float], weight: float) -> dict[str, float]:
    """Each sum divided by its own weight; a key that only counts is left out."""
    counting = set(objective.weights.values())
    return {
        key: value / (sums[objective.weights[key]] if key in objective.weights else weight)
        for key, value in sums.items()
        if key not in counting
    }


def exp(nats: float) -> float:
    """e to the `nats`, infinite where a float cannot hold it: a perplexity from a mean."""
    return math.exp(nats) if nats < 700 else math.inf
