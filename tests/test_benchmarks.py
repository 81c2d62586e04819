"""The benchmarks: their harness on variants whose times and memory are known, and each of them with --quick."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gptlab.run.run import Run

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

TOY = """
import os, sys, time
from common import Case, Variant, in_our_environment, ours, parser, run
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
        in_our_environment(Variant("quiet", sleeping, {"milliseconds": 20})),
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
    for name in ("ours fast", "quiet, our environment"):
        assert variants[name]["spins"] == variants[name]["environment"]["GOMP_SPINCOUNT"]
    assert {each["threads"] for each in variants.values()} == {"1"}


def test_who_cannot_take_part_is_left_out_and_why_is_said(toy: Any) -> None:
    case = toy[0]["cases"]["toy"]
    assert list(case["variants"]) == ["slow", "large", "quiet, our environment", "ours fast"]
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


def test_each_peer_runs_also_in_our_environment() -> None:
    code = """if 1:
        import json, sys, generation, training
        from models import GPT2
        cases = training.cases(training.shapes("cpu", False), "cpu", "nanoGPT", False)
        cases += training.cases(training.shapes("cuda", False), "cuda", "nanoGPT", False)
        size = {"rows": 8, "prompt": 1, "new": 8}
        names = [[v.name for v in case.variants] for case in cases]
        print(json.dumps([*names, [v.name for v in generation.variants(GPT2, "", None, size)]]))"""
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS)}
    shown = subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True).stdout
    *cases, writing = json.loads(shown)
    peers = {f"nanoGPT {name}" for name in ("float32", "float32 compiled", "bf16", "bf16 compiled")}
    peers |= {"transformers float32", "transformers bf16"}
    again, own = {f"{peer}, our environment" for peer in peers}, {"ours float32", "ours bf16"}
    together, apart = peers | again | own, [peers | own, again | own]
    assert [set(names) for names in cases] == [together, together, *apart, *apart, *[peers | own] * 4]
    assert {"transformers bfloat16, our environment", "CTranslate2 int8, our environment"} < set(writing)


def test_what_is_not_finite_is_null_in_json(tmp_path: Path) -> None:
    code = """if 1:
        import argparse, sys
        from output import write
        out = argparse.Namespace(quick=False, out=sys.argv[1])
        write({"losses": [1.0, float("nan"), (float("inf"),)]}, out)"""
    environment, out = {**os.environ, "PYTHONPATH": str(BENCHMARKS)}, tmp_path / "result.json"
    subprocess.run([sys.executable, "-c", code, str(out)], check=True, env=environment)
    assert json.loads(out.read_text(encoding="utf-8")) == {"losses": [1, None, [None]]}


@pytest.mark.parametrize("name", ["generation", "head", "memory", "preferences", "start", "text", "training", "tuning"])
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
        ("tuning", ["AdamW", "rank 8", "full"], {"loss", "steps", "trainable"}),
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


def test_the_order_of_memory_is_judged_as_it_was_reported() -> None:
    code = """if 1:
        import json, tuning
        reported = {name: tuning.compare(name, memory) for name, memory in tuning.REPORTED.items()}
        equal = {name: tuning.compare(name, dict.fromkeys(memory, 1.0)) for name, memory in tuning.REPORTED.items()}
        print(json.dumps([reported, equal, tuning.compare("ranks", {"full": 2, "rank 16": 1})]))"""
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS)}
    shown = subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True).stdout
    reported, equal, two = json.loads(shown)
    assert {name: len(order) for name, order in reported.items()} == {"optimizers": 4, "ranks": 4}
    assert all(all(order.values()) for order in reported.values())
    for order in equal.values():
        assert all(came_out == ("=" in relation) for relation, came_out in order.items())
    assert two == {"full > rank 16": True}


@pytest.mark.slow
def test_tuning_says_what_a_large_model_took_of_its_limits(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    result = result_of(BENCHMARKS / "tuning.py", "--quick", "--large", "--cases", "large", out=out)
    assert {name: each["limit"] for name, each in result["limits"].items()} == {
        "full, 8-bit state": 14, "LoRA rank 8": 14, "reading": 12
    }  # fmt: skip
    variants = result["cases"]["large"]["variants"]
    for name, each in result["limits"].items():
        assert each["gib"] == pytest.approx(variants[f"ours {name}"]["peak_megabytes"] * 1e6 / 2**30, rel=1e-3)
        assert each["fits"]
    assert variants["ours LoRA rank 8"]["trainable"] == 2 * 8 * sum((32 + 96, 32 + 32, 32 + 128, 128 + 32))  # in + out
    assert str(tmp_path) not in json.dumps({**result, "command": ""})


def test_dpo_is_compared_with_sft_and_with_trl_in_the_same_precision() -> None:
    code = """if 1:
        import json, preferences
        measured = {
            "TRL float32": (1000, 10), "TRL float32, our environment": (900, 12), "TRL bfloat16": (800, 2),
            "ours SFT float32": (400, 4), "ours DPO float32": (480, 5), "ours DPO bfloat16 recomputed": (200, 4),
            "ours DPO float32 LoRA": (100, 4),
        }
        variants = {name: {"grown_megabytes": mb, "median": s} for name, (mb, s) in measured.items()}
        print(json.dumps(preferences.compare(variants)))"""
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS)}
    shown = subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True).stdout
    found = json.loads(shown)
    assert found["float32"] == {
        "grown_megabytes": 480, "seconds": 5, "of_tuning": 1.2, "of_tuning_kept": False,
        "of_trl": pytest.approx(480 / 900), "times_as_fast": 2, "of_trl_kept": True,
    }  # fmt: skip
    slower = found["bfloat16 recomputed"]
    assert (slower["of_trl"], slower["times_as_fast"], slower["of_trl_kept"]) == (0.25, 0.5, False)
    assert found["float32 LoRA"] == {"grown_megabytes": 100, "seconds": 4}


@pytest.mark.slow
def test_dpo_of_trl_and_ours_begin_at_the_same_loss(tmp_path: Path) -> None:
    result = result_of(
        BENCHMARKS / "preferences.py", "--quick", "--medium", "--rounds", "1", "--only", "SFT float32 recomputed",
        "DPO float32 recomputed", "TRL float32", "medium", out=tmp_path / "result.json",
    )  # fmt: skip
    step, medium = (result["cases"][name] for name in ("step", "medium"))
    assert step["left_out"] == medium["left_out"] == {}
    ours, tuning = (step["variants"][f"ours {which} float32 recomputed"] for which in ("DPO", "SFT"))
    peers = {name: each for name, each in step["variants"].items() if name.startswith("TRL")}
    assert set(peers) == {f"TRL float32{more}" for more in ("", " precomputed", " LoRA", " kept", ", our environment")}
    for each in (ours, *peers.values(), *medium["variants"].values()):
        assert each["first_loss"] == pytest.approx(math.log(2), rel=1e-4)
    assert tuning["first_loss"] == pytest.approx(math.log(512), abs=0.2)  # untrained: all tokens alike
    assert {name for name, each in step["variants"].items() if "prepare_seconds" in each} == {
        "ours DPO float32 recomputed", "TRL float32 precomputed"
    }  # fmt: skip
    found = result["comparison"]["float32 recomputed"]
    assert found["of_tuning"] == pytest.approx(ours["grown_megabytes"] / tuning["grown_megabytes"], rel=1e-3)
    assert found["times_as_fast"] > 0
    assert all(each["fits"] for each in result["limits"].values())


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
    for made in ("C++", "torch"):
        assert quality["perplexity"][made]["float32"] == pytest.approx(512, rel=0.2)  # untrained: all tokens alike
        assert quality["change"][made]["float32"] == 0
        assert 0 < abs(quality["change"][made]["int8"]) < 0.005
    assert quality["perplexity"]["C++"]["int8"] != quality["perplexity"]["torch"]["int8"]


TEXT = "\n\n".join(f"The {number}th of them, and {number * number} more, came to the river." for number in range(900))

LITTLE = """
name = "little"
[model]
n_layer = 1
n_head = 1
n_embd = 32
context = 16
[tokenizer]
train = 300
[data]
sources = [{ path = "TEXT" }]
validation = { share = 0.1 }
[validation]
sampled_rows = 8
[training]
minutes = 0.02
batch_size = 4
"""


def quality(*words: str, out: Path) -> dict[str, Any]:
    """quality.py's JSON; its corpora are kept beside it."""
    environment = {**os.environ, "GPTLAB_CACHE": str(out.parent / "cache")}
    command = [sys.executable, str(BENCHMARKS / "quality.py"), *words, "--out", str(out)]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    result: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return result


@pytest.fixture(scope="module")
def little(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of a small text; corpora and runs are made beside it."""
    folder = tmp_path_factory.mktemp("quality")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    recipe = folder / "little.toml"
    recipe.write_text(LITTLE.replace("TEXT", (folder / "text.txt").as_posix()), encoding="utf-8")
    return recipe


def run_with_curve(folder: Path, curve: dict[float, float]) -> Run:
    """A run whose sampled validation went like that: seconds → loss."""
    recipe = {"model": {"context": 16}, "validation": {"sampled_rows": 8}}
    run = Run.create(folder, recipe, {"data": {"fingerprints": {"train": "9-1", "validation": "9-2"}}})
    for step, (seconds, loss) in enumerate(curve.items(), start=1):
        run.log({"event": "validation_sampled", "step": step, "loss": loss, "seconds": seconds})
    return run


def write_rates(file: Path, losses: dict[str, list[float]], train: str = "9-1") -> None:
    """What `quality.py nanogpt` writes: at each rate a loss every 100 seconds, the last that of the whole set too."""
    text = {"train": train, "validation": "9-2", "context": 16, "sampled_rows": 8}
    rates = {
        rate: {
            "validation": {"loss": curve[-1]} if len(curve) > 1 else None,  # one that diverged
            "curve": [{"seconds": 100.0 * (i + 1), "loss": loss} for i, loss in enumerate(curve)],
        }
        for rate, curve in losses.items()
    }
    file.write_text(json.dumps({"setting": {"runs": "", "text": text}, "rates": rates}), encoding="utf-8")


def test_cross_finds_when_the_best_of_the_rates_was_reached(tmp_path: Path) -> None:
    run = run_with_curve(tmp_path / "run", {10.0: 6.0, 20.0: 5.0, 80.0: 4.0, 200.0: 3.0})
    file = tmp_path / "rates.json"
    write_rates(file, {"0.001": [5.5, 4.5], "0.0003": [6.0, 5.5], "0.01": [7.0]})
    result = quality("cross", str(run.folder), "--nanogpt-json", str(file), out=tmp_path / "cross.json")
    assert result["nanogpt"] == {"rate": "0.001", "seconds": 200, "loss": 4.5, "validation": {"loss": 4.5}}
    assert result["ours"]["seconds"] == pytest.approx(40)  # half way from 5 to 4, over the logarithm: √(20 · 80)
    assert result["ratio"] == pytest.approx(0.2)
    assert (tmp_path / "cross.svg").read_text(encoding="utf-8").startswith("<?xml")
    assert (tmp_path / "cross.png").read_bytes().startswith(b"\x89PNG")


def test_cross_says_so_where_a_run_never_was_as_good(tmp_path: Path) -> None:
    run = run_with_curve(tmp_path / "run", {10.0: 6.0, 20.0: 5.0})
    write_rates(tmp_path / "rates.json", {"0.001": [4.6, 4.5]})
    rates = str(tmp_path / "rates.json")
    result = quality("cross", str(run.folder), "--nanogpt-json", rates, out=tmp_path / "cross.json")
    assert (result["ours"]["seconds"], result["ratio"]) == (None, None)


def test_cross_where_nanogpt_only_diverged(tmp_path: Path) -> None:
    run = run_with_curve(tmp_path / "run", {10.0: 6.0})
    write_rates(tmp_path / "rates.json", {"0.1": [9.0]})
    with pytest.raises(subprocess.CalledProcessError) as failed:
        quality("cross", str(run.folder), "--nanogpt-json", str(tmp_path / "rates.json"), out=tmp_path / "cross.json")
    assert b"at each of its rates nanoGPT diverged" in failed.value.stderr


def test_cross_compares_no_losses_of_different_texts(tmp_path: Path) -> None:
    run = run_with_curve(tmp_path / "run", {10.0: 6.0})
    write_rates(tmp_path / "rates.json", {"0.001": [4.6, 4.5]}, train="8-1")
    with pytest.raises(subprocess.CalledProcessError) as failed:
        quality("cross", str(run.folder), "--nanogpt-json", str(tmp_path / "rates.json"), out=tmp_path / "cross.json")
    assert b"another text" in failed.value.stderr
    assert not (tmp_path / "cross.json").exists()


@pytest.mark.slow
def test_sizes_runs_auto_beside_fixed_depths_and_each_once(little: Path) -> None:
    words = ("sizes", "model.dropout=0", "--recipe", str(little), "--minutes", "0.02", "--depths", "1")
    out = little.with_name("sizes.json")
    result = quality(*words, out=out)["minutes"]["0.02"]
    auto, fixed = result["runs"]["auto"], result["runs"]["depth-1"]
    assert result["auto"] in {"wins", "ties", "loses"}
    assert result["difference"] == pytest.approx(auto["validation"]["loss"] - fixed["validation"]["loss"], abs=1e-3)
    runs = {name: Run.open(little.parent / "runs" / f"little-0.02min-{name}") for name in ("auto", "depth-1")}
    chosen, given = (runs[name].recipe for name in ("auto", "depth-1"))
    assert given["model"]["n_embd"] == 64
    assert given["training"]["batch_size"] == 4  # the recipe's
    assert chosen["training"]["batch_size"] > 4  # auto's own
    assert (given["model"]["dropout"], chosen["model"]["dropout"]) == (0, 0)  # what the line says holds for both
    assert given["model"]["context"] == chosen["model"]["context"] == 16
    assert runs["auto"].origin["data"] == runs["depth-1"].origin["data"]
    assert quality(*words, out=out)["minutes"]["0.02"] == result
    assert len(runs["auto"].metrics("start")) == 1


@pytest.mark.slow
@pytest.mark.skipif("GPTLAB_NANOGPT" not in os.environ, reason="GPTLAB_NANOGPT names no checkout of nanoGPT")
def test_nanogpt_learns_from_the_text_of_our_runs_and_each_rate_once(little: Path) -> None:
    folder, out = little.parent, little.with_name("nanogpt.json")
    words = ("nanogpt", "--nanogpt", os.environ["GPTLAB_NANOGPT"], "--recipe", str(little), "--minutes", "0.02")
    still = quality(*words, "--rates", "1e-12", out=out)["rates"]["1e-12"]
    rates = quality(*words, "--rates", "1e-12", "1e-2", "1e12", out=out)["rates"]
    assert rates["1e-12"] == still
    assert rates["1e+12"]["validation"] is None
    assert rates["1e+12"]["diverged"].endswith("the loss on validation was not finite")
    assert "NaN" not in out.read_text(encoding="utf-8")
    learned = rates["0.01"]
    assert learned["seconds"] == pytest.approx(1.2, rel=0.3)
    assert learned["curve"][-1]["seconds"] == learned["seconds"]
    assert learned["validation"]["loss"] < still["validation"]["loss"] - 1

    code = "from gptlab.cli import main; main()"
    train = [sys.executable, "-c", code, "train", str(little), "training.max_steps=3", "--runs", str(folder / "ours")]
    environment = {**os.environ, "GPTLAB_CACHE": str(folder / "cache")}
    subprocess.run(train, check=True, env=environment, capture_output=True)
    run = Run.open(folder / "ours" / "little")
    vocab_size = run.origin["data"]["tokenizer"]["vocab_size"]
    assert still["validation"]["loss"] == pytest.approx(math.log(vocab_size), abs=0.1)  # untrained: all tokens alike
    crossed = quality("cross", str(run.folder), "--nanogpt-json", str(out), out=folder / "cross.json")  # the same text
    assert crossed["nanogpt"]["rate"] == "0.01"
    assert crossed["ours"]["curve"][-1][1] == pytest.approx(run.metrics("validation_sampled")[-1]["loss"], rel=1e-4)
