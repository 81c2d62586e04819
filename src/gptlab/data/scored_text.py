"""Text that is only scored: read from one source and kept in memory, without a place in the cache."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from gptlab.data.sources import Source, SourceSettings
from gptlab.data.word_count import count_words
from gptlab.text.tokenizer import Tokenizer

AT_ONCE = 1000
"""Documents that are encoded together."""


@dataclass(frozen=True, eq=False)
class TextTokens:
    """Documents as one array of ids, an EOS after each; what a TokenFile has, as far as scoring reads it."""

    tokens: np.ndarray
    eos_id: int
    text_bytes: int
    words: int
    header: dict[str, Any] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return len(self.tokens)


def read_text_tokens(settings: SourceSettings, tokenizer: Tokenizer) -> TextTokens:
    """All documents of a source, tokenized. DataError where it cannot be read or is empty."""
    pieces: list[np.ndarray] = []
    text_bytes = words = 0
    end = np.array([tokenizer.eos_id], dtype=np.uint32)

    stream = Source(settings).documents()
    while documents := list(islice(stream, AT_ONCE)):
        for ids in tokenizer.encode_documents(documents):
            pieces += (ids, end)
        text_bytes += sum(len(document.encode()) for document in documents)
        words += int(count_words(documents).sum())
    return TextTokens(np.concatenate(pieces), tokenizer.eos_id, text_bytes, words)
