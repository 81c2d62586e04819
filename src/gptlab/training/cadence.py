"""When a run validates, samples and saves: functions of the step alone, so that a continued run does the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from gptlab.settings import Section

EVALUATIONS = 20
"""So many evaluations a run, where a recipe names no cadence."""

CLASS_METRICS = ("accuracy", "matthews", "f1")
"""What `best_by` may follow of a classifier; more is better."""

SAMPLINGS = 5
"""So many times a run samples are written, where a recipe names no cadence."""


class ValidationSettings(Section):
    """`[validation]`: the same rows each time. Every `every_steps` (0: up to twenty times a run) the loss on
    `sampled_rows` fixed rows; at the end of an epoch, and of the run, on the whole set. `best` follows the loss named
    by `best_by`; or the mean reward of answers (`samples.reward`); or what a classifier scores, always on the whole
    set: accuracy, Matthews' correlation, macro F1. Where it has not improved for `patience` evaluations, an alarm; with
    `stop`, the end."""

    every_steps: int = Field(0, ge=0)
    sampled_rows: int = Field(128, ge=1)
    best_by: Literal["validation", "validation_sampled", "reward", "accuracy", "matthews", "f1"] = "validation_sampled"
    patience: int = Field(5, ge=1)
    stop: bool = False


class CheckpointSettings(Section):
    """`[checkpoints]`: every `every_steps` (0: at every evaluation), and at least every ten minutes. The newest
    `keep` and the best stay. `mirror`: a second place for each, for instance a mounted drive."""

    every_steps: int = Field(0, ge=0)
    keep: int = Field(2, ge=1)
    mirror: str | None = None


@dataclass(frozen=True)
class Cadence:
    """What is due after which step. `total` is the run's length in steps, None as long as it is not known."""

    evaluate_every: int
    sample_every: int
    save_every: int
    epoch_steps: int
    evaluation_cost: float = 0.0
    """What an evaluation costs, in steps. Where no cadence is named they together cost a tenth of a run at most."""

    def evaluation(self, step: int, total: int | None) -> bool:
        return _turn(step, total, self.evaluate_every, self._evaluations(total))

    def _evaluations(self, total: int | None) -> int:
        affordable = total / (10 * self.evaluation_cost) if total and self.evaluation_cost else EVALUATIONS
        return max(1, min(EVALUATIONS, int(affordable)))

    def whole_validation(self, step: int, total: int | None) -> bool:
        """At the end of the run and of an epoch; where epochs are very short, of some twenty of them."""
        if total is None:
            return False
        before = max(0, step - self.epoch_steps)
        passed = EVALUATIONS * step // total > EVALUATIONS * before // total
        return step >= total or (step % self.epoch_steps == 0 and passed)

    def samples(self, step: int, total: int | None) -> bool:
        return _turn(step, total, self.sample_every, SAMPLINGS)

    def save(self, step: int, total: int | None) -> bool:
        return _turn(step, total, self.save_every or self.evaluate_every, self._evaluations(total))


def _turn(step: int, total: int | None, every: int, times: int) -> bool:
    """Every `every` steps, or `times` a run where `every` is 0; at the run's end in any case."""
    if total is not None and step >= total:
        return True
    if every:
        return step % every == 0
    return total is not None and times * step // total > times * (step - 1) // total
