"""Next-token prediction: pretraining, and fine-tuning on rows whose targets say what is learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from gptlab.data.batch import Batch
from gptlab.model.gpt import GPT
from gptlab.model.head import summed_cross_entropy
from gptlab.objectives.base import exp
from gptlab.settings import Section


class LanguageSettings(Section):
    """`[objective]` of kind language. It has nothing to set: what is learned stands in the rows' targets."""

    kind: Literal["language"] = "language"


class LanguageObjective:
    """−log p(target) over the supervised tokens. Sums: "loss" (nats), over supervised tokens."""

    weights: Mapping[str, str] = {}

    def __call__(self, model: GPT, batch: Batch) -> dict[str, Tensor]:
        hidden = model(batch.tokens)
        return {"loss": summed_cross_entropy(hidden, model.head_weight, batch.targets, batch.positions)}

    def metrics(self, sums: Mapping[str, float], weight: float) -> dict[str, float]:
        """perplexity = exp(mean loss); infinite where that overflows a float."""
        return {"perplexity": exp(sums["loss"] / weight)}
