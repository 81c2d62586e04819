"""Small files of a run: written so that a kill leaves the old one or the new one, in JSON that any program reads.

JSON has no NaN and no infinity: they are written as the strings "NaN", "Infinity" and "-Infinity".
"""

from __future__ import annotations

import errno
import json
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gptlab.errors import CheckpointError, RunError
from gptlab.settings import Tree

NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def to_json(value: Any, indent: int | None = None) -> str:
    """`value` as JSON text; floats that are not finite as strings."""
    return json.dumps(_named(value), indent=indent, ensure_ascii=False, allow_nan=False)


def from_json(text: str | bytes) -> Any:
    """The value in a JSON text that `to_json` wrote."""
    return _unnamed(json.loads(text))


def write_text(file: Path, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(file, text.encode())


def write_bytes(file: Path, content: bytes) -> None:
    """Replaces `file` atomically; CheckpointError where the disk does not take it (the old one lives)."""
    # A name of this write alone: two processes may write a study's report at the same moment.
    temporary = file.with_name(f".{file.name}.{os.getpid()}-{threading.get_ident()}.writing")
    try:
        with temporary.open("wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, file)
        flush_folder(file.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(f"{file}: could not be written: {error.strerror}") from error


def read_tree(file: Path) -> Tree:
    """The JSON object in `file`, {} where there is no file; RunError where it is none."""
    try:
        return _tree(from_json(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: cannot be read: {error}") from error


def append_records(file: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Adds one line a record and hands them to the system; CheckpointError where the disk does not take them."""
    try:
        with file.open("a", encoding="utf-8", newline="") as out:
            out.write("".join(f"{to_json(record)}\n" for record in records))
    except OSError as error:
        raise CheckpointError(f"{file}: could not be written: {error.strerror}") from error


def read_records(file: Path, parse: Callable[[bytes], Tree] = json.loads) -> Iterator[Tree]:
    """The records in a file of JSON lines, none where there is no file; `parse=from_json` gives NaN back as one.

    A last line without its end was cut by a kill and is left out; any other bad line is a RunError.
    """
    if not file.exists():
        return
    with file.open("rb") as lines:  # a kill may cut inside a character
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield _tree(parse(line))
            except ValueError as error:
                raise RunError(f"{file}, line {number}: is not JSON: {error}") from error


def _tree(value: Any) -> Tree:
    """`value`, which must be an object."""
    if not isinstance(value, dict):
        raise ValueError(f"{value!r:.40} is no object")
    return value


def flush_folder(folder: Path) -> None:
    """Makes renames inside `folder` outlive a power cut. (Windows can open no folder, and needs it not; some mounted
    drives cannot flush one, and then it is left to them.)"""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(handle)


def _named(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return next(name for name, number in NON_FINITE.items() if repr(number) == repr(value))
    if isinstance(value, Mapping):
        return {key: _named(item) for key, item in value.items()}
    return [_named(item) for item in value] if isinstance(value, list | tuple) else value


def _unnamed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unnamed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unnamed(item) for item in value]
    return NON_FINITE.get(value, value) if isinstance(value, str) else value
