"""Where documents end: the rules equal their plain wording, wherever the blocks that the text comes in are cut."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.data.documents import cut


def test_a_pattern_sees_one_line_at_a_time() -> None:
    assert list(cut(["a\n[b\nc]\nd\n"], "pattern", r"\[[^\]]*\]")) == ["a\n[b\nc]\nd\n"]


def naive_documents(text: str, rule: str) -> list[str]:
    """The rules, said line by line over the whole text."""
    lines = text.removesuffix("\n").split("\n")
    if rule == "line":
        return lines
    groups: list[list[str]] = [[]]
    for line in lines:
        begins = not line.strip() if rule == "block" else bool(re.search("^a", line))
        if begins:
            groups.append([])
        if rule == "pattern" or not begins:
            groups[-1].append(line)
    return ["\n".join(group) for group in groups if group]


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet="ab \n", max_size=40), data=st.data())
@pytest.mark.parametrize("rule", ["line", "block", "pattern"])
def test_rules_do_not_see_where_blocks_end(rule: Any, text: str, data: st.DataObject) -> None:
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    ends = sorted(data.draw(st.lists(st.integers(0, len(lines)), max_size=3)))
    blocks = ["".join(lines[a:b]) for a, b in zip([0, *ends], [*ends, len(lines)], strict=True)]
    found = list(cut([block for block in blocks if block], rule, "^a"))
    if rule == "pattern":
        assert "".join(found) == text
    stripped = [
        [document.rstrip() for document in some if document.strip()] for some in (found, naive_documents(text, rule))
    ]
    assert stripped[0] == stripped[1]
