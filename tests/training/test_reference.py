"""Whether a policy begins as its reference: told for every beta, in each precision."""

from __future__ import annotations

import math

import pytest
import torch

from gptlab.device import Precision
from gptlab.errors import TrainingStopped
from gptlab.objectives.dpo import DPOObjective, DPOSettings
from gptlab.training.reference import check_start

FLOAT32, BFLOAT16 = (Precision(str(dtype), dtype, "") for dtype in (torch.float32, torch.bfloat16))
BETAS = (0.001, 0.01, 0.1, 1.0, 5.0)


def check(settings: DPOSettings, nats: float, precision: Precision, tokens: int = 50) -> None:
    """Of a policy to which the chosen answer of each pair is by so many nats likelier than to its reference."""
    margin = settings.beta * nats
    ipo, sigmoid = (nats / tokens - 1 / (2 * settings.beta)) ** 2, math.log1p(math.exp(-margin))
    loss = ipo if settings.loss == "ipo" else sigmoid
    check_start(DPOObjective(settings), {"loss": loss, "margin": margin}, precision)


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
@pytest.mark.parametrize("beta", BETAS)
def test_another_model_is_told_from_rounding(beta: float, loss: str) -> None:
    settings = DPOSettings(beta=beta, loss=loss)  # type: ignore[arg-type]
    for precision, rounding in ((FLOAT32, 2e-3), (BFLOAT16, 0.2)):
        check(settings, rounding, precision)
        for nats in (-2.0, 2.0, math.nan):
            with pytest.raises(TrainingStopped, match="the policy is not the reference"):
                check(settings, nats, precision)


@pytest.mark.parametrize("beta", BETAS)
def test_margins_that_cancel_are_seen_in_the_loss(beta: float) -> None:
    for settings, loss in (
        (DPOSettings(beta=beta, loss="ipo"), 1 / (4 * beta**2) + 1 / beta),
        (DPOSettings(beta=beta), math.log(2) + beta),
    ):
        with pytest.raises(TrainingStopped):
            check_start(DPOObjective(settings), {"loss": loss, "margin": 0.0}, BFLOAT16)


def test_simpo_has_no_reference_to_be_equal_to() -> None:
    check(DPOSettings(beta=2.0, loss="simpo"), 10.0, FLOAT32)
