"""`gptlab study`."""

from __future__ import annotations

from typing import Annotated

import typer


def study(
    study: Annotated[str, typer.Argument(help="A study that ships (see `gptlab recipes`), or a TOML file.")],
    changes: Annotated[
        list[str] | None,
        typer.Argument(help="The study's key=value (seeds=[1,2], budget.minutes=60), or a recipe's, for every run."),
    ] = None,
    variant: Annotated[str | None, typer.Option(help="One of the study's variants.")] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Files, folders or globs in place of the recipe's text.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="So many runs at a time.")] = 1,
    name: Annotated[str | None, typer.Option(help="The study's folder under --runs; by default its name.")] = None,
    runs: Annotated[str | None, typer.Option(help="Where runs are kept; by default in runs.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
) -> None:
    """Make the runs of a study that are missing, and its report. The same command goes on, also on other machines.

    Example: gptlab study mini-gpt-five training.minutes=4 --data books/*.txt
    """
    from gptlab import lab
    from gptlab.errors import GptlabError

    made = lab.study(
        study, *(changes or []), variant=variant, data=data or [], name=name, workers=workers, runs=runs, device=device
    )
    typer.echo(f"report  {made.report_files.html}")
    if failed := [result.item.name for result in made.results.runs if result.status == "failed"]:
        raise GptlabError(
            f"{len(failed)} of {len(made.results.runs)} runs failed: {', '.join(failed)}; the same command tries again"
        )
