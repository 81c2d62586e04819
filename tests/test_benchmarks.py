"""The benchmarks: their harness on variants whose times and memory are known, and each of them with --quick."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

TOY = """
import os, sys, time
from common import Case, Variant, ours, parser, run
from worker import Work

def sleeping(milliseconds, notes="", megabytes=0):
    held = b"x" * (megabytes * 10**6)
    def step():
        time.sleep(milliseconds / 1000)
        if notes:
            with open(notes, "a") as file:
                print(milliseconds, file=file)
    facts = lambda: {"spins": os.environ.get("GOMP_SPINCOUNT", "default"), "threads": os.environ["OMP_NUM_THREADS"]}
    return Work(step, amount=milliseconds, facts=facts)

def failing():
    raise ValueError("of no use")

def dying():
    os._exit(3)

if __name__ == "__main__":
    made = parser("toy")
    made.add_argument("--notes")
    options = made.parse_args()
    slow = {"milliseconds": 40, "notes": options.notes}
    variants = [
        Variant("slow", sleeping, slow), Variant("large", sleeping, {"milliseconds": 20, "megabytes": 200}),
        ours("fast", sleeping, slow | {"milliseconds": 10}), Variant("absent", failing, needs=("no_such_module",)),
        Variant("failing", failing), Variant("dying", dying), Variant("unknown", failing, left_out="not here"),
    ]
    run([Case("toy", "ms", variants, ("slow", "ours*", "nobody"), rounds=3, steps=2)], options, "toys")
"""


def result_of(script: Path, *words: str, out: Path) -> dict[str, Any]:
    """What the benchmark writes; its own folder is where its modules are found."""
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS)}
    environment.pop("GOMP_SPINCOUNT", None)
    subprocess.run(
        [sys.executable, str(script), "--out", str(out), *words], check=True, env=environment, capture_output=True
    )
    result: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return result


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str]]:
    folder = tmp_path_factory.mktemp("toy")
    (folder / "toy.py").write_text(TOY, encoding="utf-8")
    result = result_of(folder / "toy.py", "--notes", str(folder / "notes"), "--threads", "1", out=folder / "toy.json")
    return result, (folder / "notes").read_text(encoding="utf-8").split()


def test_a_ratio_is_how_many_times_as_fast_a_unit_of_work_is_done(toy: Any) -> None:
    variants = toy[0]["cases"]["toy"]["variants"]
    assert variants["slow"]["times_as_fast"] == {"slow": 1, "ours fast": pytest.approx(1, rel=0.3)}
    assert variants["slow"]["median"] == pytest.approx(1, rel=0.3)  # a step of 40 ms is 40 units
    assert len(variants["slow"]["readings"]) == 3
    assert variants["slow"]["least"] <= variants["slow"]["median"] <= variants["slow"]["most"]


def test_variants_take_turns(toy: Any) -> None:
    warm_up, rounds = ["40"] * 2 + ["10"] * 2, ["40", "40", "10", "10"] * 3
    assert toy[1] == warm_up + rounds


def test_each_has_its_own_memory_and_environment_and_the_same_threads(toy: Any) -> None:
    variants = toy[0]["cases"]["toy"]["variants"]
    assert 150 < variants["large"]["peak_megabytes"] - variants["slow"]["peak_megabytes"] < 250
    assert variants["slow"]["environment"] == {}
    assert variants["slow"]["spins"] == "default"
    assert variants["ours fast"]["spins"] == variants["ours fast"]["environment"]["GOMP_SPINCOUNT"]
    assert {each["threads"] for each in variants.values()} == {"1"}


def test_who_cannot_take_part_is_left_out_and_why_is_said(toy: Any) -> None:
    case = toy[0]["cases"]["toy"]
    assert list(case["variants"]) == ["slow", "large", "ours fast"]
    assert case["left_out"] == {
        "absent": "not installed: no_such_module",
        "failing": "ValueError: of no use",
        "dying": "its process ended with 3 (-9: the memory was not enough)",
        "unknown": "not here",
    }


def test_a_result_says_where_and_with_what_it_was_made(toy: Any) -> None:
    result = toy[0]
    assert result["machine"]["device"][0].startswith("CPU, ")
    assert result["machine"]["threads"] == 1
    assert result["versions"]["torch"]
    assert "toy.py" in result["command"]
    assert {"what", "date", "commit", "environment"} <= result.keys()


@pytest.mark.parametrize("name", ["generation", "head", "memory", "start", "text", "training"])
def test_help_names_the_options_that_all_have(name: str) -> None:
    words = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--help"]
    shown = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    assert {"--quick", "--out", "--only", "--cases", "--threads"} <= set(shown.replace("[", " ").split())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "only", "facts"),
    [
        ("training", ["ours"], set()),
        ("head", ["ours"], {"loss_difference", "hidden_gradient_difference", "weight_gradient_difference"}),
        ("generation", ["ours"], set()),
        ("memory", ["ours"], {"predicted_megabytes", "error", "grown_error"}),
        ("start", ["gptlab"], set()),
        ("text", ["ours"], {"cpu_milliseconds_per_megabyte"}),
    ],
)
def test_quick(name: str, only: list[str], facts: set[str], tmp_path: Path) -> None:
    result = result_of(BENCHMARKS / f"{name}.py", "--quick", "--only", *only, out=tmp_path / "result.json")
    assert result["quick"]
    measured = [case["variants"] for case in result["cases"].values() if case["variants"]]
    assert measured
    for case in result["cases"].values():
        assert not case["left_out"]
    for each in (each for variants in measured for each in variants.values()):
        assert {"median", "least", "most", "peak_megabytes", "times_as_fast", "readings"} | facts <= each.keys()
        assert each["median"] > 0


@pytest.mark.slow
def test_generation_shows_what_precision_costs(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("So it goes, and so it goes on. " * 20, encoding="utf-8")
    code = "from generation import *; write_model(TINY, Path(sys.argv[1]))"
    model = str(tmp_path / "model")
    subprocess.run([sys.executable, "-c", code, model], check=True, env={**os.environ, "PYTHONPATH": str(BENCHMARKS)})
    result = result_of(
        BENCHMARKS / "generation.py", "--quick", "--only", "none", "--model", model, "--text", str(text),
        out=tmp_path / "result.json",
    )  # fmt: skip
    quality = result["quality"]
    assert quality["perplexity"]["float32"] == pytest.approx(512, rel=0.2)  # untrained: all tokens alike
    assert quality["change"]["float32"] == 0
    assert abs(quality["change"]["int8"]) < 0.005
