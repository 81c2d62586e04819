"""`gptlab report`: the report of runs, finished or not, from what is in their folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    names: Annotated[list[str], typer.Argument(metavar="RUN...", help="Names under --runs, or folders.")],
    runs: Annotated[Path, typer.Option(metavar="DIR", help="Where runs are.")] = Path("runs"),
) -> None:
    """Writes each run's report.html, report.md and plots, and prints where the page is."""
    from gptlab.report.report import write_report
    from gptlab.run.run import Run

    found = [Run.open(Path(name) if Path(name).is_dir() else runs / name) for name in names]
    for run in found:
        print(write_report(run))
