"""A text that is on every machine and that few models are tuned on: what tuning has cost elsewhere shows on it."""

from __future__ import annotations

from typing import Final

from gptlab.data.batch import TextRows
from gptlab.data.scored_text import read_text_tokens
from gptlab.data.sources import SourceSettings
from gptlab.data.windows import ScoredWindows
from gptlab.text.tokenizer import Tokenizer

OTHER_TEXT: Final = "python-docs"
OTHER_BYTES = 2**18
"""Of that so much: whole documents, some 64,000 tokens of GPT-2's."""


def other_text(tokenizer: Tokenizer, context: int) -> TextRows:
    """The beginning of OTHER_TEXT, in rows of `context` tokens."""
    return ScoredWindows(
        read_text_tokens(SourceSettings(embedded=OTHER_TEXT, limit_bytes=OTHER_BYTES), tokenizer), context
    )
