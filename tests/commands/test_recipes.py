"""`gptlab recipes`: what ships is listed, shown and copied; a study and a recipe of one name are told apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptlab.catalog import Kind, shipped
from gptlab.cli import main
from gptlab.studies.settings import load_study

BOTH = "cola-lora"


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["recipes", *arguments])
    return int(ended.value.code or 0)


def listed(text: str) -> list[str]:
    """The names, in their order, without the headings."""
    return [line.split()[0] for line in text.splitlines() if line.startswith("  ")]


def test_recipes_are_listed_and_studies_below_each_with_its_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert call() == 0
    out = capsys.readouterr().out
    assert listed(out) == [*shipped("recipe"), *shipped("study")]
    assert out.index("gptlab train NAME") < out.index("gptlab study NAME")
    line = next(line for line in out.splitlines() if line.split()[0] == "optimizers")
    assert line.endswith(shipped("study")["optimizers"].read_text(encoding="utf-8").splitlines()[0].lstrip("# "))


def test_studies_can_be_listed_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--study") == 0
    assert listed(capsys.readouterr().out) == list(shipped("study"))


@pytest.mark.parametrize(
    ("arguments", "kind", "name"),
    [
        ([BOTH], "recipe", BOTH),
        ([BOTH, "--study"], "study", BOTH),
        (["optimizers"], "study", "optimizers"),
    ],
)
def test_one_is_shown_as_it_is(arguments: list[str], kind: Kind, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*arguments) == 0
    assert capsys.readouterr().out == shipped(kind)[name].read_text(encoding="utf-8")


def test_a_study_is_copied_once_and_the_copy_is_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("optimizers", "--to", str(tmp_path / "mine")) == 0
    copy = tmp_path / "mine" / "optimizers.toml"
    assert capsys.readouterr().out.strip() == str(copy)
    assert load_study(copy) == load_study("optimizers")
    assert call("optimizers", "--to", str(tmp_path / "mine")) == 2
    assert "is there already" in capsys.readouterr().err


def test_what_does_not_ship_is_refused_with_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("optimiser") == 2
    assert "'optimizers'" in capsys.readouterr().err
    assert call("mini-gpt", "--study") == 2
    assert "no study 'mini-gpt'" in capsys.readouterr().err
    assert call("--to", "here") == 2
    assert "name it" in capsys.readouterr().err
