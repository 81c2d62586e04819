"""A very small real model with a real tokenizer, and training states for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gptlab.model.gpt import GPT, GPTShape
from gptlab.run.checkpoint import TrainingState
from gptlab.run.run import Run
from gptlab.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the cat sat on the mat and the dog sat on the cat"] * 4, 270)


@pytest.fixture
def model(tokenizer: Tokenizer) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTShape(tokenizer.vocab_size, context=16, n_layer=1, n_head=2, n_embd=16))


@pytest.fixture
def state_at(model: GPT) -> Callable[[int], TrainingState]:
    def make(step: int) -> TrainingState:
        optimizer = {f"{name}.exp_avg": torch.randn_like(p) for name, p in model.named_parameters()}
        return TrainingState(step, {"best": float("inf"), "seen": 12}, optimizer, {"cpu": torch.get_rng_state()})

    return make


@pytest.fixture
def save(model: GPT, tokenizer: Tokenizer, state_at: Callable[[int], TrainingState]) -> Callable[..., Path]:
    """Saves the model as a run's checkpoint of that step."""

    def do(run: Run, step: int, *, keep: int = 2, best: bool = False) -> Path:
        return run.save_checkpoint(step, model, tokenizer, state_at(step), keep=keep, best=best)

    return do
