"""A study in a notebook: what `gptlab.study(...)` gives."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gptlab import words
from gptlab.errors import RunError, UserError, nearest
from gptlab.run.run import STUDY
from gptlab.studies.report import MARKDOWN, PLOTS, REPORT, TABLES
from gptlab.studies.results import Results, read_results
from gptlab.studies.rows import rows_of
from gptlab.studies.statistics import ArmScore, ranking

if TYPE_CHECKING:
    import pandas as pd

TableName = Literal["ranking", "differences", "runs", "trials", "curves", "published"]

HEADS = ("arm", "mean", "deviation", "95 % interval", "seeds", "")


@dataclass(frozen=True)
class StudyFiles:
    """Where a study's report is: html and markdown are files, plots and tables folders of .svg, .png and .csv."""

    html: Path
    markdown: Path
    plots: Path
    tables: Path


@dataclass(frozen=True)
class Plot:
    """A figure of the report, which a notebook draws."""

    name: str
    svg: str

    def _repr_svg_(self) -> str:
        return self.svg


class Study:
    """A study's folder, read anew each time something is asked of it.

        study = gptlab.study("mini-gpt-five", "training.minutes=4")
        study.table("differences")
        study.plot("curves")

    RunError where `folder` is no study.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / STUDY).is_file():
            raise RunError(f"{self.folder}: has no {STUDY}, so it is no study; gptlab study makes one")

    def __repr__(self) -> str:
        return f"Study({str(self.folder)!r})"

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def results(self) -> Results:
        """Its runs, as far as they are."""
        return read_results(self.folder)

    @property
    def report_files(self) -> StudyFiles:
        folder = self.folder
        return StudyFiles(folder / REPORT, folder / MARKDOWN, folder / PLOTS, folder / TABLES)

    def table(self, what: TableName = "ranking") -> pd.DataFrame:
        """What `tables/WHAT.csv` of the report has, as it is now: the arms, best first; every arm less the baseline;
        the runs with all their measures; of a search its trials; every logged line; the published figures.

        UserError without pandas, or for a table that there is not.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise UserError("a study's tables are pandas': pip install 'gptlab[notebook]'") from error
        tables = rows_of(self.results)
        if what not in tables:
            raise UserError(f"there is no table {what!r}{nearest(what, list(tables))}; there is {', '.join(tables)}")
        return pd.DataFrame(tables[what])

    def plot(self, name: str = "comparison") -> Plot:
        """A figure of the report, for a notebook to show. UserError names those that there are."""
        folder = self.report_files.plots
        names = sorted(file.stem for file in folder.glob("*.svg"))
        if name not in names:
            there = ", ".join(names) or f"none yet; gptlab report {self.folder} draws them"
            raise UserError(f"{folder}: there is no plot {name!r}{nearest(name, names)}; there is {there}")
        return Plot(name, _svg(folder / f"{name}.svg"))

    def _repr_html_(self) -> str:
        """The ranking as a small table."""
        results = self.results
        study, states = results.study, Counter(result.status for result in results.runs)
        better = "less" if study.less_is_better else "more"
        runs = ", ".join(f"{count} {state}" for state, count in states.items())
        caption = f"{self.name}: {study.metric}, {better} is better; runs: {runs}"
        lines = [_line("th", HEADS), *(_line("td", _cells(score)) for score in ranking(results))]
        return f"<table><caption>{escape(caption)}</caption>{''.join(lines)}</table>"


def _cells(score: ArmScore) -> tuple[str, ...]:
    mean, deviation, low, high = (
        "" if value is None else words.number(value) for value in (score.mean, score.deviation, score.low, score.high)
    )
    faults = ((score.diverged, "diverged"), (score.failed, "failed"))
    return (
        score.arm, mean, deviation, f"{low} to {high}" if low else "", str(len(score.values)),
        ", ".join(f"{count} {fault}" for count, fault in faults if count),
    )  # fmt: skip


def _line(tag: str, cells: tuple[str, ...]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"


def _svg(file: Path) -> str:
    """The element alone: in a notebook's page there is no room for a file's head."""
    text = file.read_text(encoding="utf-8")
    return text[text.index("<svg") :]
