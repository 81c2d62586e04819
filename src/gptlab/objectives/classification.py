"""Classification: the class of a text, from the hidden state of its last token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from gptlab.data.batch import Batch
from gptlab.model.classifier import Classifier
from gptlab.objectives.base import class_counts, class_metrics, classified
from gptlab.settings import Section


class ClassificationSettings(Section):
    """`[objective]` of kind classification. It has nothing to set: the classes stand in `[data]`."""

    kind: Literal["classification"] = "classification"


class ClassificationObjective:
    """−log p(class) of each text, one of `classes`. Sums, over texts: "loss" (nats) and `class_counts`."""

    weights: Mapping[str, str] = {}

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def __call__(self, model: Classifier, batch: Batch) -> dict[str, Tensor]:
        logits, classes = classified(model, batch)
        loss = F.cross_entropy(logits, classes, reduction="sum")
        return {"loss": loss, **class_counts(logits, classes, self.classes)}

    def metrics(self, sums: Mapping[str, Any], weight: float) -> dict[str, float]:
        """matthews: Matthews' correlation. f1: the mean over the classes."""
        return class_metrics(sums)
