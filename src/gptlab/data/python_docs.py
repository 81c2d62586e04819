"""The documentation that every Python carries: the embedded source `python-docs`, there without a network.

It is the docstrings of the standard library, read as source (nothing is imported or run), and the topics of `help()`.
`python-docs:train` and `python-docs:validation` are two parts of it that have no package in common.
"""

from __future__ import annotations

import ast
import gc
import hashlib
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import cleandoc
from pathlib import Path
from typing import Literal, NamedTuple, get_args

NOT_READ = {"test", "tests", "idle_test", "encodings", "pydoc_data"}
"""Packages without documentation of their own: tests, and tables as code."""

EMBEDDED_DOCS = Literal["python-docs", "python-docs:train", "python-docs:validation"]

Part = Literal["all", "train", "validation"]

HELD_OUT = 0.1
"""The share of the packages that is the part validation."""

Kind = Literal["module", "class", "function", "value"]
"""value: a function that is read as one, by its decorator: a property, a special form of typing."""

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Entry(NamedTuple):
    """What has a docstring: its full name, what it is, a function's signature (else ""), the docstring."""

    name: str
    kind: Kind
    signature: str
    docstring: str


def docs_of(embedded: str) -> Iterator[tuple[str, str]]:
    """The documents of a source by its name, one of EMBEDDED_DOCS."""
    return python_docs(part_of(embedded))


def part_of(embedded: str) -> Part:
    """The part that the name of an embedded source has behind a colon, "all" where it has none."""
    named = embedded.partition(":")[2]
    return next((part for part in get_args(Part) if part == named), "all")


def python_docs(part: Part = "all") -> Iterator[tuple[str, str]]:
    """(name, text) of each document, always in the same order: the modules of the standard library, then the topics.

    A module's text is its docstring and those of its classes and functions, each under a heading: the full name, of
    a function with its signature. What has no docstring is left out, with its heading. The topics, which speak of the
    language, are in the part train.
    """
    for name, entries in documented_modules(part):
        yield name, "\n\n".join(map(_section, entries)) + "\n"
    if part == "validation":
        return
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield name, topics[name].strip("\n") + "\n"


def documented_modules(part: Part = "all") -> Iterator[tuple[str, list[Entry]]]:
    """(full name, entries) of each module of the part in which something has a docstring, in the order of the names."""
    for name, path in _modules(Path(sysconfig.get_path("stdlib"))):
        if part in ("all", part_with(name)) and (entries := _entries_of(name, path.read_bytes())):
            yield name, entries


def part_with(module: str) -> Part:
    """The part that a module belongs to: a hash of its package decides, because what is written about one module of a
    package tells of the others."""
    package = module.partition(".")[0]
    digest = hashlib.blake2b(package.encode(), digest_size=8, key=b"part of python-docs").digest()
    return "validation" if int.from_bytes(digest, "little") < HELD_OUT * 2**64 else "train"


def _modules(folder: Path, package: tuple[str, ...] = ()) -> Iterator[tuple[str, Path]]:
    """(full name, path) of each module below `folder`, in the order of their names."""
    for path in sorted(folder.iterdir()):
        # What is no identifier is no module: site-packages, and files that are named after the machine.
        if path.stem in NOT_READ or not path.stem.isidentifier():
            continue
        if path.is_dir():
            yield from _modules(path, (*package, path.name))
        elif path.suffix == ".py":
            yield ".".join(package if path.stem == "__init__" else (*package, path.stem)), path


def _entries_of(name: str, source: bytes) -> list[Entry]:
    with _collector_paused():
        try:
            module = ast.parse(source)
        except (SyntaxError, ValueError):  # a template, or an example broken on purpose
            return []
        return list(_entries(module, name))


@contextmanager
def _collector_paused() -> Iterator[None]:
    """A syntax tree is many objects and no cycle: looking for cycles meanwhile takes longer than parsing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _entries(node: Documented, name: str) -> Iterator[Entry]:
    """The node's own, then those of the classes and functions defined in it."""
    docstring = ast.get_docstring(node, clean=False)
    if docstring and docstring.strip():
        signature = "" if isinstance(node, ast.Module | ast.ClassDef) else f"({ast.unparse(node.args)})"
        yield Entry(name, _kind(node), signature, cleandoc(docstring).strip())
    if isinstance(node, ast.Module | ast.ClassDef):
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _entries(child, f"{name}.{child.name}")


def _kind(node: Documented) -> Kind:
    if isinstance(node, ast.Module):
        return "module"
    if isinstance(node, ast.ClassDef):
        return "class"
    decorators = " ".join(map(ast.unparse, node.decorator_list))
    return "value" if "property" in decorators or "SpecialForm" in decorators else "function"


def _section(entry: Entry) -> str:
    mark = "#" if entry.kind == "module" else "##"
    return f"{mark} {entry.name}{entry.signature}\n\n{entry.docstring}"
