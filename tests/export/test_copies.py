"""A copy is told from another model; rounding, and a choice between equals, is not held against it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from gptlab.errors import GptlabError
from gptlab.export.copies import TEXTS, Answers, OwnReader, ask, compare, prompts
from gptlab.model.gpt import GPT
from gptlab.model.huggingface import load_model
from gptlab.text.dialogue import Template
from gptlab.text.tokenizer import Tokenizer


@pytest.fixture
def model(make_model: Callable[..., Path]) -> GPT:
    return load_model(make_model(tie_head=False)).eval()


@pytest.fixture
def answers(model: GPT, tokenizer: Tokenizer) -> Answers:
    return ask(OwnReader(model, tokenizer.eos_id), prompts(tokenizer, None, 64), 64)


def test_the_same_model_gives_the_same_answers(model: GPT, answers: Answers, tokenizer: Tokenizer) -> None:
    again = OwnReader(model, tokenizer.eos_id)
    assert compare(answers, again, "again") == "again: logits are equal, greedy text is equal"
    assert all(len(ids) == 32 for ids in answers.prompts), "half of the context"
    assert all(0 < len(ids) <= 24 for ids in answers.written)


@pytest.mark.parametrize("change", [0.01, float("nan")])
def test_another_model_is_noticed(model: GPT, answers: Answers, tokenizer: Tokenizer, change: float) -> None:
    with torch.no_grad():
        model.h[1].mlp.c_proj.bias[5] += change
    with pytest.raises(GptlabError, match=r"copy: its logits differ from the model's by .*: it is not the same model"):
        compare(answers, OwnReader(model, tokenizer.eos_id), "copy")


def test_logits_that_are_small_may_differ_by_less(model: GPT, tokenizer: Tokenizer) -> None:
    """Of a model that has hardly learned, all logits are near 0: 1e-3 would let any other one pass."""
    with torch.no_grad():
        model.lm_head.weight.mul_(1e-3)
    answers = ask(OwnReader(model, tokenizer.eos_id), prompts(tokenizer, None, 64), 64)
    with torch.no_grad():
        model.lm_head.weight[7] += 1e-4
    with pytest.raises(GptlabError, match="not the same model"):
        compare(answers, OwnReader(model, tokenizer.eos_id), "copy")


def test_between_equals_either_choice_is_right(model: GPT, answers: Answers, tokenizer: Tokenizer) -> None:
    first = answers.written[0][0]
    twin = (first + 1) % tokenizer.eos_id
    with torch.no_grad():
        model.lm_head.weight[twin] = model.lm_head.weight[first]
    own = OwnReader(model, tokenizer.eos_id)
    answers = ask(own, answers.prompts, 64)
    with torch.no_grad():  # as rounding would: now the other of the two is ahead
        row = model.lm_head.weight
        row[max(answers.written[0][0], twin)] += 1e-7 * torch.sign(row[first])
        row[twin if answers.written[0][0] == first else first] *= 1 + 1e-6
    assert own.write(answers.prompts[0], 1) != answers.written[0][:1]
    assert "greedy text is equal" in compare(answers, own, "copy")


class Cut(OwnReader):
    """Stops writing early."""

    def write(self, ids: Sequence[int], count: int) -> list[int]:
        return super().write(ids, count)[:-1]


def test_a_copy_that_stops_elsewhere_is_noticed(model: GPT, answers: Answers, tokenizer: Tokenizer) -> None:
    with pytest.raises(GptlabError, match="copy: writes another text than the model, greedily"):
        compare(answers, Cut(model, tokenizer.eos_id), "copy")


@pytest.mark.parametrize("context", [2, 3, 10])
def test_a_context_however_short_is_enough(make_model: Callable[..., Path], tokenizer: Tokenizer, context: int) -> None:
    model = load_model(make_model(context=context)).eval()
    own = OwnReader(model, tokenizer.eos_id)
    answers = ask(own, prompts(tokenizer, None, context), context)
    assert len(answers.logits) == len(TEXTS)
    assert "equal" in compare(answers, own, "again")


def test_with_a_template_a_dialogue_is_asked_too(tokenizer: Tokenizer) -> None:
    template = Template.named("hh", tokenizer.eos)
    asked = prompts(tokenizer, template, 1000)
    assert len(asked) == len(TEXTS) + 1
    assert tokenizer.decode(asked[-1]) == f"\n\nHuman: {TEXTS[0]}\n\nAssistant:"
