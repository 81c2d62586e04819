"""The documentation that every Python carries: the embedded source `python-docs`, there without a network.

It is the docstrings of the standard library, read as source (nothing is imported or run), and the topics of `help()`.
"""

from __future__ import annotations

import ast
import gc
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import cleandoc
from pathlib import Path

NOT_READ = {"test", "tests", "idle_test", "encodings", "pydoc_data"}
"""Packages without documentation of their own: tests, and tables as code."""

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def python_docs() -> Iterator[tuple[str, str]]:
    """(name, text) of each document, always in the same order: the modules of the standard library, then the topics.

    A module's text is its docstring and those of its classes and functions, each under a heading: the full name, of
    a function with its signature. What has no docstring is left out, with its heading.
    """
    for name, path in _modules(Path(sysconfig.get_path("stdlib"))):
        if text := _module_text(name, path.read_bytes()):
            yield name, text
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield name, topics[name].strip("\n") + "\n"


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


def _module_text(name: str, source: bytes) -> str:
    with _collector_paused():
        try:
            module = ast.parse(source)
        except (SyntaxError, ValueError):  # a template, or an example broken on purpose
            return ""
        sections = list(_sections(module, name, "#"))
    return "\n\n".join(sections) + "\n" if sections else ""


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


def _sections(node: Documented, name: str, mark: str) -> Iterator[str]:
    """The node's heading and docstring, then those of the classes and functions defined in it."""
    docstring = ast.get_docstring(node, clean=False)
    if docstring and docstring.strip():
        signature = "" if isinstance(node, ast.Module | ast.ClassDef) else f"({ast.unparse(node.args)})"
        yield f"{mark} {name}{signature}\n\n{cleandoc(docstring).strip()}"
    if isinstance(node, ast.Module | ast.ClassDef):
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _sections(child, f"{name}.{child.name}", "##")
