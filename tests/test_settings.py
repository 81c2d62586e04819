"""Settings: what is wrong is named, nothing is guessed, and what is written reads back as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from gptlab.errors import RecipeError
from gptlab.settings import Section, apply_changes, build, flatten, parse_change, plain, read_toml, to_toml


class Optimizer(Section):
    kind: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(5e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)


class Source(Section):
    path: str
    share: float | None = None


class Recipe(Section):
    name: str
    steps: int = 100
    compile: bool = False
    optimizer: Optimizer = Optimizer()
    sources: tuple[Source, ...] = ()
    source_from: str | None = Field(None, alias="from")


def refused(**tree: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        build(Recipe, {"name": "a", **tree}, "my.toml")
    return str(caught.value)


def test_an_unknown_key_names_the_file_the_value_and_the_nearest_key() -> None:
    message = refused(optimizer={"learning_rat": 0.1})
    assert message == (
        "my.toml: optimizer.learning_rat = 0.1: unknown key (did you mean 'learning_rate'?); "
        "there is kind, learning_rate, betas"
    )


def test_an_unknown_key_at_the_top_and_in_a_list() -> None:
    assert "stepz = 5: unknown key (did you mean 'steps'?)" in refused(stepz=5)
    message = refused(sources=[{"path": "a"}, {"path": "b", "shares": 1.0}])
    assert "sources.1.shares = 1.0: unknown key (did you mean 'share'?); there is path, share" in message


def test_a_key_is_named_as_the_recipe_writes_it() -> None:
    assert build(Recipe, {"name": "a", "from": "gpt2"}, "my.toml").source_from == "gpt2"
    assert "did you mean 'from'" in refused(fron="gpt2")


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"steps": "5"}, "steps = '5': input should be a valid integer"),
        ({"steps": 5.5}, "steps = 5.5: input should be a valid integer"),
        ({"steps": True}, "steps = True: input should be a valid integer"),
        ({"compile": 1}, "compile = 1: input should be a valid boolean"),
        ({"compile": "true"}, "compile = 'true': input should be a valid boolean"),
        ({"optimizer": {"learning_rate": "1e-3"}}, "optimizer.learning_rate = '1e-3': input should be a valid number"),
        ({"optimizer": {"learning_rate": 0}}, "optimizer.learning_rate = 0: input should be greater than 0"),
        ({"optimizer": {"kind": "adam"}}, "input should be 'adamw' or 'sgd' (did you mean 'adamw'?)"),
        ({"optimizer": 3}, "optimizer = 3: "),
        ({"sources": [{}]}, "sources.0.path: is missing and has no default"),
        ({"sources": {"path": "a"}}, "sources = {'path': 'a'}: "),
    ],
)
def test_a_wrong_value_is_named_and_never_converted(tree: dict[str, Any], message: str) -> None:
    assert f"my.toml: {message}" in refused(**tree) or message in refused(**tree)


def test_every_fault_has_its_line() -> None:
    lines = refused(steps="5", compile=3, optimizer={"kindd": 1}).splitlines()
    assert len(lines) == 3
    assert all(line.startswith("my.toml: ") for line in lines)


def test_lists_and_whole_numbers_are_taken_where_they_are_meant() -> None:
    tree = {"name": "a", "optimizer": {"learning_rate": 1, "betas": [0.8, 0.9]}, "sources": [{"path": "b"}]}
    recipe = build(Recipe, tree, "my.toml")
    assert recipe.optimizer.learning_rate == 1.0
    assert recipe.optimizer.betas == (0.8, 0.9)
    assert recipe.sources == (Source(path="b"),)


def test_a_section_is_frozen() -> None:
    recipe = build(Recipe, {"name": "a"}, "my.toml")
    with pytest.raises(ValidationError):
        recipe.steps = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("optimizer.learning_rate=1e-3", ("optimizer.learning_rate", 0.001)),
        ("steps = 5", ("steps", 5)),
        ("compile=true", ("compile", True)),
        ("optimizer.kind=sgd", ("optimizer.kind", "sgd")),
        ("name='5'", ("name", "5")),
        ("optimizer.betas=[0.8, 0.9]", ("optimizer.betas", [0.8, 0.9])),
        ("samples.prompts=a=b", ("samples.prompts", "a=b")),
    ],
)
def test_a_change_is_read_as_toml_or_as_a_plain_string(text: str, change: tuple[str, Any]) -> None:
    assert parse_change(text) == change


@pytest.mark.parametrize("text", ["steps", "=5", "steps=", ""])
def test_what_is_no_change_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match=r"wanted section\.key=value"):
        parse_change(text)


def test_dotted_changes_leave_the_original_alone() -> None:
    tree = {"name": "a", "optimizer": {"kind": "sgd"}, "list": [1]}
    changed = apply_changes(tree, {"optimizer.learning_rate": 0.1, "new.deep.key": 1, "steps": 7})
    assert changed["optimizer"] == {"kind": "sgd", "learning_rate": 0.1}
    assert changed["new"] == {"deep": {"key": 1}}
    changed["list"].append(2)
    assert tree == {"name": "a", "optimizer": {"kind": "sgd"}, "list": [1]}


def test_a_change_below_a_value_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"name\.x=1: 'name' is a value or a list, not a section"):
        apply_changes({"name": "a"}, {"name.x": 1})


def test_flatten_keeps_lists_whole() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": [{"e": 2}]}}) == {"a.b.c": 1, "a.d": [{"e": 2}]}


@given(
    name=st.text(st.characters(exclude_categories=["Cs"])),
    steps=st.integers(-(2**62), 2**62),
    learning_rate=st.floats(min_value=1e-300, allow_infinity=False),
    paths=st.lists(st.text(st.characters(exclude_categories=["Cs"]))),
)
def test_what_is_written_as_toml_reads_back_equal(
    name: str, steps: int, learning_rate: float, paths: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    recipe = Recipe(
        name=name,
        steps=steps,
        optimizer=Optimizer(learning_rate=learning_rate),
        sources=tuple(Source(path=path) for path in paths),
    )
    file = tmp_path_factory.getbasetemp() / "round-trip.toml"
    file.write_text(to_toml(plain(recipe)), encoding="utf-8", newline="")
    assert build(Recipe, read_toml(file), str(file)) == recipe


def test_every_field_is_written() -> None:
    assert plain(Recipe(name="a"))["optimizer"] == {"kind": "adamw", "learning_rate": 5e-4, "betas": [0.9, 0.999]}


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.toml: cannot be read: No such file"):
        read_toml(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = = 1")
    with pytest.raises(RecipeError, match=r"bad\.toml: is not valid TOML: .*line 1"):
        read_toml(tmp_path / "bad.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="is not UTF-8 text"):
        read_toml(tmp_path / "binary.toml")
