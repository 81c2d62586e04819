"""Text in, text out: completions of prompts, and the `[samples]` section of a recipe."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from gptlab.generation.decoder import Decoder
from gptlab.generation.engine import Completion, generate
from gptlab.generation.sampling import Sampling
from gptlab.kernels.decode import Precision
from gptlab.model.folder import Model
from gptlab.settings import Section
from gptlab.text.tokenizer import Tokenizer


class SampleSettings(Section):
    """The prompts that show how a model develops while it is trained (`every_steps` = 0: five times a run). With
    `reward`, a reward model's name or folder, a dialogue model's answers to forty prompts that ship are scored at every
    evaluation."""

    prompts: tuple[str, ...] = Field(default=(), strict=False)  # TOML has lists only
    every_steps: int = Field(default=0, ge=0)
    temperature: float = Field(default=0.8, gt=0)
    top_k: int = Field(default=40, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_new_tokens: int = Field(default=40, ge=1)
    reward: str | None = Field(default=None, min_length=1)

    @property
    def sampling(self) -> Sampling:
        return Sampling(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)


@dataclass(frozen=True)
class TextCompletion:
    """The text written after a prompt.

    text:    what is new, without the prompt; bytes that are no UTF-8 are U+FFFD
    tokens:  how many were written (EOS not counted)
    stopped: "eos" or "length"
    reread:  how often the context was full (see generation/engine.py)
    """

    prompt: str
    text: str
    tokens: int
    stopped: Literal["eos", "length"]
    reread: int

    @property
    def whole(self) -> str:
        """The prompt and what was written on from it."""
        return self.prompt + self.text


def complete(
    model: Model | Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    max_new_tokens: int,
    seed: int = 0,
    samples: int = 1,
    on_text: Callable[[int, int, str], None] | None = None,
    precision: Precision = "float32",
) -> list[TextCompletion]:
    """`samples` completions of each prompt, ordered by prompt, then sample; precision and errors as in `generate`.

    `on_text(prompt index, sample, text)` is told the text as it is written, whole characters only: what it was
    told for one sample, joined, is the completion's `text`. An empty prompt begins as after an end of text.
    """
    written = write_text(
        model, tokenizer, [tokenizer.encode(prompt) for prompt in prompts], sampling,
        max_new_tokens=max_new_tokens, seed=seed, samples=samples, on_text=on_text, precision=precision,
    )  # fmt: skip
    return [TextCompletion(prompts[c.prompt], text, len(c.ids), c.stopped, c.reread) for c, text in written]


def write_text(
    model: Model | Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    max_new_tokens: int,
    seed: int = 0,
    samples: int = 1,
    end_id: int | None = None,
    skip_special: bool = False,
    on_text: Callable[[int, int, str], None] | None = None,
    precision: Precision = "float32",
) -> list[tuple[Completion, str]]:
    """The engine's completions of prompts that are ids, each with its text; all else as in `complete`.

    A text ends with the token `end_id`, by default the tokenizer's EOS. Other special tokens that are written stand
    in the text by their names, or are left out (`skip_special`).
    """
    stream = None if on_text is None else TextStream(tokenizer, on_text, skip_special=skip_special)
    completions = generate(
        model, prompts, sampling,
        max_new_tokens=max_new_tokens, seed=seed, samples=samples,
        eos_id=tokenizer.eos_id if end_id is None else end_id, vocab_size=tokenizer.vocab_size,
        on_token=None if stream is None else stream.write, precision=precision,
    )  # fmt: skip
    if stream is not None:
        stream.close()
    return [(c, tokenizer.decode(c.ids, skip_special=skip_special)) for c in completions]


class TextStream:
    """Tokens in, whole characters out, for many samples at once.

    A character may be spread over several tokens; it is told with the last of them. Bytes that are no UTF-8
    are told as U+FFFD. Special tokens are told by their names, or not at all (`skip_special`).
    """

    def __init__(
        self, tokenizer: Tokenizer, on_text: Callable[[int, int, str], None], *, skip_special: bool = False
    ) -> None:
        self._tokenizer, self._on_text = tokenizer, on_text
        self._skipped = frozenset(tokenizer.special_tokens.values()) if skip_special else frozenset()
        self._decoders: dict[tuple[int, int], codecs.IncrementalDecoder] = {}

    def write(self, prompt: int, sample: int, id: int) -> None:
        """The next token of a sample (what `generate` calls `on_token`)."""
        if id in self._skipped:
            return
        if (prompt, sample) not in self._decoders:
            self._decoders[prompt, sample] = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._tell(prompt, sample, self._tokenizer.bytes_of(id))

    def close(self) -> None:
        """Tells the characters that were never finished, as U+FFFD."""
        for prompt, sample in self._decoders:
            self._tell(prompt, sample, b"", final=True)

    def _tell(self, prompt: int, sample: int, data: bytes, *, final: bool = False) -> None:
        text = self._decoders[prompt, sample].decode(data, final)
        if text:
            self._on_text(prompt, sample, text)
