"""`gptlab report`: names or folders in, paths of pages out."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptlab.cli import main


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name in ("small", "large"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "recipe.toml").write_text(f'name = "{name}"\n', encoding="utf-8")
    return tmp_path / "runs"


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["report", *arguments])
    return int(ended.value.code or 0)


def test_each_run_gets_its_report_and_its_path_is_printed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("small", str(runs / "large"), "--runs", str(runs)) == 0
    pages = [runs / "small" / "report.html", runs / "large" / "report.html"]
    assert capsys.readouterr().out.split() == [str(page) for page in pages]
    assert all("<h1>" in page.read_text(encoding="utf-8") for page in pages)


def test_what_is_no_run_is_named_before_anything_is_written(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("small", "larg", "--runs", str(runs)) == 2
    said = capsys.readouterr()
    assert "'large'" in said.err
    assert "Traceback" not in said.err
    assert said.out == ""
    assert not (runs / "small" / "report.html").exists()


def test_a_run_that_cannot_be_written_to_is_a_failure_in_one_line(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "small" / "report.md").mkdir()
    assert call("small", "--runs", str(runs)) == 1
    assert str(runs / "small" / "report.md") in capsys.readouterr().err
