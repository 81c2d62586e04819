"""One worker, one run: what it holds, how it ends, what it leaves."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from gptlab import settings
from gptlab.errors import DataError, Interrupted, Pruned, RunHeld, TrainingStopped
from gptlab.run.run import STUDY, Run
from gptlab.settings import read_toml, to_toml
from gptlab.studies import worker
from gptlab.studies.claims import WORK, Claims
from gptlab.studies.opening import open_study
from gptlab.studies.plan import items
from gptlab.studies.results import read_results
from gptlab.studies.search import JOURNAL
from gptlab.studies.settings import StudySettings, load_study
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


@pytest.mark.parametrize(
    ("error", "outcome", "code", "state"),
    [
        (Interrupted("stopped"), "interrupted", 130, "RUNNING"),
        (KeyboardInterrupt(), "interrupted", 130, "RUNNING"),
        (RunHeld("another trains it"), "interrupted", 130, "RUNNING"),
        (Pruned("others were better"), "pruned", 0, "PRUNED"),
        (TrainingStopped("the loss is nan"), "diverged", 0, "FAIL"),
        (DataError("no such file"), "failed", 1, "FAIL"),
        (ZeroDivisionError("division by zero"), "failed", 1, "FAIL"),
    ],
)
def test_how_a_trial_ends_is_said_in_its_claim_and_to_its_search(
    error: BaseException, outcome: str, code: int, state: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was interrupted goes on later, so its search must not hear of an end."""
    tree = {key: value for key, value in read_toml(folder / STUDY).items() if key != "arms"}
    search = {"trials": 2, "space": {"optimizer.learning_rate": [1e-3, 1e-2]}}
    study = settings.build(StudySettings, {**tree, "search": search}, "a search")

    def raises(*_: object) -> None:
        raise error

    monkeypatch.setattr(worker, "_train_run", raises)
    monkeypatch.setattr(worker, "BEAT_SECONDS", 0)
    trial = items(study)[0]
    assert make_run(study, trial, folder) == code
    (claim,) = Claims(folder).all(trial.name)
    assert claim.outcome == outcome
    storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    (kept,) = optuna.load_study(study_name=study.name, storage=storage).trials
    assert kept.state.name == state


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
