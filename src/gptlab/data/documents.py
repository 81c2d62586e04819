"""Where one document ends and the next begins: the four rules, each over text that streams in blocks.

A block is a str of whole lines (the last of a text may lack its newline), so that a rule sees each line whole and
memory holds a block and the document that is being gathered.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Literal

Rule = Literal["file", "line", "block", "pattern"]

BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")


def cut(blocks: Iterable[str], rule: Rule, pattern: str | None = None) -> Iterator[str]:
    """The documents of one text.

    file:    the whole text, unchanged
    line:    each line, without its newline; an empty line is an empty document
    block:   what stands between blank lines (empty, or only white space), without its last newline
    pattern: a document begins at every line in which `pattern` is found; together they are the text, unchanged
    """
    if rule == "file":
        return iter(("".join(blocks),))
    if rule == "line":
        return (line for block in blocks for line in _lines(block))
    if rule == "block":
        return _cut_at_blank_lines(blocks)
    return _cut_at_pattern(blocks, re.compile(pattern or ""))


def _lines(block: str) -> list[str]:
    return block.removesuffix("\n").split("\n")


def _cut_at_blank_lines(blocks: Iterable[str]) -> Iterator[str]:
    parts: list[str] = []
    held = "\n"  # white space at a block's end may be the first of several blank lines: it goes before the next block
    for block in blocks:
        text = held + block
        body = text.rstrip()
        held = text[len(body) :]
        first, *others = BLANK_LINES.split(body)
        parts.append(first)
        for other in others:
            if document := "".join(parts).strip("\n"):
                yield document
            parts = [other]
    if document := "".join(parts).strip("\n"):
        yield document


def _cut_at_pattern(blocks: Iterable[str], pattern: re.Pattern[str]) -> Iterator[str]:
    parts: list[str] = []
    for block in blocks:
        start = position = 0
        for line in _lines(block):
            if pattern.search(line) and (parts or position > start):
                yield "".join([*parts, block[start:position]])
                parts, start = [], position
            position += len(line) + 1
        parts.append(block[start:])
    yield "".join(parts)
