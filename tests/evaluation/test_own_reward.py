"""A reward model of the lab's own reads a conversation as it was trained to, alone as among others; and which reader a
name gets."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2ForSequenceClassification

from gptlab.errors import DataError, ModelError, TokenizerError, UserError
from gptlab.evaluation.own_reward import LabReward
from gptlab.evaluation.reward_scores import DEFAULT_REWARD, HuggingFaceReward, open_reward
from gptlab.model.adapter import save_adapter
from gptlab.model.classifier import REWARD, GPTClassifier, RNNClassifier, as_classifier
from gptlab.model.folder import load_model
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.lora import LoraSettings, add_lora
from gptlab.model.rnn import RNNShape
from gptlab.run.checkpoint import TrainingState, save_parts
from gptlab.run.open import OpenModel, open_model
from gptlab.run.run import Run
from gptlab.text.dialogue import Message, Template
from gptlab.text.tokenizer import Tokenizer

CONTEXT = 48
TOLERANCE = 1e-5


def talk(*contents: str) -> list[Message]:
    return [Message("assistant" if n % 2 else "user", content) for n, content in enumerate(contents)]


CONVERSATIONS = [
    talk("Hello, who are you?", "I am a model."),
    talk("Hello", "you are the user and I am a model and you are"),
    [Message("system", "you are"), *talk("who", "I am", "you are?", "")],
    talk("a model", "I"),
    talk("I am the user", "Hello", "Hello, who", "you are the user"),
]


@torch.no_grad()
def randomize(model: Any) -> Any:
    """Matrices so large that conversations differ in their reward."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.normal_(0, 0.5)
    return model.eval()


def make(tokenizer: Tokenizer, kind: str = "gpt", labels: Sequence[str] = REWARD) -> Any:
    if kind == "gpt":
        return randomize(GPTClassifier(GPTShape(tokenizer.vocab_size, CONTEXT, 2, 2, 16), labels))
    return randomize(RNNClassifier(RNNShape(tokenizer.vocab_size, CONTEXT, 2, 16, 16), labels))


@pytest.fixture(params=["gpt", "rnn"])
def opened(request: pytest.FixtureRequest, chat_tokenizer: Tokenizer, chatml: Template) -> OpenModel:
    return OpenModel(make(chat_tokenizer, request.param), chat_tokenizer, chatml, Path("somewhere"), "judge")


@torch.no_grad()
def by_hand(opened: OpenModel, ids: Sequence[int]) -> float:
    return opened.model.classify(opened.model(torch.tensor([list(ids)]))[:, -1]).item()


def closed_ids(opened: OpenModel, conversation: Sequence[Message]) -> list[int]:
    """All that the template writes, up to the token that closes the last answer."""
    template, tokenizer = opened.template, opened.require_tokenizer()
    assert template is not None
    ids, _ = template.encode(conversation, tokenizer)
    return ids[: len(ids) - ids[::-1].index(template.end_id(tokenizer))]


def test_an_answer_is_scored_at_the_token_that_closes_it(opened: OpenModel) -> None:
    reward = LabReward(opened)
    scores = reward.score(CONVERSATIONS)
    assert (scores.shape, scores.dtype, reward.truncated) == ((5,), np.float64, 0)
    assert scores == pytest.approx([by_hand(opened, closed_ids(opened, each)) for each in CONVERSATIONS], abs=TOLERANCE)
    assert np.ptp(scores) > 0.1


@pytest.mark.parametrize("batch_tokens", [1, 70, 8192])
def test_scores_do_not_depend_on_the_batch(opened: OpenModel, batch_tokens: int) -> None:
    alone = [LabReward(opened).score([each])[0] for each in CONVERSATIONS]
    reward = LabReward(opened, batch_tokens=batch_tokens)
    assert reward.score(CONVERSATIONS) == pytest.approx(alone, abs=TOLERANCE)
    assert reward.score(CONVERSATIONS[::-1]) == pytest.approx(alone[::-1], abs=TOLERANCE)


def test_the_mode_of_the_model_is_left_alone(opened: OpenModel) -> None:
    opened.model.train()
    LabReward(opened).score(CONVERSATIONS[:1])
    assert opened.model.training


def test_too_long_a_conversation_loses_its_first_turns(opened: OpenModel) -> None:
    """All but the system message, until what is left begins with a user's turn and fits."""
    system = [Message("system", "you are")]
    turns = talk(*(f"Hello {n}" for n in range(10)))
    tails = [[*system, *turns[n:]] for n in range(0, len(turns), 2)]
    fitting = next(tail for tail in tails if len(closed_ids(opened, tail)) <= CONTEXT)
    assert tails[0] != fitting != tails[-1]
    reward = LabReward(opened)
    scores = reward.score([CONVERSATIONS[0], tails[0]])
    assert reward.truncated == 1
    assert scores[1] == pytest.approx(by_hand(opened, closed_ids(opened, fitting)), abs=TOLERANCE)
    reward.score(CONVERSATIONS)
    assert reward.truncated == 0


def test_too_long_an_answer_loses_its_end(opened: OpenModel) -> None:
    question, answer = talk("Hello", "I am a model and you are the user. " * 9)
    reward = LabReward(opened)
    (score,) = reward.score([[question, answer]])
    assert reward.truncated == 1
    asked = opened.template.prompt_ids([question], opened.require_tokenizer())
    said = closed_ids(opened, [question, answer])[len(asked) :]
    assert score == pytest.approx(by_hand(opened, [asked[-1], *said[: CONTEXT - 1]]), abs=TOLERANCE)


def test_without_a_template_the_turns_are_lines(chat_tokenizer: Tokenizer) -> None:
    opened = OpenModel(make(chat_tokenizer), chat_tokenizer, None, Path("somewhere"), "judge")
    reward = LabReward(opened)
    long = talk("you are the user and I am a model. " * 6, "I am", "Hello, who are you?", "Hello")
    scores = reward.score([CONVERSATIONS[4], long])
    assert reward.truncated == 1
    ids = chat_tokenizer.encode("I am the user\nHello\nHello, who\nyou are the user")
    assert scores[0] == pytest.approx(by_hand(opened, ids), abs=TOLERANCE)
    ids = chat_tokenizer.encode("\n".join(turn.content for turn in long))
    assert scores[1] == pytest.approx(by_hand(opened, ids[-CONTEXT:]), abs=TOLERANCE)


def test_bfloat16_is_near(opened: OpenModel) -> None:
    rough = LabReward(opened, precision="bfloat16").score(CONVERSATIONS)
    assert rough == pytest.approx(LabReward(opened).score(CONVERSATIONS), abs=0.1)


def test_no_conversations_have_no_scores(opened: OpenModel) -> None:
    assert LabReward(opened).score([]).shape == (0,)


@pytest.mark.parametrize("conversation", [[], talk("Hello"), talk("Hello", "you", "who"), talk("Hello", "you")[1:]])
def test_only_answers_to_a_user_are_scored(opened: OpenModel, conversation: list[Message]) -> None:
    with pytest.raises(UserError, match="ends with the assistant's turn, its answer to the user's"):
        LabReward(opened).score([CONVERSATIONS[0], conversation])


def test_what_the_template_refuses_is_said(chat_tokenizer: Tokenizer) -> None:
    template = Template.named("hh", chat_tokenizer.eos)
    reward = LabReward(OpenModel(make(chat_tokenizer), chat_tokenizer, template, Path("somewhere"), "judge"))
    with pytest.raises(DataError, match="it has no system messages"):
        reward.score(CONVERSATIONS)


def test_damaged_weights(opened: OpenModel) -> None:
    with torch.no_grad():
        opened.model.score.weight.fill_(torch.nan)
    with pytest.raises(ModelError, match="not finite"):
        LabReward(opened).score(CONVERSATIONS)


def test_what_cannot_judge(chat_tokenizer: Tokenizer, chatml: Template, chat_model: GPT) -> None:
    def opened(model: Any, tokenizer: Tokenizer | None = chat_tokenizer, fault: str = "") -> OpenModel:
        return OpenModel(model, tokenizer, None if fault else chatml, Path("somewhere"), "judge", fault)

    with pytest.raises(UserError, match=r"judge: is a language model and gives no rewards; .* makes a reward model"):
        LabReward(opened(chat_model))
    with pytest.raises(UserError, match="judge: is a classifier of 2 classes and gives no rewards; gptlab classify ju"):
        LabReward(opened(make(chat_tokenizer, labels=("good", "bad"))))
    with pytest.raises(TokenizerError, match="has a model but no tokenizer"):
        LabReward(opened(make(chat_tokenizer), tokenizer=None))
    with pytest.raises(TokenizerError, match="judge: template x: closes an answer by nothing"):
        LabReward(opened(make(chat_tokenizer), fault="template x: closes an answer by nothing"))


# Which reader a name gets.


@pytest.fixture
def folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chat_tokenizer: Tokenizer, chatml: Template, chat_model: GPT
) -> dict[str, float]:
    """Models of all kinds in an empty folder, and the runs "judge" and "writer" there: of those that are the lab's
    reward models the name and what it makes of the first conversation."""
    monkeypatch.chdir(tmp_path)
    for kind in ("gpt", "rnn"):
        save_parts(Path(kind), make(chat_tokenizer, kind), chat_tokenizer, chatml)
    save_parts(Path("language"), chat_model, chat_tokenizer, chatml)
    for name, model in (("judge", make(chat_tokenizer)), ("writer", chat_model)):
        run = Run.create(Path("runs") / name, {"name": name}, {})
        state = TrainingState(1, {}, {}, {})
        run.save_checkpoint(1, model, chat_tokenizer, state, keep=1, best=True, template=chatml)
    adapted = as_classifier(load_model(Path("language")), REWARD)
    add_lora(adapted, LoraSettings(rank=2))
    save_adapter(randomize(adapted), Path("adapter"), base=str(Path("language").absolute()))
    chat_tokenizer.save(Path("adapter"))
    chatml.save(Path("adapter"))
    names = ("gpt", "rnn", "adapter", "judge", "runs/judge", "runs/judge/checkpoints/000001")
    return {name: LabReward(open_model(name, device="cpu")).score(CONVERSATIONS[:1])[0] for name in names}


def test_the_labs_own_are_read_by_the_lab(folders: dict[str, float]) -> None:
    for name, score in folders.items():
        for given in (name, Path(name)):
            reward = open_reward(given, "cpu")
            assert isinstance(reward, LabReward), name
            assert reward.score(CONVERSATIONS[:1])[0] == pytest.approx(score, abs=TOLERANCE)
    Path("runs").rename("elsewhere")
    assert isinstance(open_reward("judge", "cpu", Path("elsewhere")), LabReward)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_others_are_read_by_transformers(folders: dict[str, float], chat_tokenizer: Tokenizer, kind: str) -> None:
    """A GPT-2 too, whose trainer decided where its reward stands."""
    size = chat_tokenizer.vocab_size
    if kind == "bert":
        shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        model: Any = BertForSequenceClassification(BertConfig(vocab_size=size, num_labels=1, pad_token_id=0, **shape))
    else:
        shape = {"n_positions": CONTEXT, "n_embd": 16, "n_layer": 1, "n_head": 2}
        ends = {"bos_token_id": 0, "eos_token_id": 0}
        model = GPT2ForSequenceClassification(GPT2Config(vocab_size=size, num_labels=1, **shape, **ends))
    model.save_pretrained("theirs")
    chat_tokenizer.save(Path("theirs"), context=CONTEXT)
    reward = open_reward("theirs", "cpu")
    assert isinstance(reward, HuggingFaceReward)
    direct = HuggingFaceReward("theirs", "cpu").score(CONVERSATIONS[:1])
    assert reward.score(CONVERSATIONS[:1]) == pytest.approx(direct)


def test_what_is_no_reward_model_is_refused_by_name(folders: dict[str, float]) -> None:
    with pytest.raises(UserError, match="writer: is a language model and gives no rewards"):
        open_reward("writer", "cpu")
    with pytest.raises(ModelError, match="language: has 2 outputs; a reward model has one"):
        open_reward("language", "cpu")
    with pytest.raises(ModelError, match=r"\./jugde: there is no folder jugde and no run"):
        open_reward("./jugde", "cpu")


@pytest.mark.slow
def test_names_on_the_hub(hub: Any, hub_environment: dict[str, str], folders: dict[str, float]) -> None:
    """What a model is, is told before its weights are fetched. In a process of its own: the hub's address is read at
    import."""
    (hub.folder / "models" / "lab").mkdir(parents=True)
    Path("gpt").rename(hub.folder / "models" / "lab" / "judge")
    code = (
        "from gptlab.errors import GptlabError\nfrom gptlab.evaluation.reward_scores import open_reward\n"
        "print(type(open_reward('lab/judge', 'cpu')).__name__)\n"
        "for name in ('lab/jugde', 'default'):\n"
        "    try:\n        open_reward(name, 'cpu')\n    except GptlabError as error:\n        print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=hub_environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    reader, unknown, default = done.stdout.splitlines()
    assert reader == "LabReward"
    assert unknown.startswith("lab/jugde: there is no folder lab/jugde and no run runs/lab/jugde; the hub: ")
    assert DEFAULT_REWARD in default
    fetched = [request for request in hub.requests if "/resolve/" in request]
    assert "config.json" in fetched[0]
