"""A row as text, for people: its tokens, and one that is short enough to be read."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter

import numpy as np

from gptlab.text.tokenizer import Tokenizer


def spelled(ids: Iterable[int], tokenizer: Tokenizer) -> list[str]:
    """Each token's text on one line. A character of several tokens stands at its last; the others are empty."""
    decoder = getincrementaldecoder("utf-8")(errors="replace")
    return [decoder.decode(tokenizer.bytes_of(id)).replace("\n", "\\n") for id in ids]


def marked(ids: np.ndarray, learned: np.ndarray, tokenizer: Tokenizer) -> str:
    """(n,) ids as text, divided by ·, each run of those that are `learned`, (n,) bool, in ⟦…⟧."""
    runs = []
    for is_learned, run in groupby(zip(learned.tolist(), spelled(ids.tolist(), tokenizer), strict=True), itemgetter(0)):
        text = "·".join(text for _, text in run if text)
        runs.append(f"⟦{text}⟧" if is_learned else text)
    return "·".join(runs)


def first_that_fits(texts: Iterator[str], characters: int) -> str:
    """The first of at most so many characters; where there is none, the beginning of the first."""
    first = next(texts)
    if len(first) <= characters:
        return first
    return next((text for text in texts if len(text) <= characters), first[:characters] + "…")
