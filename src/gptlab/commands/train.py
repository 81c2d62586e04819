"""`gptlab train`."""

from __future__ import annotations

from typing import Annotated

import typer


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe that ships (see `gptlab recipes`), or a TOML file.")],
    changes: Annotated[list[str] | None, typer.Argument(help="section.key=value, any number.")] = None,
    variant: Annotated[str | None, typer.Option(help="One of the recipe's variants.")] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Files, folders or globs in place of the recipe's text.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The run's folder under --runs; by default the recipe's name.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over in a new folder.")] = False,
    runs: Annotated[str, typer.Option(help="Where runs are kept.")] = "runs",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
) -> None:
    """Train a recipe. The same command continues an unfinished run.

    Example: gptlab train mini-gpt training.minutes=10 --data books/*.txt
    """
    from gptlab import lab

    run = lab.train(
        recipe, *(changes or []), variant=variant, data=data or [], name=name, fresh=fresh, runs=runs, device=device
    )
    typer.echo(f"model   {run.checkpoint('best')}")
    typer.echo(f"report  {run.report_files.html}")
