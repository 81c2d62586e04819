"""What a notebook is given of a study: the same tables and figures as the report, as far as it is."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from gptlab.errors import RunError, UserError
from gptlab.studies.report import write_study_report
from gptlab.studies.statistics import differences, ranking
from gptlab.studies.study import Study

SCORES = {
    "base": {1: {"perplexity": 160.0}, 2: {"perplexity": 164.0}},
    "wide": {1: {"perplexity": 140.0}, 2: {"perplexity": 143.0}},
    "fast": {1: "diverged", 2: "failed"},
}
ARMS = {"base": {}, "wide": {"model.n_embd": 256}, "fast": {"optimizer.learning_rate": 1.0}}


@pytest.fixture
def study(make_study: Callable[..., Path], tmp_path: Path) -> Study:
    """A study of three arms and two seeds, one arm of which came to nothing; its report is not written."""
    return Study(make_study(tmp_path, {"name": "widths", "arms": ARMS, "seeds": [1, 2]}, SCORES))


@pytest.fixture
def reported(study: Study) -> Study:
    write_study_report(study.folder)
    return study


class Cells(HTMLParser):
    """The text of a table's cells, a list a row."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows:
            self.rows[-1][-1] += data


def test_the_ranking_is_that_of_the_statistics(study: Study) -> None:
    table, scores = study.table(), ranking(study.results)
    assert list(table["arm"]) == [score.arm for score in scores] == ["wide", "base", "fast"]
    for column in ("mean", "deviation", "low", "high"):
        expected = [getattr(score, column) for score in scores]
        assert table[column].iloc[:2].tolist() == pytest.approx(expected[:2])
        assert math.isnan(table[column].iloc[2])
        assert expected[2] is None


def test_the_differences_are_those_of_the_statistics(study: Study) -> None:
    table, found = study.table("differences"), differences(study.results)
    assert list(table["arm"]) == [difference.arm for difference in found]
    assert list(table["verdict"]) == [difference.verdict for difference in found]
    assert table["difference"].iloc[0] == pytest.approx(-20.5)


def test_a_table_is_what_the_reports_csv_file_has(reported: Study) -> None:
    for what in ("ranking", "differences", "runs"):
        table = reported.table(what)
        file = pd.read_csv(reported.report_files.tables / f"{what}.csv")
        assert list(table.columns) == list(file.columns)
        assert table.map(in_words).equals(file.map(in_words))
    assert len(reported.table("runs")) == 6


def in_words(value: object) -> str:
    """A cell, whether it came as an empty one of a file or as None, as a whole number or with a point."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.12g}" if isinstance(value, int | float) else str(value)


def test_a_figure_is_the_reports(reported: Study) -> None:
    files, plot = reported.report_files, reported.plot()
    assert files.html.is_file()
    assert files.markdown.is_file()
    assert plot.name == "comparison"
    assert plot._repr_svg_().startswith("<svg")
    assert (files.plots / "comparison.svg").read_text(encoding="utf-8").endswith(plot.svg)


def test_a_figure_that_there_is_not_names_those_that_there_are(reported: Study) -> None:
    with pytest.raises(UserError, match=r"no plot 'comparson' \(did you mean 'comparison'\?\); there is .*curves"):
        reported.plot("comparson")


def test_a_table_that_there_is_not_names_those_that_there_are(study: Study) -> None:
    with pytest.raises(UserError, match=r"no table 'run' \(did you mean 'runs'\?\); there is ranking, differences"):
        study.table("run")  # type: ignore[arg-type]


def test_before_the_report_it_is_said_what_draws_its_figures(study: Study) -> None:
    with pytest.raises(UserError, match=rf"there is none yet; gptlab report {study.folder} draws them"):
        study.plot()


def test_without_pandas_its_command_is_said(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"pip install 'gptlab\[notebook\]'"):
        study.table()


def test_it_shows_its_ranking(study: Study) -> None:
    html = study._repr_html_()
    assert "widths: perplexity, less is better; runs: 4 finished, 1 diverged, 1 failed" in html
    head, best, base, fast = Cells(html).rows
    assert head[:5] == ["arm", "mean", "deviation", "95 % interval", "seeds"]
    assert best == ["wide", "141.5", "2.121", "122.4 to 160.6", "2", ""]
    assert base[:2] == ["base", "162"]
    assert fast == ["fast", "", "", "", "0", "1 diverged, 1 failed"]


def test_words_of_the_study_are_no_markup(make_study: Callable[..., Path], tmp_path: Path) -> None:
    tree = {"metric": "<b>", "direction": "max", "arms": {"base": {}}}
    study = Study(make_study(tmp_path, tree, {"base": {1: {"<b>": 0.5}}}))
    assert "five: &lt;b&gt;, more is better" in study._repr_html_()


def test_it_is_read_anew_each_time(make_study: Callable[..., Path], tmp_path: Path) -> None:
    tree = {"name": "widths", "arms": {"base": {}}, "seeds": [1]}
    study = Study(str(make_study(tmp_path, tree, {})))
    assert [result.status for result in study.results.runs] == ["waiting"]
    done = make_study(tmp_path / "elsewhere", tree, {"base": {1: {"perplexity": 160.0}}})
    (done / "base-1").rename(study.folder / "base-1")
    assert [result.status for result in study.results.runs] == ["finished"]
    assert study.results.runs[0].score == pytest.approx(160.0)
    assert Cells(study._repr_html_()).rows[1] == ["base", "160", "", "", "1", ""]


def test_it_is_named_by_its_folder(study: Study) -> None:
    assert study.name == "widths"
    assert repr(study) == f"Study({str(study.folder)!r})"


def test_a_folder_that_is_no_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"has no study\.toml, so it is no study"):
        Study(tmp_path)
