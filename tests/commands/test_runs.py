"""`gptlab runs`: a table of runs, studies folded, and `diff A B`."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gptlab.cli import main

Make = Callable[..., Path]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def make(runs: Path) -> Make:
    """make(name, rate=…, loss=…, days=…) → a finished run's folder, begun so many days ago."""

    def write(name: str, rate: float = 1e-3, loss: float = 4.0, days: float = 1) -> Path:
        folder = runs / name
        folder.mkdir(parents=True)
        begun = datetime.now(UTC) - timedelta(days=days, hours=2)
        scores = {"loss": loss, "perplexity": 2**loss}
        files = {
            "recipe.toml": f'name = "x"\n[model]\nkind = "gpt"\n[data]\nkind = "corpus"\n'
            f'[objective]\nkind = "language"\n[optimizer]\nlearning_rate = {rate}\n',
            "origin.json": json.dumps({"created": begun.isoformat(), "parameters": 1_500_000, "device": "CPU"}),
            "state.json": json.dumps({"status": "finished", "step": 2000, "total_steps": 2000, "elapsed_seconds": 90}),
            "evaluation.json": json.dumps({"best": {"step": 1000, "validation": scores}}),
        }
        for file, text in files.items():
            (folder / file).write_text(text, encoding="utf-8")
        return folder

    return write


@pytest.fixture
def filled(make: Make, runs: Path) -> Path:
    """Two runs and a study of three."""
    make("old", days=9)
    make("new", days=1)
    for name in ("base-1", "base-2", "wide-1"):
        make(f"five/{name}", days=5)
    (runs / "five" / "study.toml").touch()
    (runs / "five" / "wide-1" / "state.json").write_text('{"status": "running"}', encoding="utf-8")
    return runs


def call(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["runs", *map(str, arguments)])
    return int(ended.value.code or 0)


def test_each_run_is_a_line_the_newest_first_and_a_study_is_one(
    filled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--runs", filled) == 0
    head, new, study, old = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "state", "task", "model", "step", "best", "time", "begun"]
    words = "finished corpus GPT 1.5 million 2,000 perplexity 16 1 min 30 s"
    assert new.split() == ["new", *words.split(), "1", "d", "2", "h", "ago"]
    assert old.split() == ["old", *words.split(), "9", "d", "2", "h", "ago"]
    assert study == "five/  a study; runs: 2 finished, 1 interrupted; the newest begun 5 d 2 h ago"


def test_all_or_the_name_of_a_study_lists_its_runs(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(filled, "--all") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "run", "new", "five/", "five/wide-1", "five/base-2", "five/base-1", "old",
    ]  # fmt: skip
    assert call("five", "--runs", filled) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["run", "wide-1", "base-2", "base-1"]


def test_a_folder_of_studies_alone_has_no_table(make: Make, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("five/base-1", days=5)
    (runs / "five" / "study.toml").touch()
    assert call(runs) == 0
    assert capsys.readouterr().out == "five/  a study; runs: 1 finished; the newest begun 5 d 2 h ago\n"


def test_json_has_every_run_with_everything_known(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(filled, "--json") == 0
    listed = json.loads(capsys.readouterr().out)["runs"]
    assert [run["name"] for run in listed] == ["new", "five/wide-1", "five/base-2", "five/base-1", "old"]
    new = listed[0]
    assert datetime.fromisoformat(new.pop("begun")).tzinfo is not None
    assert new == {
        "name": "new", "folder": str(filled / "new"), "study": None, "state": "finished", "fault": "",
        "objective": "language", "data": "corpus", "model": "gpt", "start": None, "parameters": 1_500_000,
        "trainable": 1_500_000, "step": 2000, "total_steps": 2000, "metric": "perplexity", "score": 16.0,
        "seconds": 90, "memory_bytes": None,
    }  # fmt: skip


def test_a_damaged_run_is_a_line_with_its_fault(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (filled / "old" / "state.json").write_text("{", encoding="utf-8")
    assert call(filled) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("old")]
    assert line.split()[1] == "damaged"
    assert str(filled / "old" / "state.json") in line


def test_no_runs_are_said_and_no_folder_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(tmp_path) == 0
    assert "has no runs yet" in capsys.readouterr().out
    assert call(tmp_path, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"runs": []}
    assert call("--runs", tmp_path / "none") == 2
    assert "there is no such folder" in capsys.readouterr().err


def test_diff_says_what_differs_and_what_came_of_it(make: Make, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = make("a", rate=1e-3, loss=4.0), make("b", rate=3e-4, loss=3.0)
    assert call("diff", "a", b, "--runs", runs) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{a} → {b}\n\nrecipe\n")
    lines = {cells[0]: cells[1:] for cells in map(str.split, said.splitlines()) if cells}
    assert lines["optimizer.learning_rate"] == ["0.001", "0.0003"]
    assert lines["validation.perplexity"] == ["16", "8", "-8", "(-50", "%)"]
    assert lines["validation.loss"] == ["4", "3", "-1", "(-25", "%)"]
    assert said.endswith("no difference in data, model, machine, cost\n")


def test_diff_shows_two_numbers_that_rounding_would_make_one(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("diff", make("a", loss=3.00001), make("b", loss=3.00002)) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "validation.loss" in line]
    assert line.split()[1:3] == ["3.00001", "3.00002"]


def test_diff_as_json(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = make("a", loss=4.0), make("b", loss=3.0)
    assert call("diff", a, b, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["a", "b", "recipe", "data", "model", "machine", "scores", "cost"]
    assert (found["a"], found["b"], found["recipe"]) == (str(a), str(b), [])
    assert {"key": "validation.loss", "a": 4.0, "b": 3.0, "difference": -1.0} in found["scores"]


def test_what_cannot_be_is_the_users_mistake(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("diff", "old", "--runs", filled) == 2
    assert "wanted two runs, found 1" in capsys.readouterr().err
    assert call("new", "old", "--runs", filled) == 2
    assert "wanted one folder, or diff A B" in capsys.readouterr().err
    assert call("diff", "old", "nwe", "--runs", filled) == 2
    assert "did you mean 'new'" in capsys.readouterr().err
