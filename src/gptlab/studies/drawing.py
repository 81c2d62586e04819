"""What a study's figures share: how an arm looks in all of them, what a measure is called on an axis, and its scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gptlab.report.drawing import (
    AMBER,
    BLUE,
    GREEN,
    INK,
    OLIVE,
    ORANGE,
    PAPER,
    PURPLE,
    SKY,
    SOFT,
    WIDE,
    in_percent,
    open_axes,
)
from gptlab.report.intervals import SHARES
from gptlab.report.table import label
from gptlab.studies.settings import StudySettings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Look:
    """An arm's colour, dash and marker, no two of which are another's."""

    colour: str
    dash: Any
    marker: str


BASELINE, REST = Look(INK, "-", "o"), Look(SOFT, "-", ".")
LOOKS = (
    Look(BLUE, "--", "s"), Look(ORANGE, "-.", "^"), Look(GREEN, (0, (5, 1)), "D"), Look(PURPLE, "-", "v"),
    Look(AMBER, "--", "P"), Look(SKY, "-.", "X"), Look(OLIVE, (0, (5, 1)), "<"),
)  # fmt: skip
"""Of the arms that are told apart beside the baseline; of more arms the rest are grey."""

OTHERS = "the other arms"

MEASURES: dict[str, tuple[str, float]] = {
    "loss": ("loss (nats)", 1),
    "cross_entropy": ("cross-entropy (nats)", 1),
    "matthews": ("Matthews correlation", 1),
    "f1": ("F1, mean of the classes", 1),
    "reward": ("mean reward of the answers", 1),
    "training_loss": ("training loss, mean of the run (nats)", 1),
    "last_training_loss": ("training loss, last logged (nats)", 1),
    "seconds": ("minutes", 60),
    "memory_bytes": ("peak memory (GB)", 1e9),
    "tokens": ("million tokens seen", 1e6),
    "parameters": ("million parameters", 1e6),
    "trainable": ("million trained parameters", 1e6),
}
"""Measure → what it is called on an axis, and how much of it one unit there is; of the others the name says it."""

ON_A_SET = (
    "loss", "cross_entropy", "perplexity", "perplexity_per_word", "bits_per_byte", "accuracy", "matthews", "f1",
    "margin",
)  # fmt: skip
"""Measures of the validation or the test set: an axis says of which."""

WIDE_SPAN = 10
"""Positive values whose largest is so many times the least are drawn on a logarithmic axis."""

FAR = 10
"""What is so many times farther from the best than three quarters of all are, as a run that diverged may be, has no
place on an axis: the others would lie in one point."""

TIMES = (("hours", 3600), ("minutes", 60), ("seconds", 1))

LONGEST_NAME = 36


def looks(order: Sequence[str], baseline: str) -> dict[str, Look]:
    """How each arm looks; `order`: the arms, the best first. The looks go by name, so that an arm keeps its own while
    the ranking changes, where they are enough for all."""
    told_apart = sorted([arm for arm in order if arm != baseline][: len(LOOKS)])
    named = dict(zip(told_apart, LOOKS, strict=False))
    return {arm: BASELINE if arm == baseline else named.get(arm, REST) for arm in order}


def unit(measure: str) -> float:
    """How much of a measure one unit on an axis is."""
    return MEASURES.get(measure, ("", 1.0))[1]


def named(measure: str) -> str:
    """What a measure is called, with its unit."""
    return MEASURES.get(measure, (label(measure), 1.0))[0]


def measure_words(study: StudySettings, measure: str | None = None, join: str = ", ") -> str:
    """The metric (or another measure) in words: what, of which set, in which unit; of the metric, which is better,
    behind `join`."""
    measure = measure or study.metric
    on = f"{study.on} " if measure in ON_A_SET else ""
    better = f"{join}{'lower' if study.less_is_better else 'higher'} is better" if measure == study.metric else ""
    return f"{on}{named(measure)}{better}"


def is_far(value: float, values: Sequence[float], *, sign: int) -> bool:
    """Whether `value` is far worse than most of (n,) values, of which it may be one; sign: the metric's."""
    worse = np.sort(sign * np.asarray(values, dtype=np.float64))
    return bool(sign * value - worse[0] > FAR * (np.quantile(worse, 0.75) - worse[0]) > 0)


def scale(axis: Axis, measure: str, values: Sequence[float]) -> None:
    """Shares in per cent, and what spans far on a logarithmic axis."""
    if measure in SHARES:
        in_percent(axis)
    elif spans_far(values):
        log_scale(axis, values)


def spans_far(values: Sequence[float]) -> bool:
    """Whether values are better seen by their ratios."""
    return len(values) > 1 and min(values) > 0 and max(values) >= WIDE_SPAN * min(values)


def log_scale(axis: Axis, values: Sequence[float]) -> None:
    """A logarithmic axis whose marks are plain numbers: 0.001, 0.01 and, where there is room, 0.002 and 0.005."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})  # type: ignore[attr-defined]
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(values) < WIDE_SPAN**1.5 * min(values) else (1,)))
    axis.set_major_formatter("{x:,g}")
    axis.set_minor_formatter(NullFormatter())


def time_axis(axes: Axes, seconds: float) -> float:
    """Makes the horizontal axis one of time that is `seconds` long: in seconds, minutes or hours. Returns how many
    seconds its unit has."""
    from matplotlib.ticker import MaxNLocator

    words, length = next((words, n) for words, n in TIMES if seconds >= 3 * n or n == 1)
    axes.set_xlabel(words)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter("{x:g}")
    return length


def rows_of(words: str, names: Sequence[str]) -> tuple[Figure, Axes]:
    """An empty figure with a row for each name, the first on top, over what `words` say."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDE[0], 1.5 + 0.34 * len(names)), facecolor=PAPER, layout="constrained")
    axes = figure.add_subplot(facecolor=PAPER)
    open_axes(axes)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(words)
    axes.set_yticks(range(len(names)), [shortened(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    return figure, axes


def shortened(name: str) -> str:
    """A long name without its middle."""
    half = LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f"{name[:half]}…{name[-half:]}"


def arm_legend(figure: Figure, look_of: Mapping[str, Look], *, beside: bool = False) -> None:
    """The arms that are told apart, below the figure with their dashes, or `beside` it without."""
    from matplotlib.lines import Line2D

    told = {arm: look for arm, look in look_of.items() if look is not REST}
    if len(told) < len(look_of):
        told[OTHERS] = REST
    handles = [
        Line2D([], [], color=look.colour, linestyle="none" if beside else look.dash, marker=look.marker, markersize=5,
               label=shortened(arm))
        for arm, look in told.items()
    ]  # fmt: skip
    if beside:
        figure.legend(handles=handles, loc="outside right upper", handlelength=1)
        return
    # A letter takes about 0.078 inches, and a line with its gaps 0.7.
    width = 0.7 + 0.078 * max(len(shortened(arm)) for arm in told)
    columns = max(1, min(5, int(figure.get_figwidth() / width)))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=3)
