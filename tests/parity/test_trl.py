"""Losses, rewards and gradients of pairs are those of TRL's DPOTrainer, RewardTrainer and CPOTrainer (SimPO), from the
same weights and the same pairs of uneven lengths."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gptlab.data.batch import IGNORE, Batch, ValuedRows, pad_rows
from gptlab.device import Precision
from gptlab.evaluation.preference_scores import answer_log_probs, pair_rewards
from gptlab.model.folder import load_model
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.huggingface import CONV1D, save_model
from gptlab.objectives.base import Objective
from gptlab.objectives.dpo import DPOObjective, DPOSettings
from gptlab.objectives.reward import RewardObjective
from gptlab.text.tokenizer import Tokenizer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        GPT2Config,
        GPT2ForSequenceClassification,
        PreTrainedTokenizerBase,
    )
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer
    from trl.experimental.cpo import CPOConfig, CPOTrainer

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

CPU, FLOAT32 = torch.device("cpu"), Precision("float32", torch.float32, "")
PADDING = "<|padding|>"
CONTEXT = 96

PAIRS = [
    ("What is a list?\n", "A sequence that can change.", "No."),
    (
        "And a tuple?\n",
        "It is a sequence too, but it cannot be changed once it is made.",
        "A list with other brackets.",
    ),
    ("Why?\n", "Because its items may be keys of a dictionary then.", "Because, because, because, because, because."),
    ("How do I read a file line by line without having all of it in memory?\n", "Loop over it.", "Read it whole, then"),
    ("Thanks!\n", "You are welcome.", "You are"),
]
"""Prompts that end where a token does, whatever follows."""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """With a token for padding, since TRL's reward model would overlook an EOS that is padding too."""
    text = "\n".join(" ".join(pair) for pair in PAIRS)
    return Tokenizer.train([text] * 3, 300).with_special_tokens([PADDING])


@pytest.fixture
def their_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> PreTrainedTokenizerBase:
    tokenizer.save(tmp_path / "tokenizer")
    return AutoTokenizer.from_pretrained(tmp_path / "tokenizer", pad_token=PADDING)


@pytest.fixture
def dataset() -> Dataset:
    return Dataset.from_list([dict(zip(("prompt", "chosen", "rejected"), pair, strict=True)) for pair in PAIRS])


def arguments(folder: Path, **given: Any) -> dict[str, Any]:
    """Of every trainer: nothing of the network, of other precisions or of other memory."""
    return {
        "output_dir": str(folder / "out"), "use_cpu": True, "bf16": False, "report_to": "none", "max_length": CONTEXT,
        "gradient_checkpointing": False, **given,
    }  # fmt: skip


class Rows:
    """Pairs as TRL has tokenized them: the ids of each answer's sequence, and where the answer begins."""

    context, scored = CONTEXT, len(PAIRS)

    def __init__(self, pairs: Sequence[tuple[tuple[list[int], int], tuple[list[int], int]]], last: bool = False):
        self.pairs, self.last = pairs, last

    def __len__(self) -> int:
        return len(self.pairs)

    def lengths(self) -> np.ndarray:
        return np.array([[len(ids) - start for ids, start in pair] for pair in self.pairs])

    def batch(self, rows: np.ndarray, epoch: int = 0) -> Batch:
        sequences = [self._sequence(ids, start) for row in rows for ids, start in self.pairs[row]]
        return pad_rows(sequences, rows, pairs=True)

    def _sequence(self, ids: list[int], start: int) -> tuple[list[int], list[int]]:
        if self.last:
            return ids, [IGNORE] * (len(ids) - 1) + [0]
        return ids[:-1], [IGNORE] * (start - 1) + ids[start:]


def whole(rows: Any) -> Batch:
    return rows.batch(np.arange(len(rows)))


def assert_tokenized_as_ours(rows: Rows, tokenizer: Tokenizer, *, begins_with: Sequence[int] = ()) -> None:
    for (prompt, *answers), pair in zip(PAIRS, rows.pairs, strict=True):
        start = [*begins_with, *tokenizer.encode(prompt)]
        assert pair == tuple(([*start, *tokenizer.encode(answer), tokenizer.eos_id], len(start)) for answer in answers)
    assert len(set(rows.lengths().flatten())) > 5


def language_model(folder: Path, tokenizer: Tokenizer, seed: int) -> tuple[GPT, Any]:
    """The same random weights, far from the start, in ours and in transformers'."""
    torch.manual_seed(seed)
    model = GPT(GPTShape(tokenizer.vocab_size, CONTEXT, n_layer=2, n_head=4, n_embd=32))
    randomize(model)
    save_model(model, folder / str(seed), eos_id=tokenizer.eos_id)
    return model, AutoModelForCausalLM.from_pretrained(folder / str(seed), dtype=torch.float32)


def randomize(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def assert_same_step(
    ours: nn.Module, objective: Objective, batch: Batch, theirs: nn.Module, their_loss: Tensor
) -> dict:
    """The mean loss, and every parameter's gradient to 1e-5 of its largest number, or of a hundredth of the largest of
    all: a reward model's ln_f.bias has none, for it shifts both rewards alike. Returns our means over pairs."""
    sums = objective(ours, batch)
    (sums["loss"] / len(batch)).backward()
    torch.testing.assert_close(sums["loss"] / len(batch), their_loss, rtol=1e-5, atol=0)
    their_gradients = {
        name.removeprefix("transformer."): parameter.grad.t() if name.endswith(CONV1D) else parameter.grad
        for name, parameter in theirs.named_parameters()
    }
    assert their_gradients.keys() == dict(ours.named_parameters()).keys()
    largest = max(gradient.abs().max().item() for gradient in their_gradients.values())
    for name, parameter in ours.named_parameters():
        scale = max(their_gradients[name].abs().max().item(), largest / 100)
        torch.testing.assert_close(
            parameter.grad, their_gradients[name], rtol=0, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )
    return {key: value.item() / len(batch) for key, value in sums.items()}


DPO_CASES: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "sigmoid": ({"beta": 0.3}, {"loss_type": ["sigmoid"], "beta": 0.3}, False),
    # of one pair at a time, where there is nothing to sort, it is cDPO's formula
    "smoothed": (
        {"beta": 0.3, "label_smoothing": 0.1}, {"loss_type": ["aot"], "beta": 0.3, "label_smoothing": 0.1}, True
    ),
    "ipo": ({"beta": 0.3, "loss": "ipo"}, {"loss_type": ["ipo"], "beta": 0.3}, False),
}  # fmt: skip


@pytest.mark.parametrize(("given", "their_arguments", "one_by_one"), DPO_CASES.values(), ids=DPO_CASES)
def test_dpo(
    given: dict[str, Any], their_arguments: dict[str, Any], one_by_one: bool, tokenizer: Tokenizer,
    their_tokenizer: PreTrainedTokenizerBase, dataset: Dataset, tmp_path: Path,
) -> None:  # fmt: skip
    policy, their_policy = language_model(tmp_path, tokenizer, 0)
    reference, their_reference = language_model(tmp_path, tokenizer, 1)
    trainer = DPOTrainer(
        their_policy, their_reference, DPOConfig(**arguments(tmp_path, **their_arguments)), train_dataset=dataset,
        processing_class=their_tokenizer,
    )  # fmt: skip
    their_policy.train()  # the mode whose metrics are looked at; TRL has put dropout off
    features = list(trainer.train_dataset)
    rows = Rows(
        [tuple((row["prompt_ids"] + row[f"{side}_ids"], len(row["prompt_ids"])) for side in ("chosen", "rejected"))
         for row in features]
    )  # fmt: skip
    assert_tokenized_as_ours(rows, tokenizer)

    log_probs = answer_log_probs(reference, rows, device=CPU, precision=FLOAT32, micro_batch_size=3)
    their_log_probs = trainer.compute_ref_log_probs(trainer.ref_model, trainer.data_collator(features))
    np.testing.assert_allclose(log_probs, torch.stack(their_log_probs, dim=1), rtol=1e-5)

    their_loss = torch.zeros(())
    for part in ([row] for row in features) if one_by_one else [features]:
        loss = trainer.compute_loss(trainer.model, trainer.data_collator(part)) * len(part) / len(features)
        loss.backward()
        their_loss += loss.detach()
    objective = DPOObjective(DPOSettings(**given))
    batch = whole(ValuedRows(rows, {"reference": torch.from_numpy(log_probs)}))
    found = assert_same_step(policy, objective, batch, their_policy, their_loss)
    for ours, name in {
        "chosen_reward": "rewards/chosen", "rejected_reward": "rewards/rejected", "margin": "rewards/margins",
        "accuracy": "rewards/accuracies", "chosen_log_prob": "logps/chosen", "rejected_log_prob": "logps/rejected",
    }.items():  # fmt: skip
        assert found[ours] == pytest.approx(np.mean(trainer._metrics["train"][name]), rel=1e-5), ours


def test_simpo(
    tokenizer: Tokenizer, their_tokenizer: PreTrainedTokenizerBase, dataset: Dataset, tmp_path: Path
) -> None:
    policy, their_policy = language_model(tmp_path, tokenizer, 0)
    config = CPOConfig(**arguments(tmp_path, loss_type="simpo", cpo_alpha=0.0, beta=2.0, simpo_gamma=0.8))
    trainer = CPOTrainer(their_policy, config, train_dataset=dataset, processing_class=their_tokenizer)
    features = list(trainer.train_dataset)
    rows = Rows(
        [tuple((row[f"{side}_input_ids"], row[f"{side}_labels"].count(IGNORE)) for side in ("chosen", "rejected"))
         for row in features]
    )  # fmt: skip
    assert_tokenized_as_ours(rows, tokenizer, begins_with=[tokenizer.eos_id])

    their_loss, metrics = trainer.compute_loss(trainer.model, trainer.data_collator(features), return_outputs=True)
    their_loss.backward()
    objective = DPOObjective(DPOSettings(loss="simpo", beta=2.0, gamma=0.8))
    found = assert_same_step(policy, objective, whole(rows), their_policy, their_loss.detach())
    for ours, name in {
        "chosen_reward": "rewards/chosen", "rejected_reward": "rewards/rejected", "margin": "rewards/margins",
        "accuracy": "rewards/accuracies",
    }.items():  # fmt: skip
        assert found[ours] == pytest.approx(metrics[name], rel=1e-5), ours


def test_the_reward_model(
    tokenizer: Tokenizer, their_tokenizer: PreTrainedTokenizerBase, dataset: Dataset, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    theirs = GPT2ForSequenceClassification(
        GPT2Config(
            vocab_size=tokenizer.vocab_size, n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=4, num_labels=1,
            bos_token_id=tokenizer.eos_id, eos_token_id=tokenizer.eos_id,
        )
    )  # fmt: skip
    randomize(theirs)
    theirs.save_pretrained(tmp_path / "model")
    trainer = RewardTrainer(
        theirs, RewardConfig(**arguments(tmp_path)), train_dataset=dataset, processing_class=their_tokenizer
    )
    features = list(trainer.train_dataset)
    starts = [len(tokenizer.encode(prompt)) for prompt, *_ in PAIRS]
    rows = Rows(
        [tuple((row[f"{side}_ids"], start) for side in ("chosen", "rejected"))
         for row, start in zip(features, starts, strict=True)],
        last=True,
    )  # fmt: skip
    assert_tokenized_as_ours(rows, tokenizer)

    ours = load_model(tmp_path / "model", dropout=0.0)
    their_loss, outputs = trainer.compute_loss(trainer.model, trainer.data_collator(features), return_outputs=True)
    their_loss.backward()
    their_rewards = outputs.logits.detach().view(2, len(PAIRS)).t()
    rewards = pair_rewards(ours, rows, device=CPU, precision=FLOAT32, micro_batch_size=3)
    np.testing.assert_allclose(rewards, their_rewards, atol=1e-5)
    found = assert_same_step(ours, RewardObjective(), whole(rows), theirs, their_loss.detach())
    for name in ("margin", "accuracy"):
        assert found[name] == pytest.approx(trainer._metrics["train"][name][-1], rel=1e-5, abs=1e-5), name
