"""Any text inside Markdown, so that none of it is taken for Markdown or HTML."""

from __future__ import annotations

import re


def plain(text: object) -> str:
    """Text in a sentence or a table's cell, on one line. Inside a word _ means nothing, and alone & does not."""
    return re.sub(r"([\\`*\[\]<>|#~$]|(?<!\w)_|_(?!\w)|&(?=#?\w+;))", r"\\\1", " ".join(str(text).split()))


def code(text: object) -> str:
    """Text as a code span on one line; its fence is longer than any run of backticks inside."""
    line = " ".join(str(text).split())
    ticks = _longer(line, 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{pad}{line}{pad}{ticks}"


def block(text: object, language: str = "text") -> str:
    """Text as a code block, as it stands."""
    ticks = _longer(str(text), 3)
    return f"{ticks}{language}\n{str(text).removesuffix(chr(10))}\n{ticks}"


def _longer(text: str, least: int) -> str:
    return "`" * max(least, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
