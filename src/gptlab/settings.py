"""Frozen, typed settings from TOML and `section.key=value`, and back. It knows no section.

A section is a pydantic model that stands beside the code that reads it:

    class ScheduleSettings(Section):
        kind: Literal["constant", "cosine"] = "cosine"
        warmup_steps: int = Field(100, ge=0)

`build(Recipe, tree, source)` turns a tree of plain values into such an object or raises a
RecipeError that names the file, the key, the value, what was wanted and the nearest key there is.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError

from gptlab.errors import RecipeError, nearest

Tree = dict[str, Any]
"""Nested dicts, lists and plain values, as tomllib reads them."""


class Section(BaseModel):
    """A frozen section of a recipe: unknown keys are errors, "5" is no number, nor is inf; 5 is a float too."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, populate_by_name=True, validate_default=True, allow_inf_nan=False
    )


S = TypeVar("S", bound=Section)


def read_toml(path: Path) -> Tree:
    """The tree in a TOML file; RecipeError where it is missing, no text, or no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Notepad begins with a mark
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: is not UTF-8 text; a recipe is a TOML file") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: is not valid TOML: {error}") from error


def parse_change(text: str) -> tuple[str, Any]:
    """`"optimizer.learning_rate=1e-3"` → `("optimizer.learning_rate", 0.001)`.

    The value is read as TOML (numbers, true, [lists], "strings"); what is no TOML is a plain string,
    so `optimizer.kind=adamw` needs no quotes. RecipeError where a list or a table is no TOML.
    """
    key, equals, value = text.partition("=")
    key, value = key.strip(), value.strip()
    if not equals or not key or not value:
        raise RecipeError(f"{text!r} is no change to a recipe: wanted section.key=value")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError as error:
        if value[0] in "[{":
            raise RecipeError(
                f"{text!r}: the value is not valid TOML: {error}. Strings in it need quotation marks, which a shell "
                'leaves only where all of it is quoted: \'samples.prompts=["a", "b"]\''
            ) from error
        return key, value


def apply_changes(tree: Tree, changes: Mapping[str, Any]) -> Tree:
    """A copy of `tree` in which each dotted key of `changes` has its new value."""
    result = _copy(tree)
    for dotted, value in changes.items():
        *parents, last = dotted.split(".")
        place = result
        for name in parents:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise RecipeError(f"{dotted}={value!r}: {name!r} is a value or a list, not a section with keys")
        place[last] = _copy(value)
    return result


def build(cls: type[S], tree: Mapping[str, Any], source: str) -> S:
    """`tree` as a `cls`; RecipeError names `source` and everything that is wrong, one line each."""
    try:
        # As JSON, because pydantic's strict Python mode takes no list for a tuple, nor a string for a path.
        return cls.model_validate_json(json.dumps(tree, default=str))
    except ValidationError as error:
        raise RecipeError("\n".join(f"{source}: {line}" for line in _explain(cls, tree, error))) from None


def plain(section: Section) -> Tree:
    """The section as a tree of plain values, every field written out (None has no TOML and is left out)."""
    return section.model_dump(mode="json", by_alias=True, exclude_none=True)


def to_toml(tree: Mapping[str, Any]) -> str:
    """The tree as TOML text."""
    return tomli_w.dumps(tree)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Tree:
    """`{"a": {"b": 1}}` → `{"a.b": 1}`; lists are kept whole."""
    flat: Tree = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat


def flatten_all(tree: Mapping[str, Any]) -> Tree:
    """`flatten`, and the tables of a list by their number: "data.sources.0.path"."""
    return flatten(_numbered(tree))


def _numbered(value: Any) -> Any:
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        value = {str(number): item for number, item in enumerate(value)}
    return {key: _numbered(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list | tuple) else value


WORDS = {
    "model_type": "wanted a section with keys",
    "tuple_type": "wanted a list",
    "too_short": "wanted at least {min_length} of them, found {actual_length}",
    "too_long": "wanted at most {max_length} of them, found {actual_length}",
    "string_too_short": "wanted some text",
}
"""pydantic's kinds of error that its own message does not say in the words of a recipe."""


def _explain(cls: type[Section], tree: Mapping[str, Any], error: ValidationError) -> list[str]:
    """A line for everything that is wrong, what a value may be instead joined by "or"."""
    faults: dict[tuple[Any, ...], list[Any]] = {}
    for each in error.errors():
        faults.setdefault(_place(cls, tree, each["loc"]), []).append(each)
    lines = []
    for place, alternatives in faults.items():
        if any(other[: len(place)] == place != other for other in faults):
            continue  # a list is only called too short because of a fault in one of its items
        first, *others = (_words(cls, tree, place, each) for each in alternatives)
        lines.append(" or ".join([first, *(words.rpartition("input should be ")[2] for words in others)]))
    return lines


def _place(cls: type[BaseModel], tree: Any, location: tuple[Any, ...]) -> tuple[Any, ...]:
    """The keys and numbers of a pydantic location, which also names the members of a union: their tags (the `kind` of
    `[data]`) stand where a section has no such key."""
    place: list[Any] = []
    sections: list[type[BaseModel]] = [cls]
    for part in location:
        if not isinstance(tree, Mapping | list | tuple):
            break
        if isinstance(part, str) and sections and not any(part in _fields(section) for section in sections):
            tagged = [section for section in sections if _kind(section) == part]
            if tagged:
                sections = tagged
                continue
        place.append(part)
        tree = tree.get(part) if isinstance(tree, Mapping) else dict(enumerate(tree)).get(part)
        if isinstance(part, str):
            sections = [s for section in sections if part in _fields(section)
                        for s in _sections_in(_fields(section)[part].annotation)]  # fmt: skip
    return tuple(place)


def _words(cls: type[Section], tree: Mapping[str, Any], place: tuple[Any, ...], error: Any) -> str:
    where, found, kind = ".".join(map(str, place)), error["input"], error["type"]
    if kind == "extra_forbidden":
        keys = _keys_at(cls, tree, place[:-1])
        return f"{where} = {found!r}: unknown key{nearest(str(place[-1]), keys)}; there is {', '.join(keys)}"
    if kind == "missing":
        return f"{where}: is missing and has no default"
    message = WORDS[kind].format(**error.get("ctx", {})) if kind in WORDS else error["msg"]
    message = message.removeprefix("Value error, ")
    if kind in ("value_error", "assertion_error"):
        return f"{where}: {message}" if where else message
    if isinstance(found, str) and kind == "literal_error":
        expected = error["ctx"]["expected"].replace(" or ", ", ").split(", ")
        message += nearest(found, [word.strip("'") for word in expected])
    return f"{where} = {found!r}: {message[0].lower()}{message[1:]}"


def _keys_at(cls: type[BaseModel], tree: Any, path: Sequence[Any]) -> list[str]:
    """The keys of the section that `path` leads to, by the names a recipe writes; of several kinds that of the tree."""
    for part in path:
        tree = tree.get(part) if isinstance(tree, Mapping) else tree[part]
        if isinstance(part, str) and part in _fields(cls):
            kinds = list(_sections_in(_fields(cls)[part].annotation))
            if not kinds:
                return []
            kind = tree.get("kind") if isinstance(tree, Mapping) else None
            cls = next((inner for inner in kinds if _kind(inner) == kind), kinds[0])
    return list(_fields(cls))


def _kind(section: type[BaseModel]) -> str | None:
    """What tells a section from others that may stand in its place."""
    return section.model_fields["kind"].default if "kind" in section.model_fields else None


def _fields(cls: type[BaseModel]) -> dict[str, Any]:
    return {field.alias or name: field for name, field in cls.model_fields.items()}


def _sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections inside `X`, `X | Y`, `X | None` or `tuple[X, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        return
    for part in get_args(annotation):
        yield from _sections_in(part)
