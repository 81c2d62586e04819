"""The files of recipes and studies: those that ship and one's own, and what one says before changes are made."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Literal

from gptlab.errors import RecipeError, nearest
from gptlab.settings import Tree, read_toml

Kind = Literal["recipe", "study"]

FOLDERS: dict[Kind, str] = {"recipe": "recipes", "study": "studies"}


def shipped(kind: Kind) -> dict[str, Path]:
    """The files that ship, by name."""
    folder = Path(str(resources.files("gptlab"))) / FOLDERS[kind]
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def find_file(kind: Kind, name: str) -> Path:
    """An existing file of this path, else the one that ships; RecipeError, with those that ship, where there is
    neither."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    files = shipped(kind)
    if name in files:
        return files[name]
    raise RecipeError(
        f"there is no {kind} {name!r}{nearest(name, list(files))}: no such file, and those that ship are "
        f"{', '.join(files)}"
    )


def read_file(path: Path) -> tuple[Tree, dict[str, Tree]]:
    """What a file says, named like itself where it has no `name`, and its variants, each a table of changes.
    RecipeError where a variant is no table."""
    tree = read_toml(path)
    variants = tree.pop("variants", {})
    if not isinstance(variants, dict) or not all(isinstance(changes, dict) for changes in variants.values()):
        raise RecipeError(f"{path}: variants: wanted [variants.NAME] sections, each of changes: key = value")
    return {"name": path.stem, **tree}, variants


def variant_of(variants: Mapping[str, Tree], name: str, path: Path) -> Tree:
    """A variant's changes; RecipeError, with those that there are, where there is none of this name."""
    if name not in variants:
        there = ", ".join(variants) or "none"
        raise RecipeError(f"{path}: no variant {name!r}{nearest(name, list(variants))}; there is {there}")
    return variants[name]
