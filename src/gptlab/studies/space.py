"""What a search may draw: a key's list of values, or range, and the distribution of Optuna's that stands for it."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gptlab.studies.settings import Range

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Choices = Range | list[Any]


@contextmanager
def quietly() -> Iterator[None]:
    """Without warnings: of what Optuna 4 called experimental, and of a range whose end is no multiple of its step."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def distributions(space: Mapping[str, Choices]) -> dict[str, BaseDistribution]:
    """Optuna's distribution of each key: a list's values are categories; a range of whole numbers gives such."""
    with quietly():
        return {key: _distribution(choices) for key, choices in space.items()}


def _distribution(choices: Choices) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(choices, list):
        return CategoricalDistribution([_encoded(value) for value in choices])
    if _is_whole(choices):
        return IntDistribution(int(choices.low), int(choices.high), log=choices.log, step=int(choices.step or 1))
    return FloatDistribution(choices.low, choices.high, log=choices.log, step=choices.step)


def _is_whole(choices: Range) -> bool:
    return all(isinstance(value, int) for value in (choices.low, choices.high, choices.step or 1))


def encoded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as Optuna can keep them: lists as JSON."""
    return {key: _encoded(value) for key, value in values.items()}


def _encoded(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else json.dumps(value)


def decoded(space: Mapping[str, Choices], params: Mapping[str, Any]) -> dict[str, Any]:
    """The values that Optuna's stand for, in the order of the space."""
    return {key: _decoded(choices, params[key]) for key, choices in space.items()}


def _decoded(choices: Choices, param: Any) -> Any:
    return next(value for value in choices if _encoded(value) == param) if isinstance(choices, list) else param


def lies_in(space: Mapping[str, Choices], values: Mapping[str, Any]) -> bool:
    """Whether every key has a value, and one that could be drawn."""
    return all(key in values and _could_be(choices, values[key]) for key, choices in space.items())


def _could_be(choices: Choices, value: Any) -> bool:
    if isinstance(choices, list):
        return value in choices
    if isinstance(value, bool) or not isinstance(value, int | float) or not choices.low <= value <= choices.high:
        return False
    step = choices.step or (1 if _is_whole(choices) else None)
    return step is None or abs((steps := (value - choices.low) / step) - round(steps)) < 1e-8


def on_its_scale(choices: Choices) -> Choices:
    """A range whose ends, where it is searched on a log scale, are logarithms."""
    if isinstance(choices, Range) and choices.log:
        return Range(low=math.log(choices.low), high=math.log(choices.high))
    return choices


def measured(choices: Choices, value: Any) -> Any:
    """A value on the scale of `on_its_scale`."""
    return math.log(value) if isinstance(choices, Range) and choices.log else value
