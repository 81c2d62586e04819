"""Any text inside Markdown stays text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptlab.report.markdown import block, code, plain


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a plain sentence, 1,234 (50 %)", "a plain sentence, 1,234 (50 %)"),
        ("a|b", r"a\|b"),
        ("<b> *x* [y](z) `c` # d", r"\<b\> \*x\* \[y\](z) \`c\` \# d"),
        ("two\nlines", "two lines"),
        ("&amp; R&D _a_ n_layer ~~b~~ $c$", r"\&amp; R&D \_a\_ n_layer \~\~b\~\~ \$c\$"),
    ],
)
def test_plain(text: str, expected: str) -> None:
    assert plain(text) == expected


@given(st.text("`ab \n"))
def test_a_code_span_ends_where_its_text_does(text: str) -> None:
    span = code(text)
    ticks = re.match("`+", span)[0]  # type: ignore[index]
    inside = span[len(ticks) : -len(ticks)]
    assert span.endswith(ticks)
    assert ticks not in re.findall("`+", inside)
    assert inside.strip() == " ".join(text.split())


@given(st.text("`ab \n"))
def test_a_block_ends_where_its_text_does(text: str) -> None:
    lines = block(text).split("\n")
    fence = lines[-1]
    assert lines[0] == f"{fence}text"
    assert not any(line.strip().startswith(fence) for line in lines[1:-1])
    assert "\n".join(lines[1:-1]) == text.removesuffix("\n")
