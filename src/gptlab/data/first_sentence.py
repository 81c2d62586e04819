"""The first sentence of a docstring, as an answer in plain words: "Serialize obj to a JSON formatted str."."""

from __future__ import annotations

import re

SHORTEST, LONGEST = 20, 160
"""Characters. Below stands "Internal function.", beyond is a sentence that says many things."""

_PARAGRAPH = re.compile(r"\n[ \t]*\n")
_NOT_WORDS = re.compile(r"[\w.]+\(|.* (->|=) |[^A-Za-z]*$")
"""A first line that is a signature ("split(s, sep=None) -> list"), or a rule."""

_END = re.compile(r"(?<![eE]\.g)(?<!i\.e)(?<!etc)(?<!vs)\.(?=\s+[^a-z])")
"""A full stop that ends a sentence before the next one."""

_MARKUP = (
    (re.compile(r":\w+:`~?([^`]*)`"), r"\1"),  # :class:`Path`
    (re.compile(r"`([^`'\s]+)'"), r"'\1'"),  # `old quotation marks'
    (re.compile(r"(?<![\w*])\*(\w+)\*(?![\w*])"), r"\1"),  # *emphasis*
    (re.compile(r"`|\s*<https?://[^>]*>"), ""),
)
_STRANGE = re.compile(r">>>|->|://|---|===| : |XXX|[:;,!?.]\.$")
"""Examples, drawings, addresses, and ends of what is no statement."""


def first_sentence(docstring: str, name: str) -> str:
    """The first sentence in one line, without markup, with a full stop; "" where that is no answer: shorter or longer
    than SHORTEST to LONGEST characters, no sentence, or with an example in it. `name` is what the docstring is of: a
    line that says no more than it, or is a signature, is passed over."""
    words = _first_words(docstring, name)
    for pattern, plain in _MARKUP:
        words = pattern.sub(plain, words)
    sentence = _END.split(words, maxsplit=1)[0].removesuffix(".") + "."
    return sentence if _is_answer(sentence) else ""


def _first_words(docstring: str, name: str) -> str:
    """The first paragraph that has words, in one line."""
    for paragraph in _PARAGRAPH.split(docstring):
        lines = paragraph.splitlines()
        while lines and (_NOT_WORDS.match(lines[0]) or lines[0].strip() == name):
            del lines[0]
        if lines:
            return " ".join(" ".join(lines).split())
    return ""


def _is_answer(sentence: str) -> bool:
    return (
        SHORTEST <= len(sentence) <= LONGEST
        and sentence[0].isupper()
        and not _STRANGE.search(sentence)
        and all(sentence.count(left) == sentence.count(right) for left, right in ("()", "[]"))
        and sentence.count('"') % 2 == 0
    )
