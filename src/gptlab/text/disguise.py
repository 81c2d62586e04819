"""Words in which no special token can be found, until they are put back.

Whatever a template does with somebody's words (trims them, splits them, looks into them), no special token may come of
them. So the first character of each one in them is replaced, before the template is applied, by a character that
stands in none of the words, and put back after the text was cut at the special tokens: those found then, the template
wrote. Marks around the words would do less: a template that trims, or looks at how they begin, would stumble over them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

PRIVATE_USE = range(0x100000, 0x10FFFE)
"""Unicode's plane 16: characters without a meaning."""


class Disguise:
    """`texts` in which none of `tokens` stands, nor the beginning of one at a text's end, which the next could finish.

    texts: the disguised ones, in their order
    """

    def __init__(self, texts: Sequence[str], tokens: Sequence[str]) -> None:
        everything = "".join(texts)
        unused = (character for character in map(chr, PRIVATE_USE) if character not in everything)
        stand_ins = dict(zip(sorted({token[0] for token in tokens}), unused, strict=False))
        begins = _beginning_of(tuple(tokens))
        self.texts: list[str] = [begins.sub(lambda found: stand_ins[found[0]], text) for text in texts]
        self._stand_ins = stand_ins

    def lift(self, text: str) -> str:
        """`text`, made of disguised ones and others, as it would be without the disguise."""
        for first, stand_in in self._stand_ins.items():
            text = text.replace(stand_in, first)
        return text


@lru_cache(maxsize=16)
def _beginning_of(tokens: tuple[str, ...]) -> re.Pattern[str]:
    """Finds the first character of each token in a text, also of one that the text breaks off in."""
    return re.compile("|".join(map(_beginning, tokens)))


def _beginning(token: str) -> str:
    """`<|a` as an expression: `<(?=(?:\\s*\\Z|\\|(?:\\s*\\Z|a)))`. White space at the end may be trimmed away."""
    rest = ""
    for character in reversed(token[1:]):
        rest = rf"(?:\s*\Z|{re.escape(character)}{rest})"
    return f"{re.escape(token[0])}(?={rest})"
