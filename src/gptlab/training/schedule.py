"""How the learning rate goes over a run: a factor between 0 and 1 on each group's own rate."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from gptlab.settings import Section


class ScheduleSettings(Section):
    """`[schedule]`. After `warmup_steps` of linear rise: constant; linear or cosine fall to `final_fraction`
    of the rate over the rest; or `wsd` (warm-up, stable, decay: Hu et al., "MiniCPM", 2024, section 4), which
    holds the rate and falls linearly over the last `decay_fraction` of the steps. `range`, without a warm-up, tries
    rates out: from `initial_fraction` of the rate up to it, by the same factor at every step (the learning rate range
    test of Smith, "Cyclical learning rates for training neural networks", 2017, section 3.3, on a log scale)."""

    kind: Literal["constant", "linear", "cosine", "wsd", "range"] = "cosine"
    warmup_steps: int = Field(100, ge=0)
    final_fraction: float = Field(0.1, ge=0, le=1)
    decay_fraction: float = Field(0.4, gt=0, le=1)
    initial_fraction: float = Field(1e-6, gt=0, lt=1)


def rate_factor(settings: ScheduleSettings, step: int, total_steps: int | None) -> float:
    """The factor for step `step` (from 0) of `total_steps`; None while a length in minutes is not yet steps.

    The warm-up takes at most half of the run, so that a short run also reaches its rate.
    """
    if settings.kind == "range":
        assert total_steps is not None, "a recipe has no range over a length in minutes"
        return settings.initial_fraction ** (1 - step / max(1, total_steps - 1))
    warmup = settings.warmup_steps if total_steps is None else min(settings.warmup_steps, total_steps // 2)
    if step < warmup:
        return (step + 1) / warmup
    if total_steps is None or settings.kind == "constant":
        return 1.0
    fall = settings.decay_fraction if settings.kind == "wsd" else 1.0
    begin = max(warmup, total_steps - round(fall * total_steps))
    # The last step is one before the end, so that no step is spent at a rate of zero.
    progress = min(1.0, max(0.0, (step - begin) / max(1, total_steps - begin)))
    shape = (1 + math.cos(math.pi * progress)) / 2 if settings.kind == "cosine" else 1 - progress
    return settings.final_fraction + (1 - settings.final_fraction) * shape
