"""`gptlab quickstart`: all of its stages, of a model so small that they take seconds; and what the same command does
again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from gptlab.catalog import shipped
from gptlab.cli import main
from gptlab.run.run import Run
from gptlab.settings import apply_changes, read_toml, to_toml

SMALL: dict[str, dict[str, Any]] = {
    "quickstart": {
        "model.n_layer": 1,
        "model.n_head": 2,
        "model.n_embd": 32,
        "model.context": 96,
        "tokenizer.train": 600,
        "data.sources": [{"embedded": "python-docs:train", "limit_documents": 40}],
        "data.validation.sources": [{"embedded": "python-docs:validation", "limit_documents": 2}],
        "samples.max_new_tokens": 4,
    },
    "quickstart-answers": {
        "data.sources": [{"embedded": "python-questions:train", "limit_dialogues": 200}],
        "data.validation.sources": [{"embedded": "python-questions:validation", "limit_dialogues": 40}],
        "samples.max_new_tokens": 4,
    },
    "quickstart-preferences": {
        "data.sources": [{"embedded": "python-questions:train", "limit_pairs": 200}],
        "data.validation.sources": [{"embedded": "python-questions:validation", "limit_pairs": 40}],
        "samples.max_new_tokens": 4,
    },
}
"""What is changed in the recipes that ship."""


@pytest.fixture(autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with small recipes of the same names: a recipe's name is a file's first."""
    folder = tmp_path_factory.mktemp("quickstart")
    for name, changes in SMALL.items():
        tree = apply_changes(read_toml(shipped("recipe")[name]), changes)
        (folder / name).write_text(to_toml(tree), encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("GPTLAB_CACHE", str(folder / "cache"))
    return folder


def quickstart(capsys: pytest.CaptureFixture[str], minutes: float) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["quickstart", "--minutes", str(minutes)])
    said = capsys.readouterr()
    assert not ended.value.code, said.err
    return said.out


def shares(said: str) -> dict[str, float]:
    """How often the right answer was likelier, by stage, as it was printed."""
    found = re.findall(r"^ +after (\w+) +([\d.]+) %  +([\d.]+) % to ([\d.]+) %", said, flags=re.MULTILINE)
    assert all(float(low) < float(share) < float(high) for _, share, low, high in found)
    return {stage: float(share) for stage, share, *_ in found}


@pytest.mark.slow
def test_all_stages_and_again_and_longer(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    first = quickstart(capsys, 0.1)
    places = [first.index(f"\n{number}. ") if number > 1 else first.index("1. ") for number in (1, 3, 4, 5, 6)]
    assert places == sorted(places)
    assert first.count("\n  documentation  ") == 3
    assert list(shares(first)) == ["pretraining", "answers", "preferences"]
    names = {path.name for path in (here / "runs").iterdir()}
    assert names == {"quickstart", "quickstart-answers", "quickstart-preferences"}
    runs = {name: Run.open(here / "runs" / name) for name in names}
    assert {run.state["status"] for run in runs.values()} == {"finished"}
    assert {run.origin["command"] for run in runs.values()} == {"gptlab quickstart --minutes 0.1"}
    for name in names:
        assert f"runs/{name}/report.html" in first
        assert runs[name].report_files.html.is_file()
    steps = {name: run.state["step"] for name, run in runs.items()}

    again = quickstart(capsys, 0.1)
    assert again.count("is finished") == 3
    assert again[again.index("\n6. ") :] == first[first.index("\n6. ") :]
    assert {name: run.state["step"] for name, run in runs.items()} == steps

    longer = quickstart(capsys, 0.2)
    assert Run.open(here / "runs" / "quickstart").state["step"] > steps["quickstart"]
    assert runs["quickstart-answers"].state["step"] == steps["quickstart-answers"]  # made of the shorter one, and kept
    made = Run.open(here / "runs" / "quickstart-preferences-2")
    assert made.origin["start"]["name"] == made.origin["reference"]["name"] == "quickstart-answers-2"
    assert "gptlab chat runs/quickstart-preferences-2" in longer
    assert quickstart(capsys, 0.2).count("is finished") == 3
