"""Against transformers run directly, on small random reward models in Hugging Face's format."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers import models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from gptlab.errors import ModelError, UserError
from gptlab.evaluation.reward_scores import HuggingFaceReward, mean_interval, reward_scores
from gptlab.text.dialogue import Message

LONGEST = 24
TEXT = "why is the sky blue because light scatters more than red does at night I do not know human assistant be kind"
WORDS = TEXT.split()
TEMPLATE = (
    "{% for message in messages %}{{ '[CLS] ' + message['role'] + ' ' + message['content'] + ' [SEP] ' }}{% endfor %}"
)


def talk(*contents: str) -> list[Message]:
    return [Message("assistant" if n % 2 else "user", content) for n, content in enumerate(contents)]


CONVERSATIONS = [
    talk("why is the sky blue", "light scatters more"),
    talk("why", "I do not know because light scatters more than red does at night"),
    talk("is light blue", ""),
    talk("the sky is red", "why", "I do not know", "night is red"),
]


def save(model: PreTrainedModel, folder: Path, *, template: str | None = None, **special: str) -> Path:
    """A model and a tokenizer of whole words, which marks a pair as BERT does."""
    ids = {word: n for n, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "Human", "Assistant", ":", *WORDS])}
    words = HuggingFaceTokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", **special}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=LONGEST, **special)
    tokenizer.chat_template = template
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def bert(num_labels: int = 1) -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=64, num_labels=num_labels, pad_token_id=0, initializer_range=0.5,
        )
    )  # fmt: skip


def gpt2(pad_token_id: int | None) -> GPT2ForSequenceClassification:
    torch.manual_seed(0)
    return GPT2ForSequenceClassification(
        GPT2Config(
            vocab_size=40, n_positions=64, n_embd=16, n_layer=2, n_head=2, num_labels=1, pad_token_id=pad_token_id,
            initializer_range=0.5, bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip


def deberta() -> DebertaV2ForSequenceClassification:
    """With what makes the default model a DeBERTa-v3."""
    torch.manual_seed(0)
    return DebertaV2ForSequenceClassification(
        DebertaV2Config(
            vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=64, num_labels=1, pad_token_id=0, initializer_range=0.5, type_vocab_size=0,
            relative_attention=True, position_biased_input=False, pos_att_type=["p2c", "c2p"], position_buckets=8,
            share_att_key=True, norm_rel_ebd="layer_norm", pooler_hidden_size=16,
        )
    )  # fmt: skip


@pytest.fixture(scope="module", params=[bert, deberta])
def pairs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """No chat template, a pair of texts, padding."""
    return save(request.param(), tmp_path_factory.mktemp("pairs"), pad_token="[PAD]")


@pytest.fixture(scope="module", params=["padding", "no padding"])
def templated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder with a chat template; it scores at the last token that is no padding."""
    folder = tmp_path_factory.mktemp("gpt2")
    if request.param == "no padding":
        return save(gpt2(None), folder, template=TEMPLATE)
    return save(gpt2(0), folder, template=TEMPLATE, pad_token="[PAD]")


@torch.inference_mode()
def direct(folder: Path, *inputs: str, **options: bool) -> float:
    """The score by transformers alone, one conversation at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    return model(**tokenizer(*inputs, return_tensors="pt", **options)).logits.item()


def test_a_pair_is_scored_as_transformers_does(pairs: Path) -> None:
    reward = HuggingFaceReward(pairs, "cpu")
    expected = [direct(pairs, question.content, answer.content) for question, answer in CONVERSATIONS[:3]]
    assert reward.score(CONVERSATIONS[:3]) == pytest.approx(expected, rel=1e-5)
    assert np.ptp(expected) > 0.1


def test_several_turns_of_a_pair_are_written_as_hh_does(pairs: Path) -> None:
    history = "Human: the sky is red\n\nAssistant: why\n\nHuman: I do not know"
    (score,) = HuggingFaceReward(pairs, "cpu").score([CONVERSATIONS[3]])
    assert score == pytest.approx(direct(pairs, history, "night is red"), rel=1e-5)
    with_system = [Message("system", "be kind"), *CONVERSATIONS[0]]
    (score,) = HuggingFaceReward(pairs, "cpu").score([with_system])
    expected = direct(pairs, "be kind\n\nHuman: why is the sky blue", "light scatters more")
    assert score == pytest.approx(expected, rel=1e-5)


def test_a_chat_template_is_the_models_own(templated: Path) -> None:
    reward = HuggingFaceReward(templated, "cpu")
    texts = [
        "".join(f"[CLS] {turn.role} {turn.content} [SEP] " for turn in conversation) for conversation in CONVERSATIONS
    ]
    expected = [direct(templated, text, add_special_tokens=False) for text in texts]
    assert reward.score(CONVERSATIONS) == pytest.approx(expected, rel=1e-5)
    assert np.ptp(expected) > 0.1


def in_batches_and_alone(folder: Path) -> tuple[np.ndarray, np.ndarray, list[float]]:
    together = HuggingFaceReward(folder, "cpu", batch_size=8).score(CONVERSATIONS)
    by_two = HuggingFaceReward(folder, "cpu", batch_size=2).score(CONVERSATIONS[::-1])[::-1]
    one = HuggingFaceReward(folder, "cpu", batch_size=1)
    assert (together.shape, together.dtype) == ((4,), np.float64)
    return together, by_two, [one.score([conversation])[0] for conversation in CONVERSATIONS]


def test_pairs_in_a_batch_as_alone(pairs: Path) -> None:
    together, by_two, alone = in_batches_and_alone(pairs)
    assert together == pytest.approx(alone, rel=1e-5)
    assert by_two == pytest.approx(alone, rel=1e-5)


def test_conversations_in_a_batch_as_alone(templated: Path) -> None:
    """The model looks for the last token that is no padding; one that knows of no padding is given none."""
    together, by_two, alone = in_batches_and_alone(templated)
    assert together == pytest.approx(alone, rel=1e-5)
    assert by_two == pytest.approx(alone, rel=1e-5)


def test_too_long_a_pair_loses_the_beginning_of_the_question(pairs: Path) -> None:
    reward = HuggingFaceReward(pairs, "cpu")
    question, answer = WORDS[:16] * 2, WORDS[:7]
    scores = reward.score([talk(" ".join(question), " ".join(answer)), CONVERSATIONS[0]])
    assert reward.truncated == 1
    kept = question[-(LONGEST - 3 - 7) :]  # three tokens mark the pair
    assert scores[0] == pytest.approx(direct(pairs, " ".join(kept), " ".join(answer)), rel=1e-5)
    reward.score(CONVERSATIONS[:1])
    assert reward.truncated == 0


def test_too_long_an_answer_loses_its_beginning(pairs: Path) -> None:
    reward = HuggingFaceReward(pairs, "cpu")
    answer = WORDS * 2
    (score,) = reward.score([talk("why", " ".join(answer))])
    assert reward.truncated == 1
    kept = answer[-(LONGEST - 3 - 1) :]
    assert score == pytest.approx(direct(pairs, "why", " ".join(kept)), rel=1e-5)


def test_too_long_a_conversation_loses_its_beginning(templated: Path) -> None:
    reward = HuggingFaceReward(templated, "cpu")
    (score,) = reward.score([talk(" ".join(WORDS), "I do not know")])
    assert reward.truncated == 1
    text = f"[CLS] user {' '.join(WORDS)} [SEP] [CLS] assistant I do not know [SEP]".split()
    assert score == pytest.approx(direct(templated, " ".join(text[-LONGEST:]), add_special_tokens=False), rel=1e-5)


def test_only_answers_are_scored(pairs: Path) -> None:
    with pytest.raises(UserError, match="ends with the assistant's turn"):
        HuggingFaceReward(pairs, "cpu").score([CONVERSATIONS[0][:1]])


def test_nothing_is_printed(pairs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    HuggingFaceReward(pairs, "cpu").score([*CONVERSATIONS, talk("why " * 50, "light"), talk("why", "light " * 50)])
    assert capfd.readouterr() == ("", "")


def test_models_that_are_no_reward_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has 2 outputs; a reward model has one"):
        HuggingFaceReward(save(bert(num_labels=2), tmp_path / "two"), "cpu")
    language = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=8, n_embd=4, n_layer=1, n_head=1, num_labels=1))
    with pytest.raises(ModelError, match=r"is no reward model: 1 of its weights are not there \(score\.weight"):
        HuggingFaceReward(save(language, tmp_path / "language"), "cpu")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="cannot be read as a reward model"):
        HuggingFaceReward(tmp_path / "empty", "cpu")
    with pytest.raises(UserError, match="there is no such folder"):
        HuggingFaceReward(tmp_path / "nowhere", "cpu")


@pytest.mark.slow
def test_a_name_on_the_hub(hub: Any, hub_environment: dict[str, str]) -> None:
    """All that its files are is fetched. In a process of its own: the hub's address is read at import."""
    folder = save(bert(), hub.folder / "models" / "lab" / "reward", pad_token="[PAD]")
    code = (
        "from gptlab.evaluation.reward_scores import HuggingFaceReward\nfrom gptlab.text.dialogue import Message\n"
        "talk = [Message('user', 'why is the sky blue'), Message('assistant', 'light scatters more')]\n"
        "print(HuggingFaceReward('lab/reward', 'cpu').score([talk])[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=hub_environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(direct(folder, "why is the sky blue", "light scatters more"), rel=1e-5)


def test_damaged_weights(tmp_path: Path) -> None:
    damaged = bert()
    with torch.no_grad():
        damaged.classifier.weight.fill_(torch.nan)
    with pytest.raises(ModelError, match="not finite"):
        HuggingFaceReward(save(damaged, tmp_path), "cpu").score(CONVERSATIONS[:1])


def test_without_transformers(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install 'gptlab\[reward\]'"):
        HuggingFaceReward(pairs, "cpu")


def test_reward_scores_by_hand() -> None:
    found = reward_scores(np.array([0.5, -2.0, 3.0, 0.5]), list("abcd"), list("ABCD"))
    assert found["mean"] == 0.5
    assert (found["low"], found["high"]) == mean_interval(np.array([0.5, -2.0, 3.0, 0.5]))
    assert found["best"] == {"prompt": "c", "answer": "C", "score": 3.0}
    assert found["worst"] == {"prompt": "b", "answer": "B", "score": -2.0}


@pytest.mark.parametrize("scores", [[], [1.0]])
def test_reward_scores_of_other_answers(scores: list[float]) -> None:
    with pytest.raises(UserError, match="wanted one of each"):
        reward_scores(np.array(scores), ["a"] * 2 * len(scores), ["A"] * 2 * len(scores))


def test_the_interval_is_that_of_normal_theory_where_that_holds() -> None:
    values = np.random.default_rng(5).normal(2, 3, size=400)
    low, high = mean_interval(values)
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.05 * error)
    assert mean_interval(values) == (low, high)
    assert mean_interval(values + 10) == pytest.approx((low + 10, high + 10))
    assert mean_interval(np.array([1.5])) == (1.5, 1.5)
