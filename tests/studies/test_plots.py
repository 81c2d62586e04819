"""A study's figures: which there are, what they say, and the arithmetic behind their axes and lines."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from gptlab.report.drawing import PAGE_COLOURS
from gptlab.studies.curve_plots import Curve, loss_top, mean_curve
from gptlab.studies.drawing import LOOKS, REST, is_far, looks, measure_words, unit
from gptlab.studies.plan import FIRST_SEED
from gptlab.studies.plots import axis_limits, draw_study_plots
from gptlab.studies.results import read_results
from gptlab.studies.settings import StudySettings

MakeStudy = Callable[..., Path]

FIVE = {
    "baseline": {}, "wider": {"model.n_embd": 256}, "higher-lr": {"optimizer.learning_rate": 1e-3},
}  # fmt: skip


def perplexities(*values: float) -> dict[int, dict[str, float]]:
    return {seed: {"perplexity": value, "seconds": 60.0 + seed} for seed, value in enumerate(values, 1)}


def drawn(folder: Path) -> dict[str, str]:
    return draw_study_plots(read_results(folder), folder / "plots")


def words_of(svg: str) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def published(values: Mapping[str, Any]) -> dict[str, Any]:
    rows = {arm: {"test perplexity": value} for arm, value in values.items()}
    return {"source": "a paper", "metric": "test perplexity", "differs": ["the data"], "values": rows}


def test_the_figures_of_named_arms(tmp_path: Path, make_study: MakeStudy) -> None:
    reported = published({"baseline": 170.0, "wider": 130.0, "higher-lr": "out of memory"})
    scores = {
        "baseline": perplexities(170, 172, 175), "wider": perplexities(140, 141, 143),
        "higher-lr": perplexities(160, 161),
    }  # fmt: skip
    folder = make_study(tmp_path, {"arms": FIVE, "published": reported}, scores)
    found = drawn(folder)
    of_arms = [f"curve-{arm}" for arm in ("wider", "higher-lr", "baseline")]  # the best first
    assert list(found) == ["comparison", "curves", "curves_time", *of_arms, "cost", "memory"]
    files = {f"{name}.{kind}" for name in found for kind in ("svg", "png")}
    assert {path.name for path in (folder / "plots").iterdir()} == files
    told = words_of(found["comparison"])
    marks = {"mean", "95 % interval of the mean", "each seed", "the baseline's mean", "published"}
    assert {"validation perplexity, lower is better", *marks, *FIVE} <= set(told)
    assert {"step", "validation loss (nats)", *FIVE} <= set(words_of(found["curves"]))
    assert "seconds" in words_of(found["curves_time"])
    assert {"wider", "training", "validation"} <= set(words_of(found["curve-wider"]))
    assert "peak memory (GB)" in words_of(found["memory"])
    for svg in found.values():
        assert not [colour for colour in PAGE_COLOURS if colour in svg]


def test_a_study_half_way_and_one_arm_far_off(tmp_path: Path, make_study: MakeStudy) -> None:
    """Beside a diverged arm's 22,000 nothing could be told apart: it is said, and has no place on the axis."""
    names = ("a", "b", "c", "d", "far", "stopped", "running", "waiting")
    scores: dict[str, Any] = {name: perplexities(100 + 10 * n) for n, name in enumerate(names[:4])}
    scores |= {"far": perplexities(22_000), "stopped": {1: "diverged", 2: "failed"}, "running": {1: "running"}}
    arms = {name: {"training.max_steps": n + 1} for n, name in enumerate(names)}
    reported = published({"a": 100.0, "b": 11.0})
    found = drawn(make_study(tmp_path, {"arms": arms, "seeds": [1, 2], "published": reported}, scores))
    told = words_of(found["comparison"])
    assert "22,000 →" in told
    assert "diverged" in told
    assert told.count("not finished") == 2
    assert "one seed" in told
    assert "published" not in told  # 11 for 110 is another scale
    assert "95 % interval of the mean" not in told
    assert "far" not in words_of(found["cost"])
    assert "curve-running" in found
    assert "curve-waiting" not in found


def test_of_a_study_not_begun_there_is_nothing(tmp_path: Path, make_study: MakeStudy) -> None:
    assert drawn(make_study(tmp_path, {"arms": FIVE}, {})) == {}


def test_a_grid_has_effects_and_its_names_keep_their_points(tmp_path: Path, make_study: MakeStudy) -> None:
    grid: dict[str, list[Any]] = {
        "optimizer.learning_rate": [0.001, 0.0001],
        "training.activation_checkpointing": [True, False],
    }
    scores = {
        f"learning_rate-{rate:g}_activation_checkpointing-{on}": perplexities(100 + 1e4 * rate, 102 + 2e4 * rate + on)
        for rate in grid["optimizer.learning_rate"] for on in (True, False)
    }  # fmt: skip
    folder = make_study(tmp_path, {"grid": grid, "seeds": [1, 2]}, scores)
    found = drawn(folder)
    assert {"importance", *(f"effect-{key}" for key in grid), *(f"curve-{arm}" for arm in scores)} <= set(found)
    assert {path.stem for path in (folder / "plots").glob("*.png")} == set(found)
    assert {"0.0001", "0.001", "a run"} <= set(words_of(found["effect-optimizer.learning_rate"]))
    assert {"True", "False"} <= set(words_of(found["effect-training.activation_checkpointing"]))


def test_a_search_has_its_history_and_a_range_test_its_marks(tmp_path: Path, make_study: MakeStudy) -> None:
    space = {"optimizer.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "model.n_embd": [64, 128]}
    values = {
        f"trial-{n:03}": {"optimizer.learning_rate": 1e-4 * 2**n, "model.n_embd": (64, 128)[n % 2]} for n in range(1, 7)
    }
    scores: dict[str, Any] = {name: perplexities(100 + 5 * n) for n, name in enumerate(values)}
    scores |= {"trial-003": {1: "pruned"}, "trial-004": {1: "diverged"}}
    rates = 1e-6 * 10 ** np.linspace(0, 6, 100)
    losses = 9 - 3 / (1 + 1e-3 / rates) + np.where(rates > 0.1, 40 * (rates - 0.1), 0)
    lines = [
        {"event": "step", "step": n, "loss": loss, "learning_rate": rate, "tokens": n, "seconds": n, "memory_bytes": 1}
        for n, (rate, loss) in enumerate(zip(rates.tolist(), losses.tolist(), strict=True), 1)
    ]
    scores["range-test"] = {FIRST_SEED: {"perplexity": 900.0, "lines": lines}}
    study = {"search": {"trials": 6, "space": space}, "range_test": {}}
    found = drawn(make_study(tmp_path, study, scores, values))
    effects = {"effect-optimizer.learning_rate", "effect-model.n_embd", "importance"}
    assert {"history", "range_test", *effects} == set(found)
    assert {"trial", "a trial", "the best so far", "ended early", "diverged"} <= set(words_of(found["history"]))
    told = words_of(found["range_test"])
    assert {"learning rate", "training loss (nats)", "smoothed"} <= set(told)
    assert any(word.startswith("diverges at 0.1") for word in told)


def test_arms_are_told_apart_and_keep_their_look_while_the_ranking_changes() -> None:
    order = ["base", "d", "b", "c", "a"]
    found = looks(order, "base")
    assert found == looks(order[::-1], "base")
    for part in ("colour", "marker"):
        assert len({getattr(look, part) for look in found.values()}) == 5
    many = looks([f"arm-{n:02}" for n in range(20)], "arm-15")
    told = [arm for arm, look in many.items() if look is not REST]
    assert told == [*(f"arm-{n:02}" for n in range(len(LOOKS))), "arm-15"]


@pytest.mark.parametrize(
    ("metric", "words", "scale"),
    [
        ("accuracy", "test accuracy, higher is better", 1),
        ("seconds", "minutes, lower is better", 60),
        ("memory_bytes", "peak memory (GB), lower is better", 1e9),
        ("bits_per_byte", "test bits per byte, lower is better", 1),
    ],
)
def test_a_metric_in_words(metric: str, words: str, scale: float) -> None:
    study = StudySettings(name="s", recipe="r", metric=metric, on="test", arms={"a": {}})
    assert measure_words(study) == words
    assert measure_words(study, "parameters") == "million parameters"
    assert unit(metric) == scale


def test_far_is_what_would_squeeze_all_others_into_a_point() -> None:
    values = [100.0, 101.0, 102.0, 103.0]
    assert is_far(1000, [*values, 1000], sign=1)
    assert not is_far(1000, [*values, 1000], sign=-1)  # there it is the best
    assert is_far(-1000, [*(-value for value in values), -1000], sign=-1)
    assert not is_far(1000, [100.0, 1000], sign=1)  # of two neither is
    assert not is_far(103, values, sign=1)
    assert not is_far(1, [1.0, 1.0, 1.0, 1.0], sign=1)


@pytest.mark.parametrize("log", [False, True])
def test_an_axis_has_every_value_and_of_intervals_what_leaves_room(log: bool) -> None:
    low, high = axis_limits([100.0, 120.0], [-500.0, 700.0, 125.0], log=log)
    assert low < 100
    assert high > 120
    assert high < 150  # an interval of two seeds is cut
    low, high = axis_limits([100.0, 120.0], [97.0, 123.0], log=log)
    assert low < 97
    assert high > 123
    assert axis_limits([5.0], [], log=log)[0] < 5 < axis_limits([5.0], [], log=log)[1]


def test_the_mean_curve_is_over_what_all_seeds_have() -> None:
    """Of straight lines it is the mean line, whatever the steps at which they were validated."""
    a, b = np.array([0.0, 10, 20, 30]), np.array([5.0, 15, 25])
    curve = mean_curve([(a, 2 * a), (b, 4 * b)])
    assert curve is not None
    assert curve.x.tolist() == [5, 10, 15, 20, 25]
    np.testing.assert_allclose(curve.mean, 3 * curve.x)
    np.testing.assert_allclose(curve.low, 2 * curve.x)
    np.testing.assert_allclose(curve.high, 4 * curve.x)
    alone = mean_curve([(a, a), (b[:1], b[:1])])  # one point is no curve
    assert alone is not None
    assert alone.x.tolist() == a.tolist()
    assert mean_curve([(a, a), (a + 100, a)]) is None
    assert mean_curve([]) is None


def test_losses_are_drawn_up_to_where_most_have_settled() -> None:
    x = np.arange(0, 101.0, 10)
    fresh = 5 + 6 * np.exp(-x / 5)

    def curve(values: np.ndarray) -> Curve:
        return Curve(x, values, values, values)

    top = loss_top([curve(fresh), curve(fresh + 0.2)])
    assert top == pytest.approx(5.2 + 6 * math.exp(-4))  # of the later steps, from the fifteenth on
    diverging = loss_top([curve(fresh), curve(fresh + 0.2), curve(fresh + x)])
    assert diverging is not None
    assert diverging < 7
    assert loss_top([curve(np.full(11, 2.0))]) is None
    assert loss_top([]) is None
