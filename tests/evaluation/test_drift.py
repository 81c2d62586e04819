"""The divergence of two models against all their probabilities in float64; perplexity against its definition."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from gptlab.data.scored_text import TextTokens, read_text_tokens
from gptlab.data.sources import SourceSettings
from gptlab.data.windows import ScoredWindows
from gptlab.device import pick_precision
from gptlab.errors import UserError
from gptlab.evaluation import scores
from gptlab.evaluation.answers import Answer, answer, prompt_ids
from gptlab.evaluation.drift import answers_kl, check_same_tokens, text_perplexity
from gptlab.generation.sampling import Sampling
from gptlab.model.folder import Model
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.rnn import RNN, RNNShape
from gptlab.run.open import OpenModel
from gptlab.text.dialogue import Message, Template
from gptlab.text.tokenizer import Tokenizer

CPU = torch.device("cpu")
PROMPTS = [
    [Message("user", "Hello, who are you?")],
    [Message("system", "you are a model"), Message("user", "who am I?")],
    [Message("user", "Hello"), Message("assistant", "I am the user."), Message("user", "are you?")],
]


def opened(model: Model, tokenizer: Tokenizer, template: Template | None, name: str = "tuned") -> OpenModel:
    return OpenModel(model.eval(), tokenizer, template, Path(name), name)


def random_model(vocab_size: int, context: int = 64, seed: int = 5) -> GPT:
    torch.manual_seed(seed)
    model = GPT(GPTShape(vocab_size, context=context, n_layer=2, n_head=2, n_embd=8))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.5)
    return model


def answered(model: OpenModel, max_new_tokens: int) -> list[Answer]:
    tokenizer = model.require_tokenizer()
    return answer(model.model, tokenizer, model.template, PROMPTS, Sampling(), max_new_tokens=max_new_tokens, seed=3)


def plain_kl(
    model: OpenModel, start: OpenModel, answers: Sequence[Answer], context: int, max_new_tokens: int = 20
) -> float:
    """A whole softmax for each position, in float64, an answer at a time."""
    tokenizer, template = model.require_tokenizer(), model.template
    assert template is not None
    exact = [copy.deepcopy(each.model).double() for each in (model, start)]
    nats, tokens = 0.0, 0
    for messages, each in zip(PROMPTS, answers, strict=True):
        prompt, _ = prompt_ids(messages, tokenizer, template, context, max_new_tokens)
        ids = [*prompt, *each.ids, *([template.end_id(tokenizer)] if each.stopped == "eos" else [])]
        read = torch.tensor([ids[:-1][:context]])
        with torch.no_grad():
            ours, theirs = (
                F.log_softmax(of.logits(of(read))[0, len(prompt) - 1 :, : tokenizer.vocab_size].double(), dim=1)
                for of in exact
            )
        nats += float((ours.exp() * (ours - theirs)).sum())
        tokens += len(ours)
    return nats / tokens


def test_the_divergence_is_that_of_all_probabilities(
    chat_model: GPT, chat_tokenizer: Tokenizer, chatml: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = chat_tokenizer.vocab_size
    tuned = opened(chat_model, chat_tokenizer, chatml)
    written = answered(tuned, 20)
    recurrent = RNN(RNNShape(vocabulary, context=64, n_layer=1, n_embd=8, n_hidden=8))
    for start in (random_model(vocabulary), random_model(vocabulary + 7), recurrent):  # the second's head is padded
        before = opened(start, chat_tokenizer, None, "start")
        found = answers_kl(tuned, before, PROMPTS, written, max_new_tokens=20, device=CPU)
        assert found == pytest.approx(plain_kl(tuned, before, written, 64), rel=1e-5)
        assert found > 0.01
        with monkeypatch.context() as patched:
            patched.setattr(scores, "MICRO_BATCH_TOKENS", 1)  # a row at a time
            alone = answers_kl(tuned, before, PROMPTS, written, max_new_tokens=20, device=CPU)
        assert alone == pytest.approx(found, rel=1e-5)


def test_what_was_closed_counts_with_the_token_that_closed_it(
    silent_model: GPT, chat_tokenizer: Tokenizer, chatml: Template
) -> None:
    tuned = opened(silent_model, chat_tokenizer, chatml)
    before = opened(random_model(chat_tokenizer.vocab_size), chat_tokenizer, chatml, "start")
    written = answered(tuned, 20)
    assert [(each.ids, each.stopped) for each in written] == [((), "eos")] * len(PROMPTS)
    found = answers_kl(tuned, before, PROMPTS, written, max_new_tokens=20, device=CPU)
    assert found == pytest.approx(plain_kl(tuned, before, written, 64), rel=1e-5)


def test_a_model_has_not_moved_from_itself(chat_model: GPT, chat_tokenizer: Tokenizer, chatml: Template) -> None:
    tuned = opened(chat_model, chat_tokenizer, chatml)
    assert answers_kl(tuned, tuned, PROMPTS, answered(tuned, 20), max_new_tokens=20, device=CPU) == 0


@pytest.mark.parametrize(("start_context", "max_new_tokens"), [(64, 90), (40, 20)], ids=["own context", "start's"])
def test_beyond_the_shorter_context_nothing_is_compared(
    chat_model: GPT, chat_tokenizer: Tokenizer, chatml: Template, start_context: int, max_new_tokens: int
) -> None:
    tuned = opened(chat_model, chat_tokenizer, chatml)
    before = opened(random_model(chat_tokenizer.vocab_size, start_context), chat_tokenizer, chatml, "start")
    written = answered(tuned, max_new_tokens)
    asked = [prompt_ids(messages, chat_tokenizer, chatml, start_context, max_new_tokens)[0] for messages in PROMPTS]
    assert max(len(ids) + each.tokens for ids, each in zip(asked, written, strict=True)) > start_context
    found = answers_kl(tuned, before, PROMPTS, written, max_new_tokens=max_new_tokens, device=CPU)
    assert found == pytest.approx(plain_kl(tuned, before, written, start_context, max_new_tokens), rel=1e-5)


def test_a_prompt_that_fills_the_context_is_read_as_it_was_written_from(
    chat_tokenizer: Tokenizer, chatml: Template
) -> None:
    """The engine drops its beginning; so both models are asked with its end."""
    models = [random_model(chat_tokenizer.vocab_size, 12, seed) for seed in (1, 2)]
    tuned, before = (opened(model, chat_tokenizer, chatml) for model in models)
    messages = [Message("user", "who are you? " * 9)]
    written = answer(models[0], chat_tokenizer, chatml, [messages], Sampling(greedy=True), max_new_tokens=4)
    assert written[0].reread == 1
    ids = [*chatml.prompt_ids(messages, chat_tokenizer)[-8:], *written[0].ids, chatml.end_id(chat_tokenizer)]
    read = torch.tensor([ids[: 8 + written[0].tokens - (written[0].stopped == "length")]])
    with torch.no_grad():
        ours, theirs = (F.log_softmax(model.logits(model(read))[0, 7:].double(), dim=1) for model in models)
    found = answers_kl(tuned, before, [messages], written, max_new_tokens=4, device=CPU)
    assert found == pytest.approx(float((ours.exp() * (ours - theirs)).sum(dim=1).mean()), rel=1e-5)


def test_perplexity_is_that_of_each_token(chat_model: GPT, chat_tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("Hello, who are you? I am the user. " * 20)
    tokens: TextTokens = read_text_tokens(SourceSettings(path=str(tmp_path / "book.txt")), chat_tokenizer)
    nats = 0.0
    with torch.no_grad():
        for start in range(0, tokens.count, 64):
            window = torch.tensor([tokens.eos_id, *tokens.tokens.tolist()])[start : start + 65]
            logits = chat_model.logits(chat_model(window[None, :-1]))[0]
            nats += float(F.cross_entropy(logits, window[1:], reduction="sum"))
    found = text_perplexity(chat_model, ScoredWindows(tokens, 64), device=CPU, precision=pick_precision("float32", CPU))
    assert found == pytest.approx(math.exp(nats / tokens.count), rel=1e-5)


def test_models_of_other_tokens_are_not_compared(chat_model: GPT, chat_tokenizer: Tokenizer, chatml: Template) -> None:
    plain = Tokenizer.train(["user assistant system Hello, who are you? I am a model and you are the user."] * 3, 320)
    other = Tokenizer.train(["quite another text, and so quite other tokens " * 3], 300)
    tuned = opened(chat_model, chat_tokenizer, chatml)
    with pytest.raises(UserError, match=r"base lacks tokens that tuned was given: <\|im_start\|>, <\|im_end\|>"):
        check_same_tokens(tuned, opened(random_model(plain.vocab_size), plain, None, "base"))
    with pytest.raises(UserError, match="other reads other tokens"):
        check_same_tokens(opened(random_model(plain.vocab_size), plain, None), opened(chat_model, other, None, "other"))
