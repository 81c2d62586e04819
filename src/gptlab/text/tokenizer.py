"""The tokenizer: text → ids and back, by byte-level BPE.

Ids are those of Hugging Face's `tokenizers` for the same files; they are computed by tiktoken, about ten times
faster, wherever its rule gives the same ids (engines.py says when).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, model_validator

from gptlab.errors import TokenizerError
from gptlab.hub import download_files, is_hub_name
from gptlab.settings import Section
from gptlab.text.engines import fast_engine, reference_engine, train_bpe, with_special_tokens
from gptlab.text.vocabulary import (
    EOS,
    FILES,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    Vocabulary,
    read_vocabulary,
    token_bytes,
)

if TYPE_CHECKING:
    import tiktoken
    import tokenizers

SMALLEST_VOCABULARY = 257
"""A token for each byte, and EOS: what a tokenizer without a single merge has."""

GROUP_CHARACTERS = 1 << 16
"""How much text is encoded in one call where documents are shorter."""


class Tokenizer:
    """A byte-level BPE tokenizer. Immutable; one may be used from several threads at once.

    vocab_size:     1 + the highest id
    eos:            the token that ends a document, as text
    eos_id:         its id
    special_tokens: special token → id (EOS among them)
    fingerprint:    16 hex digits, equal for the same tokenizer from whichever format it was read
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self.special_tokens: dict[str, int] = dict(vocabulary.special_tokens)
        self.eos: str = vocabulary.eos
        self.eos_id: int = self.special_tokens[self.eos]
        self.vocab_size: int = 1 + max(*vocabulary.tokens.values(), *self.special_tokens.values())

    @classmethod
    def read(cls, path: Path) -> Tokenizer:
        """The tokenizer in a folder or file: tokenizer.json, vocab.json + merges.txt or encoder.json + vocab.bpe.

        TokenizerError where there is none, or one that is no byte-level BPE with GPT-2's splitting.
        """
        return cls(read_vocabulary(path))

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """A byte-level BPE trained on `texts`, with EOS as the highest id (as GPT-2 has it). Deterministic.

        Pairs seen once are not merged; where the text has too few pairs the vocabulary is smaller than asked for.
        """
        if vocab_size < SMALLEST_VOCABULARY:
            raise TokenizerError(
                f"a vocabulary of {vocab_size} is impossible: the 256 bytes and {EOS} alone are {SMALLEST_VOCABULARY}"
            )
        return cls(train_bpe(texts, vocab_size))

    def with_special_tokens(self, tokens: Sequence[str]) -> Tokenizer:
        """This tokenizer with these special tokens too: those it lacks get the ids from `vocab_size` on, in order.

        TokenizerError where an ordinary token of the vocabulary is written so: it would lose its meaning.
        """
        new = [token for token in dict.fromkeys(tokens) if token not in self.special_tokens]
        if not new:
            return self
        if taken := [token for token in new if not token or token in self._vocabulary.tokens]:
            raise TokenizerError(
                f"{taken[0]!r} cannot be a special token: it is empty or an ordinary token of this vocabulary; take "
                f"another name, such as {f'<|{taken[0]}|>'!r}"
            )
        ids = {token: self.vocab_size + n for n, token in enumerate(new)}
        return Tokenizer(replace(self._vocabulary, special_tokens={**self.special_tokens, **ids}))

    @property
    def fingerprint(self) -> str:
        return self._vocabulary.fingerprint

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """The ids of `text`; nothing is added. Special tokens written in it are ordinary text unless `special`."""
        if not special:
            return self._encode(text).tolist()
        ids: list[int] = []
        for part, number in self.split_special(text):
            ids += self._encode(part).tolist() if number is None else [number]
        return ids

    def split_special(self, text: str) -> list[tuple[str, int | None]]:
        """`text` cut at its special tokens: each of them with its id, the text between them with None."""
        parts = self._special_pattern.split(text)
        return [(part, self.special_tokens.get(part)) for part in parts if part]

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, (n,) uint32, special tokens as ordinary text. The GIL is free meanwhile."""
        return [ids for group in _groups(texts) for ids in self._encode_group(group)]

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD, special tokens are written out unless skipped."""
        skipped = set(self.special_tokens.values()) if skip_special else ()
        return b"".join(self.bytes_of(int(i)) for i in ids if i not in skipped).decode("utf-8", errors="replace")

    def bytes_of(self, id: int) -> bytes:
        """The bytes of one token; a special token's are its name's. TokenizerError where no token has this id."""
        try:
            return self._bytes[id]
        except KeyError:
            raise TokenizerError(f"no token has the id {id}; the vocabulary has {self.vocab_size} ids") from None

    def save(self, folder: Path, *, context: int | None = None) -> None:
        """Write tokenizer.json and tokenizer_config.json into `folder`, as AutoTokenizer reads them.

        `context` is written as model_max_length. No padding token is named: EOS is learned, and padding it would
        hide it from the loss.
        """
        config: dict[str, Any] = {
            "tokenizer_class": "GPT2Tokenizer",
            "add_prefix_space": False,
            "bos_token": self.eos,
            "eos_token": self.eos,
            "unk_token": self.eos,
            "clean_up_tokenization_spaces": False,
        }
        if context is not None:
            config["model_max_length"] = context
        folder.mkdir(parents=True, exist_ok=True)
        content = with_special_tokens(self._reference, self.special_tokens).to_str(pretty=True)
        (folder / TOKENIZER_JSON).write_text(content, encoding="utf-8")
        (folder / TOKENIZER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def _encode_group(self, texts: list[str]) -> list[np.ndarray]:
        """Several documents in one call, with EOS between them, which tiktoken cuts at before it does anything else.

        A call for each would cost as much as its text does where documents are short, and threads would wait for
        each other.
        """
        joined = self.eos.join(texts)
        if self._fast is None or joined.split(self.eos) != texts:  # EOS is written in one of them
            return [self._encode(text) for text in texts]
        try:
            ids = self._fast.encode_to_numpy(joined, allowed_special={self.eos}, disallowed_special=())
        except ValueError:
            return [self._encode(text) for text in texts]
        ends = np.flatnonzero(ids == self.eos_id).tolist()
        return [ids[start:end] for start, end in zip([0, *(end + 1 for end in ends)], [*ends, len(ids)], strict=True)]

    def _encode(self, text: str) -> np.ndarray:
        if self._fast is None:
            return self._encode_slowly(text)
        try:
            return self._fast.encode_to_numpy(text, disallowed_special=())
        except ValueError:  # half a surrogate pair; or a million spaces in a row, too many for tiktoken's regex
            return self._encode_slowly(text)

    def _encode_slowly(self, text: str) -> np.ndarray:
        """By `tokenizers`, in a batch of one: unlike its `encode`, that lets other threads run."""
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return np.array(self._reference.encode_batch_fast([text])[0].ids, dtype=np.uint32)

    @cached_property
    def _fast(self) -> tiktoken.Encoding | None:
        return fast_engine(self._vocabulary, self._reference)

    @cached_property
    def _reference(self) -> tokenizers.Tokenizer:
        return reference_engine(self._vocabulary)

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self.special_tokens, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first))})")

    @cached_property
    def _bytes(self) -> dict[int, bytes]:
        special = {number: token.encode() for token, number in self.special_tokens.items()}
        return {number: token_bytes(token) for token, number in self._vocabulary.tokens.items()} | special


def _groups(texts: Sequence[str]) -> Iterator[list[str]]:
    """Consecutive texts, as many as it takes to reach GROUP_CHARACTERS."""
    group: list[str] = []
    characters = 0
    for text in texts:
        group.append(text)
        characters += len(text)
        if characters >= GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


class TokenizerSettings(Section):
    """The `[tokenizer]` section: a tokenizer that exists, or one to be trained on the run's own text."""

    from_: str | None = Field(None, alias="from", min_length=1)
    """A folder or file, or a name on the hub ("gpt2")."""
    train: int | None = Field(None, ge=SMALLEST_VOCABULARY)
    """The size of the vocabulary to train."""

    @model_validator(mode="after")
    def _one_of_the_two(self) -> TokenizerSettings:
        if (self.from_ is None) == (self.train is None):
            found = "both are given" if self.train else "neither is given"
            raise ValueError(f'{found}; wanted one of from = "gpt2" (or a folder) and train = 32000')
        return self


def resolve_tokenizer(settings: TokenizerSettings, texts: Callable[[], Iterable[str]]) -> Tokenizer:
    """The tokenizer that the settings mean: read from a folder, else from the hub, or trained on `texts()`."""
    if settings.train is not None:
        return Tokenizer.train(texts(), settings.train)
    name = settings.from_ or ""
    path = Path(name).expanduser()
    if path.exists() or not is_hub_name(name):
        return Tokenizer.read(path)
    return Tokenizer.read(download_files(name, FILES))
