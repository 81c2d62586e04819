"""The figure of a learning rate range test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gptlab.report.drawing import BLUE, GREEN, ORANGE, WIDE, axes_of, loss_key
from gptlab.studies.range_test import RangeTest, range_test
from gptlab.studies.results import Results, RunResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ABOVE = 0.6
"""How far above where it began the loss is drawn, as a part of what was learned: beyond, it only says that it
diverges."""


def range_test_plot(results: Results) -> Figure | None:
    """The first range test of the study: the loss over the rate, the suggested rate and where it diverges."""
    tests = ((result, range_test(result)) for result in results.runs)
    result, test = next(((result, test) for result, test in tests if test), (None, None))
    if result is None or test is None:
        return None
    figure, axes = axes_of("training loss (nats)", size=(WIDE[0], 3.8), under="learning rate")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    _draw(axes, result, test)
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def _draw(axes: Axes, result: RunResult, test: RangeTest) -> None:
    key = loss_key(result.metrics)
    steps = [line for line in result.metrics if line["event"] == "step"]
    axes.plot(
        [line["learning_rate"] for line in steps], [line[key] for line in steps], color=BLUE, linewidth=0.8, alpha=0.3
    )
    axes.plot(test.rates, test.losses, color=BLUE, label="smoothed")
    marks = (test.suggested, GREEN, "--", "suggested"), (test.diverges_at, ORANGE, ":", "diverges at")
    for rate, colour, dash, words in marks:
        if rate is not None:
            axes.axvline(rate, color=colour, linestyle=dash, label=f"{words} {rate:.2g}")
    first, least = float(test.losses[0]), float(np.min(test.losses))
    learned = first - least or 1.0
    axes.set_ylim(least - 0.1 * learned, min(float(np.max(test.losses)), first + ABOVE * learned) + 0.1 * learned)
