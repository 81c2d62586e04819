"""Is a copy the model it is a copy of? Both are asked the same, and have to say the same.

Asked are a few texts: the logits over each, and what is written after it greedily; a classifier says its logits alone,
a reward model its reward.
The model itself, and each program that reads a copy, is a `Reader`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from gptlab.errors import GptlabError
from gptlab.generation.engine import generate
from gptlab.generation.sampling import Sampling
from gptlab.model.classifier import GPTClassifier
from gptlab.model.gpt import GPT
from gptlab.text.dialogue import Message, Template
from gptlab.text.tokenizer import Tokenizer

TEXTS = (
    "The town lies on a river, and most of those who live there now came with the railway in 1842.",
    '"You can\'t mean that," she said, and looked at him as if he had just come in — "or can you?"',
    "def mean(values):\n    return sum(values) / len(values)\n\n# Café, Zürich, 東京 🙂\n",
)
"""Ordinary text of three kinds."""

WRITTEN = 24
"""Tokens written after each."""

TOLERANCE = 1e-3
"""How far two logits may be apart in float32, at most, however large they are; and…"""

RELATIVE_TOLERANCE = 1e-4
"""… as a share of the largest. Two orders of the same sums differ by a few millionths of it."""


class Reader(Protocol):
    """A program that has read a model."""

    def logits(self, ids: Sequence[int]) -> Tensor:
        """The logits (len(ids), vocab_size) float32 after each of these tokens; a classifier's (1, classes)."""
        ...

    def write(self, ids: Sequence[int], count: int) -> list[int]:
        """The tokens that follow greedily: `count`, or fewer and the one that ends a text; a classifier has none."""
        ...


@dataclass(frozen=True)
class Answers:
    """What a model said to some texts; for each one

    prompts: its ids
    written: the ids that followed it
    logits:  (len(prompt) + len(written), vocab_size) over both; of a classifier (1, classes)
    """

    prompts: list[list[int]]
    written: list[list[int]]
    logits: list[Tensor]


def prompts(tokenizer: Tokenizer, template: Template | None, context: int) -> list[list[int]]:
    """What is asked, in ids, each at most half a context long; with a template, one of them as a dialogue."""
    texts = [tokenizer.encode(text) for text in TEXTS]
    if template is not None:
        texts.append(template.prompt_ids([Message("user", TEXTS[0])], tokenizer))
    return [ids[-max(1, context // 2) :] for ids in texts]


def ask(reader: Reader, prompts: Sequence[Sequence[int]], context: int) -> Answers:
    """The answers of a model that reads `context` tokens."""
    written = [reader.write(ids, min(WRITTEN, context - len(ids))) for ids in prompts]
    logits = [reader.logits([*ids, *more]) for ids, more in zip(prompts, written, strict=True)]
    return Answers([list(ids) for ids in prompts], written, logits)


def compare(answers: Answers, reader: Reader, name: str, *, tolerance: float | None = None) -> str:
    """Asks `reader` too and says how near its answers are; GptlabError where it is not the same model.

    tolerance: how far logits may be apart; by default what another order of the same sums in float32 explains
    """
    largest = max(float(logits.abs().max()) for logits in answers.logits)
    if tolerance is None:
        tolerance = min(TOLERANCE, RELATIVE_TOLERANCE * largest)
    difference = 0.0
    for prompt, written, logits in zip(answers.prompts, answers.written, answers.logits, strict=True):
        apart = float((reader.logits([*prompt, *written]) - logits).abs().max())
        if not apart <= tolerance:  # also where it is NaN
            raise GptlabError(
                f"{name}: its logits differ from the model's by {apart:.1e}, and may by {tolerance:.1e}: it is not the "
                "same model"
            )
        difference = max(difference, apart)
        _compare_text(written, reader.write(prompt, len(written)), logits[len(prompt) - 1 :], name, tolerance)
    near = f"differ by at most {difference:.1e} (the largest is {largest:.3g})" if difference else "are equal"
    return f"{name}: logits {near}{', greedy text is equal' if any(answers.written) else ''}"


def _compare_text(written: Sequence[int], found: Sequence[int], logits: Tensor, name: str, tolerance: float) -> None:
    """GptlabError at the first other token, unless the two were as good as equally probable: then either is right.

    `logits` (…, vocab_size) are those that each of `written` was chosen by.
    """
    for ours, theirs, row in zip_longest(written, found, logits[: len(written)]):
        if ours == theirs:
            continue
        if ours is None or theirs is None or row[ours] - row[theirs] > 2 * tolerance:
            raise GptlabError(f"{name}: writes another text than the model, greedily: {found}, not {written}")
        return


class OwnReader:
    """This lab."""

    def __init__(self, model: GPT, end_id: int) -> None:
        self.model, self.end_id = model, end_id

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> Tensor:
        return self.model.logits(self.model(torch.tensor([list(ids)])))[0].float()

    def write(self, ids: Sequence[int], count: int) -> list[int]:
        (text,) = generate(self.model, [ids], Sampling(greedy=True), max_new_tokens=count, eos_id=self.end_id)
        return [*text.ids, *([self.end_id] if text.stopped == "eos" else [])]


class OwnClassifier:
    """This lab, with a classifier."""

    def __init__(self, model: GPTClassifier) -> None:
        self.model = model

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> Tensor:
        return self.model.classify(self.model(torch.tensor([list(ids)]))[:, -1]).float()

    def write(self, ids: Sequence[int], count: int) -> list[int]:
        return []


def own_reader(model: GPT, end_id: int) -> Reader:
    """This lab, with a model of either kind; a language model's text ends with `end_id`."""
    return OwnClassifier(model) if isinstance(model, GPTClassifier) else OwnReader(model, end_id)


class TransformersReader:
    """A model that transformers or PEFT has loaded."""

    def __init__(self, model: Any) -> None:
        self.model = model.eval()

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> Tensor:
        return self.model(torch.tensor([list(ids)])).logits[0].float()

    def write(self, ids: Sequence[int], count: int) -> list[int]:
        row = torch.tensor([list(ids)])
        end = self.model.generation_config.eos_token_id
        whole = self.model.generate(
            input_ids=row, attention_mask=torch.ones_like(row), do_sample=False, max_new_tokens=count, pad_token_id=end
        )
        return whole[0, len(ids) :].tolist()


class TransformersClassifier:
    """A classifier that transformers or PEFT has loaded."""

    def __init__(self, model: Any) -> None:
        self.model = model.eval()

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> Tensor:
        return self.model(torch.tensor([list(ids)])).logits.float()

    def write(self, ids: Sequence[int], count: int) -> list[int]:
        return []


class LlamaCppReader:
    """llama.cpp, by llama-cpp-python. Keys and values are float32, as everywhere else here."""

    def __init__(self, file: Path, context: int) -> None:
        llama_cpp: Any = import_module("llama_cpp")
        exact = llama_cpp.GGML_TYPE_F32
        self.model = llama_cpp.Llama(
            str(file), n_ctx=context, logits_all=True, type_k=exact, type_v=exact, verbose=False
        )

    def encode(self, text: str) -> list[int]:
        return self.model.tokenize(text.encode(), add_bos=False, special=False)

    def logits(self, ids: Sequence[int]) -> Tensor:
        self.model.reset()
        self.model.eval(list(ids))
        return torch.from_numpy(self.model.scores[: len(ids)].copy())

    def write(self, ids: Sequence[int], count: int) -> list[int]:
        written: list[int] = []
        for token in self.model.generate(list(ids), temp=0.0):
            written.append(token)
            if len(written) == count or token == self.model.token_eos():
                break
        return written

    def close(self) -> None:
        self.model.close()
