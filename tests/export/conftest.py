"""Small real models with a real tokenizer, as folders and as an adapter; an empty folder to work in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from gptlab.model.adapter import save_adapter
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.huggingface import load_model, save_model
from gptlab.model.lora import LoraSettings, add_lora, train_new_rows
from gptlab.text.dialogue import Message, Template
from gptlab.text.tokenizer import Tokenizer

TEXT = (
    "Once upon a time there was a town on a river, and in the town there was a mill, and she said: you can't mean it."
)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT] * 3, 320)


@pytest.fixture
def make_model(tokenizer: Tokenizer) -> Callable[..., Path]:
    """make_model(**shape) → a Hugging Face folder, with weights so large that its text is no single repeated token.

    template: a built-in, whose special tokens are added to the tokenizer; padding: tokens that no text has; taught: it
    knows TEXT, or with a template answers "Hello" with it
    """

    def make(*, template: str | None = None, padding: int = 0, taught: bool = False, **shape: object) -> Path:
        folder = Path("plain")
        spoken = None if template is None else Template.named(template, tokenizer.eos)
        own = tokenizer.with_special_tokens(spoken.special_tokens) if spoken else tokenizer
        torch.manual_seed(0)
        numbers = {"context": 64, "n_layer": 2, "n_head": 2, "n_embd": 32, **shape}
        model = GPT(GPTShape(own.vocab_size + padding, **numbers))
        if taught:
            dialogue = [Message("user", "Hello"), Message("assistant", TEXT)]
            teach(model, spoken.encode(dialogue, own)[0] if spoken else [*own.encode(TEXT), own.eos_id])
        else:
            randomize(model)
        save_model(model, folder, eos_id=spoken.end_id(own) if spoken else own.eos_id)
        own.save(folder, context=model.shape.context)
        if spoken:
            spoken.save(folder)
        return folder

    return make


@pytest.fixture
def make_adapter(make_model: Callable[..., Path]) -> Callable[..., Path]:
    """make_adapter(**model) → the folder of an adapter that has learned something, its base in "plain".

    scale: how much; new_rows: of so many tokens, the last ones, it has learned the embedding too
    """

    def make(*, scale: float = 0.1, new_rows: int = 0, **kind: object) -> Path:
        base = make_model(**kind)
        model, own = load_model(base), Tokenizer.read(base)
        add_lora(model, LoraSettings(rank=4, also_train=("layer_norms",)))
        if new_rows:
            train_new_rows(model, own.vocab_size - new_rows)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter), alpha=scale)
        save_adapter(model, Path("adapter"), base=str(base.absolute()))
        own.save(Path("adapter"))
        if template := Template.read(base, own.eos):
            template.save(Path("adapter"))
        return Path("adapter")

    return make


@torch.no_grad()
def randomize(model: GPT) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            parameter.normal_(0, 0.3)
        elif name.endswith("bias"):
            parameter.normal_(0, 0.1)


def teach(model: GPT, ids: list[int]) -> None:
    """A hundred steps on one text, which it then knows by heart."""
    optimizer, row = torch.optim.Adam(model.parameters(), lr=0.01), torch.tensor([ids[: model.shape.context + 1]])
    for _ in range(100):
        loss = cross_entropy(model.logits(model(row[:, :-1]))[0], row[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
