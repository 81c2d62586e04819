"""Two models beside each other: every figure again from the answers themselves, with a judge that counts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from gptlab.data.scored_text import read_text_tokens
from gptlab.data.sources import SourceSettings
from gptlab.data.windows import ScoredWindows
from gptlab.device import pick_precision
from gptlab.errors import UserError
from gptlab.evaluation.answers import answer
from gptlab.evaluation.comparison import compare_models
from gptlab.evaluation.drift import answers_kl
from gptlab.evaluation.reward_scores import mean_interval
from gptlab.evaluation.scores import Scorer
from gptlab.generation.sampling import Sampling
from gptlab.model.folder import Model
from gptlab.model.gpt import GPT, GPTShape
from gptlab.objectives.language import LanguageObjective
from gptlab.run.open import OpenModel
from gptlab.text.dialogue import Message, Template
from gptlab.text.tokenizer import Tokenizer

CPU = torch.device("cpu")
FLOAT32 = pick_precision("float32", CPU)
SAMPLING = Sampling(temperature=0.9, top_k=30)
HOW = {"sampling": SAMPLING, "max_new_tokens": 6, "seed": 4, "device": CPU, "precision": FLOAT32}
PROMPTS = [
    [Message("user", "Hello, who are you?")] if n % 2 else
    [Message("user", "Hello"), Message("assistant", "I am the user." * n), Message("user", "are you?")]
    for n in range(20)
]  # fmt: skip


class Counting:
    """A reward model that likes long dialogues, and answers with many different letters."""

    truncated = 3

    def score(self, conversations: Sequence[Sequence[Message]]) -> np.ndarray:
        assert all(turns[-1].role == "assistant" for turns in conversations)
        return np.array([10.0 * len(turns) + len(set(turns[-1].content)) for turns in conversations])


class Unsteady(Counting):
    """The same, but for what a place in a batch does to its rounding."""

    def score(self, conversations: Sequence[Sequence[Message]]) -> np.ndarray:
        return super().score(conversations) + 1e-9 * np.arange(len(conversations))


def opened(model: Model, tokenizer: Tokenizer, template: Template, name: str) -> OpenModel:
    return OpenModel(model.eval(), tokenizer, template, Path(name), name)


@pytest.fixture
def tuned(chat_model: GPT, chat_tokenizer: Tokenizer, chatml: Template) -> OpenModel:
    return opened(chat_model, chat_tokenizer, chatml, "tuned")


@pytest.fixture
def start(chat_tokenizer: Tokenizer, chatml: Template) -> OpenModel:
    torch.manual_seed(8)
    model = GPT(GPTShape(chat_tokenizer.vocab_size, context=64, n_layer=1, n_head=2, n_embd=8, tie_head=False))
    with torch.no_grad():
        model.lm_head.weight.normal_(0, 0.4)
        model.ln_f.bias.fill_(0.5)
        model.lm_head.weight[chatml.end_id(chat_tokenizer)] = 0.8  # some of its answers end
    return opened(model, chat_tokenizer, chatml, "start")


def test_every_figure_follows_from_the_answers(tuned: OpenModel, start: OpenModel, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("Hello, who are you? I am the user. " * 20)
    tokenizer = tuned.require_tokenizer()
    other = ScoredWindows(read_text_tokens(SourceSettings(path=str(tmp_path / "book.txt")), tokenizer), 64)
    told: list[str] = []
    found = compare_models(
        tuned, start, PROMPTS, **HOW, reward=Counting(), reward_name="counting", other=other, other_name="book",
        tell=told.append,
    )  # fmt: skip

    before, after = (
        answer(each.model, tokenizer, each.template, PROMPTS, SAMPLING, max_new_tokens=6, seed=4)
        for each in (start, tuned)
    )
    old, new = (
        np.array(
            [10.0 * (len(turns) + 1) + len(set(each.text.strip())) for turns, each in zip(PROMPTS, of, strict=True)]
        )
        for of in (before, after)
    )
    assert (found["start"], found["prompts"]) == ("start", 20)
    reward = found["reward"]
    assert (reward["model"], reward["truncated"]) == ("counting", 3)
    for values, names in (
        (old, ("before", "before_low", "before_high")),
        (new, ("after", "after_low", "after_high")),
        (new - old, ("difference", "low", "high")),
    ):
        assert [reward[name] for name in names] == pytest.approx([values.mean(), *mean_interval(values)])
    wins = np.select([new > old, new == old], [1.0, 0.5], 0.0)
    assert 0 < found["ties"] == int((new == old).sum()) < 20
    assert [found[f"win_rate{end}"] for end in ("", "_low", "_high")] == pytest.approx(
        [wins.mean(), *mean_interval(wins)]
    )
    assert found["answer_tokens"] == {
        "before": np.mean([each.tokens for each in before]), "after": np.mean([each.tokens for each in after])
    }  # fmt: skip
    assert 0 < found["ended"]["before"] == np.mean([each.stopped == "eos" for each in before]) < 1
    assert found["kl"] == answers_kl(tuned, start, PROMPTS, after, max_new_tokens=6, device=CPU)
    scorer = Scorer(LanguageObjective(), CPU, FLOAT32, 128)
    assert found["other_text"] == {
        "name": "book", "tokens": other.scored,
        "perplexity": {
            when: pytest.approx(scorer.text(each.model, other)["perplexity"])
            for when, each in (("before", start), ("after", tuned))
        },
    }  # fmt: skip
    shown = [n * 20 // 8 for n in range(8)]
    assert found["answers"] == [
        {
            "prompt": PROMPTS[n][-1].content, "before": before[n].text.strip(), "after": after[n].text.strip(),
            "reward_before": old[n], "reward_after": new[n],
        }
        for n in shown
    ]  # fmt: skip
    assert any("answers by tuned" in words for words in told)


def test_equal_answers_are_ties_whatever_the_rounding(tuned: OpenModel) -> None:
    found = compare_models(tuned, tuned, PROMPTS, **HOW, reward=Unsteady(), reward_name="unsteady")
    assert (found["ties"], found["win_rate"], found["win_rate_low"], found["win_rate_high"]) == (20, 0.5, 0.5, 0.5)
    assert [found["reward"][name] for name in ("difference", "low", "high")] == [0, 0, 0]
    assert found["kl"] == 0


def test_a_judge_and_another_text_may_be_left_out(tuned: OpenModel, start: OpenModel) -> None:
    found = compare_models(tuned, start, PROMPTS[:3], **HOW)
    assert found.keys() == {"start", "prompts", "answer_tokens", "ended", "kl", "answers"}
    assert [each.keys() for each in found["answers"]] == [{"prompt", "before", "after"}] * 3


def test_what_cannot_be_compared_is_said_before_anything_is_written(tuned: OpenModel, start: OpenModel) -> None:
    told: list[str] = []
    with pytest.raises(UserError, match="no prompts"):
        compare_models(tuned, start, [], **HOW)
    base = Tokenizer.train(["Hello, who are you? I am a model and you are the user."], 300)
    with pytest.raises(UserError, match="lacks tokens"):
        compare_models(
            tuned, OpenModel(start.model, base, None, Path("base"), "base"), PROMPTS, **HOW, tell=told.append
        )
    assert not told
