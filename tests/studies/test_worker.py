"""One worker, one run: what it holds, how it ends, what it leaves."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from gptlab.errors import Interrupted
from gptlab.run.run import Run
from gptlab.settings import read_toml, to_toml
from gptlab.studies.claims import WORK, Claims
from gptlab.studies.opening import open_study
from gptlab.studies.plan import items
from gptlab.studies.results import read_results
from gptlab.studies.settings import load_study
from gptlab.studies.worker import BUSY, make_run

TEXT = "\n\n".join(f"Line {n} has the number {n * 7}." for n in range(600))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study that is open and has no run yet."""
    (tmp_path / "lines.txt").write_text(TEXT)
    (tmp_path / "lines.toml").write_text(to_toml({
        "model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "context": 16},
        "tokenizer": {"train": 300},
        "data": {"sources": [{"path": str(tmp_path / "lines.txt"), "document": "block"}], "validation": {"share": 0.1}},
        "training": {"max_steps": 6, "batch_size": 8, "precision": "float32"},
    }))  # fmt: skip
    arms = {"a": {}, "strange": {"data.sources": [{"path": str(tmp_path / "none.txt")}]}}
    file = tmp_path / "few.toml"
    file.write_text(to_toml({"recipe": "lines.toml", "seeds": [1], "metric": "loss", "arms": arms}))
    return open_study(load_study(file), tmp_path / "runs")


def test_a_run_is_made_and_its_claim_says_so(folder: Path) -> None:
    study = read_results(folder).study
    (a, strange) = items(study)
    assert make_run(study, a, folder) == 0
    assert Run.open(folder / "a-1").state["status"] == "finished"
    (claim,) = Claims(folder).all("a-1")
    assert claim.outcome == "finished"
    assert claim.seconds > 0
    log = (folder / WORK / "a-1.log").read_text()
    assert "validation" in log

    assert make_run(study, strange, folder) == 1
    (claim,) = Claims(folder).all("strange-1")
    assert claim.outcome == "failed"
    assert "none.txt" in claim.words
    assert "none.txt" in (folder / WORK / "strange-1.log").read_text()


def test_another_workers_run_is_left_alone(folder: Path) -> None:
    study = read_results(folder).study
    with Claims(folder).take("a-1", lost=lambda: None) as holding:
        assert holding
        assert make_run(study, items(study)[0], folder) == BUSY, "it is held"
        assert make_run(study, items(study)[0], folder, after=0) == BUSY, "it was free when somebody looked"
    assert not (folder / "a-1" / "recipe.toml").exists()


@pytest.mark.slow
def test_a_worker_saves_when_the_process_that_started_it_is_gone(folder: Path) -> None:
    study = folder / "study.toml"
    tree = read_toml(study)
    study.write_text(to_toml({**tree, "changes": {"training.max_steps": 100000}}))
    worker = subprocess.Popen(
        [sys.executable, "-m", "gptlab.studies.worker", str(folder), "a-1"], stdin=subprocess.PIPE,
    )  # fmt: skip
    assert worker.stdin
    started = time.monotonic()
    while not (folder / "a-1" / "metrics.jsonl").exists() and time.monotonic() - started < 120:
        time.sleep(0.1)
    worker.stdin.close()
    assert worker.wait(timeout=120) == Interrupted.exit_code
    run = Run.open(folder / "a-1")
    assert run.state["status"] == "interrupted"
    assert run.steps()
    assert read_results(folder).runs[0].status == "interrupted"
