"""The `[[data.sources]]` section: what a source is called, and what it cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gptlab.data.sources import Source, SourceSettings
from gptlab.errors import RecipeError
from gptlab.settings import build, plain


def source(path: Path | str | None = None, **keys: Any) -> Source:
    tree = keys if path is None else {"path": str(path), **keys}
    return Source(build(SourceSettings, tree, "recipe.toml"))


def test_names(tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    assert source(tmp_path / "books" / "a.txt").name == "a.txt"
    assert source(tmp_path / "books").name == "books"
    assert source("books/*.txt").name == "books/*.txt"
    assert source(hub="acme/stories").name == "acme/stories"
    assert source(embedded="python-docs").name == "python-docs"
    assert source(tmp_path, name="mine").name == "mine"


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "one of path, hub and embedded; given: none"),
        ({"path": "a.txt", "hub": "a/b"}, "given: path and hub"),
        ({"path": "a.txt", "config": "x"}, "belong to a hub source"),
        ({"path": "a.txt", "document": "pattern"}, "belong together"),
        ({"path": "a.txt", "pattern": "x"}, "belong together"),
        ({"path": "a.txt", "document": "pattern", "pattern": "("}, "is no regular expression"),
        ({"path": "a.txt", "document": "paragraph"}, "document = 'paragraph'"),
        ({"path": "a.txt", "share": 0}, "share = 0"),
        ({"path": "a.txt", "share": 1.5}, "share = 1.5"),
        ({"path": "a.txt", "repeat": 0}, "repeat = 0"),
        ({"path": "a.txt", "colum": "x"}, "did you mean 'column'"),
        ({"embedded": "python-doc"}, "embedded = 'python-doc'"),
    ],
)
def test_impossible_settings(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build(SourceSettings, tree, "recipe.toml")


def test_settings_survive_being_written() -> None:
    tree = {"hub": "acme/stories", "share": 0.5}
    assert build(SourceSettings, plain(build(SourceSettings, tree, "a")), "b") == build(SourceSettings, tree, "c")
