"""A reward model gives the rewards and gradients of transformers' GPT2ForSequenceClassification with one label, in both
directions of the format and of PEFT's over it; what TRL's RewardTrainer has saved opens."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, GPT2Config, GPT2ForSequenceClassification

from gptlab.evaluation.reward_scores import HuggingFaceReward, open_reward
from gptlab.model.adapter import adapter_labels, load_adapter, save_adapter
from gptlab.model.classifier import REWARD, GPTClassifier, as_classifier, task_of
from gptlab.model.folder import load_model, read_labels, save_model
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.huggingface import CONV1D
from gptlab.model.lora import LoraSettings, add_lora, merge_lora
from gptlab.run.checkpoint import save_parts
from gptlab.run.open import open_model
from gptlab.text.dialogue import Message, Template
from gptlab.text.tokenizer import Tokenizer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the quantisers that PEFT looks for
    from peft import LoraConfig, PeftModel, get_peft_model

END, EOS = 99, 100
LENGTHS = (33, 7, 20, 2)
SHAPE = GPTShape(vocab_size=101, context=33, n_layer=2, n_head=4, n_embd=32)


def randomize(model: torch.nn.Module) -> None:
    """Weights far from the start, so that nothing is zero or one by chance."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))


def answers(end: int = END) -> list[Tensor]:
    """Of uneven lengths, each ending with what closes it."""
    torch.manual_seed(1)
    return [torch.cat([torch.randint(END, (length - 1,)), torch.tensor([end])]) for length in LENGTHS]


def padded(rows: list[Tensor], padding: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)


def rewards(model: GPTClassifier, rows: list[Tensor]) -> Tensor:
    """Ours, (rows,), of rows in one batch; what stands behind a row's end is another token than transformers'."""
    last = torch.tensor([len(row) - 1 for row in rows])
    return model.classify(model(padded(rows, 3))[torch.arange(len(rows)), last])[:, 0]


def each_alone(model: Any, rows: list[Tensor]) -> Tensor:
    """Theirs, (rows,), of one row at a time."""
    return torch.cat([model(row[None]).logits[:, 0] for row in rows])


def preference_loss(found: Tensor) -> Tensor:
    """Bradley and Terry's, of rows that are two and two a pair; and the squares, without which the last bias has no
    gradient: it is in both rewards."""
    return -F.logsigmoid(found[::2] - found[1::2]).sum() + 0.1 * found.square().sum()


def assert_equal_in_a_batch(ours: GPTClassifier, theirs: GPT2ForSequenceClassification) -> None:
    """Rewards of a padded batch, with and without an attention mask, and of rows alone; the gradients of a loss over
    pairs: to 1e-5."""
    ours.eval()
    theirs.eval()
    rows = answers()
    batch, mask = padded(rows, EOS), padded([torch.ones(length, dtype=torch.int64) for length in LENGTHS], 0)
    found, expected = rewards(ours, rows), theirs(batch, attention_mask=mask).logits[:, 0]
    assert found.std() > 0.05
    for other in (expected, theirs(batch).logits[:, 0], each_alone(theirs, rows)):
        torch.testing.assert_close(found, other, atol=1e-5, rtol=0)
    for row, together in zip(rows, found, strict=True):
        torch.testing.assert_close(rewards(ours, [row])[0], together, atol=1e-5, rtol=0)
    preference_loss(found).backward()
    preference_loss(expected).backward()
    gradients = {
        name.removeprefix("transformer."): parameter.grad.t() if name.endswith(CONV1D) else parameter.grad
        for name, parameter in theirs.named_parameters()
    }
    assert gradients.keys() == dict(ours.named_parameters()).keys()
    for name, parameter in ours.named_parameters():
        assert parameter.grad.abs().max() > 0, name
        torch.testing.assert_close(
            parameter.grad, gradients[name], atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_transformers_reads_ours(tmp_path: Path) -> None:
    model = GPTClassifier(SHAPE, REWARD)
    randomize(model)
    save_model(model, tmp_path, eos_id=END, bos_id=EOS)
    theirs, report = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(theirs, GPT2ForSequenceClassification)
    assert not any(report.values()), report
    assert (theirs.config.num_labels, theirs.config.id2label) == (1, {0: "reward"})
    assert theirs.config.problem_type == "regression"
    assert_equal_in_a_batch(model, theirs)


@torch.no_grad()
def test_an_answer_that_closes_with_the_end_of_text_is_read_to_its_end(tmp_path: Path) -> None:
    """Where that token is the padding transformers reads the reward one token before it: so none is named, and it
    refuses a batch rather than misread it."""
    model = GPTClassifier(SHAPE, REWARD)
    randomize(model)
    save_model(model.eval(), tmp_path, eos_id=EOS, bos_id=EOS)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    rows = answers(EOS)
    found = rewards(model, rows)
    torch.testing.assert_close(each_alone(theirs, rows), found, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="no padding token is defined"):
        theirs(padded(rows, EOS))
    theirs.config.pad_token_id = EOS
    assert (each_alone(theirs, rows) - found).abs().min() > 1e-3


@pytest.mark.parametrize(
    "said", [{"num_labels": 1}, {"id2label": {0: "better"}}, {"num_labels": 1, "problem_type": "regression"}], ids=str
)
def test_we_read_transformers(tmp_path: Path, said: dict[str, Any]) -> None:
    config = GPT2Config(
        vocab_size=101, n_positions=33, n_embd=32, n_layer=2, n_head=4, pad_token_id=EOS, bos_token_id=EOS,
        eos_token_id=END, **said,
    )  # fmt: skip
    theirs = GPT2ForSequenceClassification(config)
    randomize(theirs)
    theirs.save_pretrained(tmp_path)
    labels = ("better",) if "id2label" in said else ("LABEL_0",)
    assert read_labels(tmp_path) == labels
    model = load_model(tmp_path, dropout=0.0)
    assert isinstance(model, GPTClassifier)
    assert model.labels == labels
    assert_equal_in_a_batch(model, theirs)
    by_our_name = as_classifier(model, REWARD)
    torch.testing.assert_close(rewards(by_our_name, answers()), rewards(model, answers()), atol=0, rtol=0)


# Adapters. The base is a language model; the head is in the adapter alone.


def language_model(folder: Path) -> GPT:
    torch.manual_seed(0)
    model = GPT(SHAPE)
    randomize(model)
    save_model(model, folder)
    return model


def peft_base(folder: Path) -> GPT2ForSequenceClassification:
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()


@torch.no_grad()
def assert_same_rewards(ours: GPTClassifier, theirs: PeftModel) -> None:
    """With the adapter and, where that is merged, without."""
    rows = answers()
    found = rewards(ours.eval(), rows)
    assert found.std() > 0.05
    torch.testing.assert_close(found, each_alone(theirs.eval(), rows), atol=1e-5, rtol=0)
    merge_lora(ours)
    torch.testing.assert_close(rewards(ours, rows), each_alone(theirs.merge_and_unload(), rows), atol=1e-5, rtol=0)


def test_peft_reads_our_adapter(tmp_path: Path) -> None:
    model = as_classifier(language_model(tmp_path / "base"), REWARD)
    add_lora(model, LoraSettings(rank=4, also_train=("layer_norms",)))
    randomize(model)
    save_adapter(model, tmp_path / "adapter", base=str(tmp_path / "base"))
    assert adapter_labels(tmp_path / "adapter") == REWARD
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT only warns of keys that are missing or that it does not know
        theirs = PeftModel.from_pretrained(peft_base(tmp_path / "base"), tmp_path / "adapter")
    assert isinstance(model, GPTClassifier)
    assert_same_rewards(model, theirs)


@pytest.mark.parametrize("said", [{"task_type": "SEQ_CLS"}, {"modules_to_save": ["score"]}], ids=str)
def test_we_read_peft_s_adapter(tmp_path: Path, said: dict[str, Any]) -> None:
    """The second is how TRL's documentation has it, without a task."""
    base = language_model(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = LoraConfig(r=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, **said)
        theirs = get_peft_model(peft_base(tmp_path / "base"), config)
        randomize(theirs)
        theirs.save_pretrained(tmp_path / "adapter")
    labels = adapter_labels(tmp_path / "adapter")
    assert labels == ("LABEL_0",)
    model = as_classifier(base, labels)
    load_adapter(model, tmp_path / "adapter")
    assert isinstance(model, GPTClassifier)
    assert_same_rewards(model, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("adapted", [False, True])
def test_what_trl_has_saved_opens(tmp_path: Path, adapted: bool) -> None:
    """A reward model by the lab's reader, with transformers' rewards; and it judges as TRL trained it, by
    transformers, where it is a whole model."""
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    template = Template.named("chatml", "<|endoftext|>")
    text = "user assistant Why is the sky blue? Light scatters. I do not know."
    tokenizer = Tokenizer.train([text] * 3, 320).with_special_tokens(template.special_tokens)
    torch.manual_seed(0)
    base = GPT(GPTShape(tokenizer.vocab_size, context=64, n_layer=2, n_head=2, n_embd=16))
    randomize(base)
    save_parts(tmp_path / "base", base, tokenizer, template)

    def conversation(answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": "Why is the sky blue?"}, {"role": "assistant", "content": answer}]

    pairs = [{"chosen": conversation("Light scatters."), "rejected": conversation("I do not know.")}] * 4
    settings = RewardConfig(
        output_dir=str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=2, learning_rate=0.05,
        report_to="none", save_strategy="no", use_cpu=True, bf16=False, disable_tqdm=True, gradient_checkpointing=False,
    )  # fmt: skip
    peft = LoraConfig(r=4, modules_to_save=["score"], fan_in_fan_out=True) if adapted else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = RewardTrainer(
            str(tmp_path / "base"), settings, train_dataset=Dataset.from_list(pairs), peft_config=peft
        )
        trainer.train()
        trainer.save_model(str(tmp_path / "saved"))

    opened = open_model(tmp_path / "saved", device="cpu", task="reward")
    assert task_of(opened.labels) == "reward"
    assert isinstance(opened.model, GPTClassifier)
    rows = AutoTokenizer.from_pretrained(tmp_path / "saved").apply_chat_template(
        [conversation("Light scatters."), conversation("I do not know.")], return_dict=True
    )["input_ids"]
    with torch.no_grad():
        expected = each_alone(trainer.model.eval(), [torch.tensor(row) for row in rows])
        found = rewards(opened.model, [torch.tensor(row) for row in rows])
    assert abs(expected[0] - expected[1]) > 1e-3
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    judge = open_reward(tmp_path / "saved", "cpu")
    assert isinstance(judge, HuggingFaceReward) == (not adapted)
    if not adapted:
        talks = [[Message("user", "Why is the sky blue?"), Message("assistant", "Light scatters.")]]
        assert judge.score(talks)[0] == pytest.approx(float(expected[0]), abs=1e-5)
