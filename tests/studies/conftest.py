"""Studies written by hand: a folder with its runs as training leaves them (docs/formats.md), and nothing is trained."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest

from gptlab import settings
from gptlab.run.files import to_json
from gptlab.run.run import STUDY, Run
from gptlab.settings import Tree
from gptlab.studies import plan
from gptlab.studies.claims import WORK, Claim, Outcome, this_machine
from gptlab.studies.plan import Item
from gptlab.studies.settings import StudySettings

STEPS = 40
NOBODY = 2**22 + 1
"""No process has this id: Linux gives at most 2**22."""

PROMPTS = ("Once upon a time", "The meaning of life is")
STOPPED = {"diverged": "stopped", "pruned": "pruned", "running": "running"}
"""What state.json calls them."""

Score = Mapping[str, Any] | str
"""Of one run: its scores, or the state in which it is."""

ORIGIN: Tree = {
    "created": "2026-03-01T10:00:00+00:00",
    "device": "CPU, Test 7, 2 cores",
    "parameters": 13_311_360,
    "shape": {"n_layer": 2, "n_head": 4, "n_embd": 128, "vocab_size": 50_257},
    "versions": {"gptlab": "0.1.0", "torch": "2.13.0"},
    "commit": "3f1c9e2",
    "data": {"fingerprints": {"train": "100:abc"}, "table": [], "tokenizer": {"vocab_size": 50_257}},
}


def write_study(
    folder: Path,
    study: Mapping[str, Any],
    scores: Mapping[str, Mapping[int, Score]],
    drawn: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """A study's folder, `folder`/NAME. What `study` leaves out: name "five", recipe "mini-gpt", metric "perplexity".

    scores: arm → seed → what the run scored, or "diverged", "pruned", "failed", "running", "interrupted", "waiting"; a
            run that is not named waits. Beside the scores of evaluation.json ({"perplexity": 160.0}; `loss` follows
            from a perplexity, and the other way round) there may be `seconds`, `memory_bytes`, `parameters`, `reward`,
            and `lines`, records in place of those that are made up for metrics.jsonl; `origin`, what it has else
    drawn:  of a search, arm → what its trials were given
    """
    tree = {"name": "five", "recipe": "mini-gpt", "metric": "perplexity", **study}
    built = settings.build(StudySettings, tree, "a study")
    folder = folder / built.name
    folder.mkdir(parents=True)
    (folder / STUDY).write_text(settings.to_toml(settings.plain(built)), encoding="utf-8")
    for item in plan.items(built):
        score = scores.get(item.arm, {}).get(item.seed, "waiting")
        if score != "waiting":
            recipe = settings.plain(plan.recipe_of(built, item, (drawn or {}).get(item.arm)))
            _write_run(folder, item, recipe, score)
    return folder


def _write_run(folder: Path, item: Item, recipe: Tree, score: Score) -> None:
    found = {} if isinstance(score, str) else dict(score)
    loss = float(found.get("loss", math.log(found.get("perplexity", 160.0))))
    seconds, origin = float(found.get("seconds", 60.0)), {**ORIGIN, **found.get("origin", {})}
    command = f"gptlab train {recipe['name']}"
    parameters = int(found.get("parameters", ORIGIN["parameters"]))
    run = Run.create(folder / item.name, recipe, {**origin, "command": command, "parameters": parameters})
    # A run that is still going, or that stopped, has half of its lines.
    steps = STEPS if not isinstance(score, str) else STEPS // 2
    for line in found.get("lines", make_lines(recipe, steps, loss, seconds, found.get("memory_bytes", 890_000_000))):
        run.log(line)
    if score == "diverged":
        run.log({"event": "step", "step": steps + 1, "loss": math.nan, "tokens": 4096 * steps, "seconds": seconds})
    if "reward" in found:
        run.log({"event": "reward", "step": STEPS, "mean": found["reward"], "low": -1.0, "high": 1.0})
    run.log_samples(
        {"step": step, "prompt": prompt, "text": f" {item.arm} writes {step}", "stopped": "length"}
        for step in (STEPS // 2, STEPS) if step <= steps for prompt in PROMPTS
    )  # fmt: skip
    state = {"step": steps, "total_steps": STEPS, "elapsed_seconds": seconds, "best": {"step": steps, "loss": loss}}
    if isinstance(score, str):
        if score in STOPPED:
            run.write_state({**state, "status": STOPPED[score]})
        _write_claim(folder, item, score)
        return
    run.write_state({**state, "status": "finished"})
    run.write_evaluation({"best": {"step": STEPS, "validation": _scores(found, loss)}})
    run.report_files.html.write_text("<!DOCTYPE html>\n<title>a run</title>\n", encoding="utf-8")
    _write_claim(folder, item, "finished", seconds)


def make_lines(
    recipe: Tree, steps: int = STEPS, loss: float = 5.0, seconds: float = 60.0, memory_bytes: int = 890_000_000
) -> list[Tree]:
    """Lines of metrics.jsonl: a loss that falls to `loss`, validated at every tenth step."""
    rate = recipe["optimizer"]["learning_rate"]
    lines: list[Tree] = [{"event": "start", "step": 0, "precision": "float32", "micro_batch_size": 32}]
    for step in range(1, steps + 1):
        spent = seconds * step / STEPS
        lines.append({
            "event": "step", "step": step, "epoch": step / 100, "loss": loss + 6 / step - 6 / STEPS,
            "learning_rate": rate, "gradient_norm": 1.0, "tokens": 4096 * step, "tokens_per_second": 8192.0,
            "seconds": spent, "memory_bytes": memory_bytes,
        })  # fmt: skip
        if step % 10 == 0:
            validated = loss + 3 / step - 3 / STEPS
            lines.append({
                "event": "validation", "step": step, "loss": validated, "perplexity": math.exp(validated),
                "seconds": spent,
            })  # fmt: skip
    return lines


def _scores(found: Mapping[str, Any], loss: float) -> Tree:
    elsewhere = ("seconds", "memory_bytes", "parameters", "reward", "lines", "origin")
    given = {key: value for key, value in found.items() if key not in elsewhere}
    return {"loss": loss, "perplexity": math.exp(loss), **given}


def _write_claim(folder: Path, item: Item, status: str, seconds: float = 60.0) -> None:
    """What the worker left that made the run; one that is interrupted is of a process that is gone."""
    outcomes: dict[str, Outcome] = {
        "finished": "finished", "failed": "failed", "diverged": "diverged", "pruned": "pruned",
    }  # fmt: skip
    ended = status in outcomes
    claim = Claim(
        run=item.name, number=1, host=this_machine(), process=os.getpid() if status == "running" else NOBODY,
        process_started=psutil.Process().create_time() if status == "running" else 0.0,
        began_at=time.time() - seconds, ended_at=time.time() if ended else None, outcome=outcomes.get(status),
        words="DataError: books/: there is no such file" if status == "failed" else "",
    )  # fmt: skip
    (folder / WORK).mkdir(exist_ok=True)
    (folder / WORK / f"{item.name}.1.json").write_text(to_json(asdict(claim), indent=2) + "\n", encoding="utf-8")


@pytest.fixture
def make_study() -> Callable[..., Path]:
    """make_study(tmp_path, study, scores, drawn=None) → a study's folder, as `write_study` writes it."""
    return write_study


@pytest.fixture
def lines_of() -> Callable[..., list[Tree]]:
    """lines_of(recipe, steps, loss, seconds, memory_bytes) → lines of metrics.jsonl, as `make_lines` makes them."""
    return make_lines
