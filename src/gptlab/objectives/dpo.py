"""Direct preference optimization: of two answers the chosen one becomes likelier than the rejected one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from gptlab.data.batch import IGNORE, Batch
from gptlab.model.gpt import GPT
from gptlab.model.head import target_log_probs
from gptlab.model.rnn import RNN
from gptlab.objectives.base import margins, pair_sums
from gptlab.settings import Section

GAMMA = 0.5
"""SimPO's margin where none is given."""


class DPOSettings(Section):
    """`[objective]` of kind dpo.

    beta:   how strongly the policy is held to the reference: the larger, the less it drifts
    loss:   "sigmoid", DPO's own; "ipo", which wants the log-ratios to differ by 1/(2 · beta) a token and no more;
            "simpo", which needs no reference, and a beta of 2 or more
    label_smoothing: of sigmoid: the share of pairs that may be the wrong way round
    gamma:  of simpo: the margin that is wanted between the two rewards
    """

    kind: Literal["dpo"] = "dpo"
    beta: float = Field(0.1, gt=0)
    loss: Literal["sigmoid", "ipo", "simpo"] = "sigmoid"
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    gamma: float = Field(GAMMA, ge=0)

    @model_validator(mode="after")
    def _fits_the_loss(self) -> DPOSettings:
        if self.label_smoothing and self.loss != "sigmoid":
            raise ValueError(f"label_smoothing = {self.label_smoothing}: is for loss = sigmoid, not for {self.loss}")
        if self.gamma != GAMMA and self.loss != "simpo":  # a run's own recipe names the default too
            raise ValueError(f"gamma = {self.gamma}: is for loss = simpo, not for {self.loss}")
        return self

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with what the model said before."""
        return self.loss != "simpo"


class DPOObjective:
    """The loss of each pair, from the rewards of its answers y, which have |y| tokens. An answer's reward is
    beta · (log π(y) − log reference(y)), of simpo beta/|y| · log π(y); the margin is the chosen one's minus the
    rejected one's.

    sigmoid: −ln σ(margin). Rafailov et al., "Direct Preference Optimization: Your Language Model is Secretly a Reward
        Model", 2023 (arXiv 2305.18290), equation 7. With label_smoothing ε it is −(1 − ε) · ln σ(margin) −
        ε · ln σ(−margin): Mitchell, "A note on DPO with noisy preferences & relationship to IPO", 2023
        (ericmitchell.ai/cdpo.pdf), equation 3; in TRL 1.16 the loss "aot" of one pair at a time.
    ipo: (h − 1/(2 · beta))², h being the difference of the log-ratios *averaged over an answer's tokens*. Azar et al.,
        "A General Theoretical Paradigm to Understand Learning from Human Preferences", 2023 (arXiv 2310.12036),
        equation 17, has their sums, and τ for beta. TRL averages (trl/trainer/dpo_trainer.py), with which, as the
        paper's authors told it, the paper's results were made, and one beta suits answers of any length.
    simpo: −ln σ(margin − gamma). Meng, Xia and Chen, "SimPO: Simple Preference Optimization with a Reference-Free
        Reward", 2024 (arXiv 2405.14734), equation 6.

    Loss and gradients are those of TRL's DPOTrainer and CPOTrainer (tests/parity/test_trl.py).

    The batch has pairs, and targets at all tokens of the answers; but for simpo `values["reference"]` (pairs, 2), what
    `batch_log_probs` of the reference are: ValueError where they are missing. Sums:

    "loss" and `pair_sums` of the rewards, over pairs
    "chosen_log_prob", "rejected_log_prob": log π, over the "chosen_tokens" and the "rejected_tokens"
    "kl": log reference − log π of both answers, over the "answer_tokens": KL(reference ‖ π), nats a token, estimated as
        if the reference had written the answers, so that it may be negative; not of simpo
    """

    weights: Mapping[str, str] = {
        "chosen_log_prob": "chosen_tokens",
        "rejected_log_prob": "rejected_tokens",
        "kl": "answer_tokens",
    }

    def __init__(self, settings: DPOSettings) -> None:
        self.settings = settings

    @property
    def loss_at_reference(self) -> float | None:
        """The loss of a policy that equals the reference, whatever the pairs; None where there is none."""
        fixed = {"sigmoid": math.log(2), "ipo": 1 / (4 * self.settings.beta**2)}
        return fixed.get(self.settings.loss)

    def __call__(self, model: GPT | RNN, batch: Batch) -> dict[str, Tensor]:
        log_probs, tokens = batch_log_probs(model, batch)
        drift: dict[str, Tensor] = {}
        if self.settings.needs_reference:
            log_ratios = log_probs - _reference(batch)
            rewards = self.settings.beta * log_ratios
            drift = {"kl": -log_ratios.sum(), "answer_tokens": tokens.sum()}
        else:
            rewards = self.settings.beta * log_probs / tokens
        (chosen, rejected), (chosen_tokens, rejected_tokens) = log_probs.sum(dim=0), tokens.sum(dim=0)
        return {
            "loss": self._losses(rewards, tokens).sum(),
            **pair_sums(rewards),
            "chosen_log_prob": chosen,
            "rejected_log_prob": rejected,
            "chosen_tokens": chosen_tokens,
            "rejected_tokens": rejected_tokens,
            **drift,
        }

    def _losses(self, rewards: Tensor, tokens: Tensor) -> Tensor:
        """The loss of each pair, (pairs,), from the rewards and the lengths of its answers, (pairs, 2)."""
        beta, smoothing = self.settings.beta, self.settings.label_smoothing
        if self.settings.loss == "ipo":
            return (margins(rewards / tokens) / beta - 1 / (2 * beta)) ** 2
        if self.settings.loss == "simpo":
            return -F.logsigmoid(margins(rewards) - self.settings.gamma)
        margin = margins(rewards)
        return -(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)

    def metrics(self, sums: Mapping[str, Any], weight: float) -> dict[str, float]:
        """None: all is a mean."""
        return {}


def batch_log_probs(model: GPT | RNN, batch: Batch) -> tuple[Tensor, Tensor]:
    """log p of the chosen and the rejected answers, (pairs, 2), float32 at least, and their tokens, (pairs, 2): of all
    answers in one forward pass."""
    log_probs = target_log_probs(model(batch.tokens), model.head_weight, batch.targets, batch.positions)
    sequences, time = batch.targets.shape
    summed = log_probs.new_zeros(sequences).index_add(0, batch.positions // time, log_probs)
    tokens = (batch.targets != IGNORE).sum(dim=1)
    return summed.view(-1, 2), tokens.view(-1, 2)


def _reference(batch: Batch) -> Tensor:
    try:
        return batch.values["reference"]
    except KeyError:
        raise ValueError(
            'the pairs have no values["reference"], which are what the reference\'s batch_log_probs of them are, once '
            "computed; only loss = simpo needs none"
        ) from None
