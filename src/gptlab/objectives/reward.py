"""A reward model: which of two answers is preferred, from the hidden state of each one's last token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from gptlab.data.batch import Batch
from gptlab.model.classifier import Classifier
from gptlab.objectives.base import classified, margins, pair_sums
from gptlab.settings import Section


class RewardSettings(Section):
    """`[objective]` of kind reward. It has nothing to set: which answer is preferred stands in the data."""

    kind: Literal["reward"] = "reward"


class RewardObjective:
    """−ln σ(reward of the chosen answer − reward of the rejected one): the chosen one is preferred with probability
    σ(margin).

    Bradley and Terry, "Rank analysis of incomplete block designs", 1952; Ouyang et al., "Training language models to
    follow instructions with human feedback", 2022 (arXiv 2203.02155), equation 1, of two answers. The same as TRL's
    RewardTrainer (tests/parity/test_trl.py).

    The model is a classifier with one label, its logit the reward. The batch has pairs, and a target at the last token
    of each sequence. Sums, over pairs: "loss" (nats) and `pair_sums`.
    """

    weights: Mapping[str, str] = {}

    def __call__(self, model: Classifier, batch: Batch) -> dict[str, Tensor]:
        rewards = batch_rewards(model, batch)
        return {"loss": -F.logsigmoid(margins(rewards)).sum(), **pair_sums(rewards)}

    def metrics(self, sums: Mapping[str, Any], weight: float) -> dict[str, float]:
        """None: all is a mean."""
        return {}


def batch_rewards(model: Classifier, batch: Batch) -> Tensor:
    """A reward model's rewards of the chosen and the rejected answers, (pairs, 2), float32 at least."""
    logits, _ = classified(model, batch)  # (2 · pairs, 1)
    return logits.view(len(batch), 2)
