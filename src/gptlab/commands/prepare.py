"""`gptlab prepare`."""

from __future__ import annotations

from typing import Annotated

import typer


def prepare(
    recipe: Annotated[str, typer.Argument(help="A recipe that ships, or a TOML file.")],
    changes: Annotated[list[str] | None, typer.Argument(help="section.key=value, any number.")] = None,
    variant: Annotated[str | None, typer.Option(help="One of the recipe's variants.")] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Files, folders or globs in place of the recipe's text.")
    ] = None,
) -> None:
    """Text to tokens on disk: what each source gave, and one row as the model will see it.

    `gptlab train` does this by itself when it is missing.
    """
    from gptlab import lab
    from gptlab.training.progress import make_progress
    from gptlab.training.screen import sources_table

    progress = make_progress()
    data_ready = lab.prepare(recipe, *(changes or []), variant=variant, data=data or [], progress=progress)
    progress.table("what each source gave", *sources_table(data_ready))
    typer.echo(f"tokenizer  {data_ready.tokenizer.vocab_size:,} tokens, {data_ready.bytes_per_token:.2f} bytes a token")
    if data_ready.folder:
        typer.echo(f"in         {data_ready.folder}")
    typer.echo(f"one row    {data_ready.example}")
