"""Words are counted as str.split counts them."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.data.word_count import count_words

SPACES = "".join(chr(c) for c in range(0x110000) if chr(c).isspace())


def test_every_white_space_there_is() -> None:
    assert count_words([f"a{space}b" for space in SPACES]).tolist() == [2] * len(SPACES)


def test_empty_texts_and_none() -> None:
    assert count_words([]).tolist() == []
    assert count_words(["", " ", "a", "", " a b\n"]).tolist() == [0, 0, 1, 0, 2]


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(SPACES))))
def test_equals_split(texts: list[str]) -> None:
    assert count_words(texts).tolist() == [len(text.split()) for text in texts]
