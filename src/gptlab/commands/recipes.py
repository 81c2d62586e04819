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
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise RecipeError(f"{error.filename} is there already and is left as it is; --to another folder") from None
    except OSError as error:
        raise RecipeError(f"{target}: cannot be written: {error.strerror}; --to another folder") from error
    typer.echo(target)
