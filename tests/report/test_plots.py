"""The curves: what is drawn, from which lines, and that the drawing follows the page's colours."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from gptlab.report.drawing import PAGE_COLOURS, points, smooth
from gptlab.report.plots import draw_plots

STEPS = [
    {"event": "step", "step": n, "loss": 3 + 7 / n, "learning_rate": 1e-3, "gradient_norm": 1.0}
    | {"tokens_per_second": 5000.0}
    for n in range(1, 21)
]
VALIDATION = [{"event": "validation", "step": n, "loss": 4.0} for n in (10, 20)]


def words_of(svg: str) -> list[str]:
    root = ElementTree.fromstring(svg)
    return [node.text or "" for node in root.iter("{http://www.w3.org/2000/svg}text")]


def test_the_figures_say_what_they_show(tmp_path: Path) -> None:
    drawn = draw_plots([*STEPS, *VALIDATION], tmp_path / "plots", unigram_perplexity=400.0)
    assert list(drawn) == ["loss", "learning_rate", "gradient_norm", "throughput"]
    names = {f"{name}.{kind}" for name in drawn for kind in ("svg", "png")}
    assert {path.name for path in (tmp_path / "plots").iterdir()} == names
    words = words_of(drawn["loss"])
    for told in ("step", "loss (nats per token)", "perplexity", "training", "validation, whole", "unigram model"):
        assert told in words
    assert "validation, a sample" not in words  # there was none
    assert {"1,000", "50"} <= set(words)  # perplexities, between e^3 and e^10
    assert "tokens per second" in words_of(drawn["throughput"])


def test_of_few_points_no_mean_is_drawn_and_of_many_one(tmp_path: Path) -> None:
    many = [{"event": "step", "step": n, "loss": 3.0} for n in range(1, 201)]
    told = [
        [word for word in words_of(draw_plots(lines, tmp_path)["loss"]) if "mean" in word] for lines in (STEPS, many)
    ]
    assert told == [[], ["training, mean of 5 points"]]


def test_rewards_are_drawn_with_their_band(tmp_path: Path) -> None:
    rewards = [
        {"event": "reward", "step": n, "mean": n / 10, "low": n / 10 - 1, "high": n / 10 + 1} for n in (0, 10, 20)
    ]
    drawn = draw_plots([*STEPS, *rewards], tmp_path, unit="answer token")
    assert list(drawn) == ["loss", "reward", "learning_rate", "gradient_norm", "throughput"]
    words = words_of(drawn["reward"])
    assert {"mean reward", "mean", "95 % interval"} <= set(words)
    assert {"−1", "3"} <= {word.removesuffix(".0") for word in words}  # the band is inside: from -1 to 3
    assert "loss (nats per answer token)" in words_of(drawn["loss"])
    assert "answer tokens per second" in words_of(drawn["throughput"])
    assert "reward" not in draw_plots([*STEPS, rewards[0]], tmp_path)


def test_the_files_stand_on_white_and_the_page_has_its_own_colours(tmp_path: Path) -> None:
    inline = draw_plots(STEPS, tmp_path)["loss"]
    assert not [colour for colour in PAGE_COLOURS if colour in inline]
    assert "currentColor" in inline
    assert "#ffffff" in (tmp_path / "loss.svg").read_text(encoding="utf-8")
    assert ElementTree.parse(tmp_path / "loss.svg").getroot().attrib["width"].endswith("pt")


def test_what_has_no_two_points_is_left_out(tmp_path: Path) -> None:
    assert draw_plots([], tmp_path) == {}
    assert draw_plots(STEPS[:1], tmp_path) == {}
    assert list(draw_plots([{"event": "step", "step": n, "loss": 1.0} for n in (1, 2)], tmp_path)) == ["loss"]


def test_drawing_leaves_matplotlib_as_it_was(tmp_path: Path) -> None:
    """No global figures, no display, no settings changed: it may be called in anybody's notebook."""
    code = f"""
import sys, pathlib, matplotlib
from gptlab.report.drawing import STYLE
from gptlab.report.plots import draw_plots
before = [matplotlib.rcParams[key] for key in STYLE]
draw_plots({STEPS!r}, pathlib.Path({str(tmp_path)!r}))
assert [matplotlib.rcParams[key] for key in STYLE] == before
assert "matplotlib.pyplot" not in sys.modules
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_points_leave_out_what_is_not_finite_or_not_there() -> None:
    lines = [
        {"event": "step", "step": 1, "loss": 2.0}, {"event": "step", "step": 2, "loss": math.nan},
        {"event": "step", "step": 3}, {"event": "validation", "step": 4, "loss": 1.0},
    ]  # fmt: skip
    steps, losses = points(lines, "step", "loss")
    assert steps.tolist() == [1.0]
    assert losses.tolist() == [2.0]


@pytest.mark.parametrize("window", [1, 3, 7])
def test_smoothing_is_the_mean_of_each_full_window(window: int) -> None:
    values = np.random.default_rng(0).normal(size=50)
    expected = [values[place : place + window].mean() for place in range(50 - window + 1)]
    np.testing.assert_allclose(smooth(values, window), expected, atol=1e-12)


def test_a_straight_line_is_smoothed_to_itself() -> None:
    """Nothing lags: an exponential mean would draw a falling loss above where it is."""
    line = np.linspace(9, 3, 40)
    np.testing.assert_allclose(smooth(line, 11), line[5:-5])
