"""`gptlab report`: the report of runs and studies, finished or not, from what is in their folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    names: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Names of runs or studies under --runs, or folders.")
    ],
    runs: Annotated[Path, typer.Option(metavar="DIR", help="Where runs are.")] = Path("runs"),
) -> None:
    """Writes the report.html, report.md and plots of each run or study, and prints where the page is."""
    from gptlab.report.report import write_report
    from gptlab.run.run import STUDY, Run
    from gptlab.studies.report import write_study_report

    folders = [Path(name) if Path(name).is_dir() else runs / name for name in names]
    found = [folder if (folder / STUDY).is_file() else Run.open(folder) for folder in folders]
    for each in found:
        print(write_report(each) if isinstance(each, Run) else write_study_report(each))
