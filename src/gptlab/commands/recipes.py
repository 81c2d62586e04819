"""`gptlab recipes`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer


def recipes(
    name: Annotated[str | None, typer.Argument(help="Show this one.")] = None,
    to: Annotated[str | None, typer.Option(help="Copy it into this folder, to change it there.")] = None,
    study: Annotated[bool, typer.Option("--study", help="The study, where a recipe has the same name.")] = False,
) -> None:
    """List the recipes and studies that ship, show one, or copy one."""
    from gptlab.catalog import shipped
    from gptlab.errors import RecipeError, nearest

    shipping, studies = ({} if study else shipped("recipe")), shipped("study")
    if name is None:
        if to is not None:
            raise RecipeError("--to copies one recipe or study: name it")
        _list(shipping, studies)
        return
    files = {**studies, **shipping}
    if name not in files:
        kind = "study" if study else "recipe or study"
        raise RecipeError(f"no {kind} {name!r} ships{nearest(name, list(files))}; there is {', '.join(files)}")
    text = files[name].read_text(encoding="utf-8")
    if to is None:
        typer.echo(text, nl=False)
    else:
        typer.echo(_copy(text, Path(to).expanduser() / f"{name}.toml"))


def _list(recipes: Mapping[str, Path], studies: Mapping[str, Path]) -> None:
    width = max(map(len, [*recipes, *studies]))
    for title, files in (("Recipes (gptlab train NAME)", recipes), ("Studies (gptlab study NAME)", studies)):
        if files:
            typer.echo(f"{title}:")
        for name, path in files.items():
            first = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip()
            typer.echo(f"  {name:<{width}}  {first}")


def _copy(text: str, target: Path) -> Path:
    from gptlab.errors import RecipeError

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise RecipeError(f"{error.filename} is there already and is left as it is; --to another folder") from None
    except OSError as error:
        raise RecipeError(f"{target}: cannot be written: {error.strerror}; --to another folder") from error
    return target
