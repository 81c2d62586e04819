"""`gptlab recipes`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def recipes(
    name: Annotated[str | None, typer.Argument(help="Show this one.")] = None,
    to: Annotated[str | None, typer.Option(help="Copy it into this folder, to change it there.")] = None,
) -> None:
    """List the recipes that ship, show one, or copy one."""
    from gptlab.errors import RecipeError, nearest
    from gptlab.training.recipe import shipped_recipes

    shipped = shipped_recipes()
    if name is None:
        if to is not None:
            raise RecipeError("--to copies one recipe: name it")
        width = max(map(len, shipped))
        for each, path in shipped.items():
            first = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip()
            typer.echo(f"{each:<{width}}  {first}")
        return
    if name not in shipped:
        raise RecipeError(f"no recipe {name!r} ships{nearest(name, list(shipped))}; there is {', '.join(shipped)}")
    text = shipped[name].read_text(encoding="utf-8")
    if to is None:
        typer.echo(text, nl=False)
        return
    target = Path(to).expanduser() / f"{name}.toml"
    if target.exists():
        raise RecipeError(f"{target} is there already")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    typer.echo(target)
