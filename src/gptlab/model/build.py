"""The `[model]` section of a recipe, and the model it describes."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.lora import trainable_counts
from gptlab.settings import Section

SIZES: dict[str, dict[str, int]] = {
    "mini": {"n_layer": 2, "n_head": 4, "n_embd": 128, "context": 128},
    "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 768, "context": 1024},
    "gpt2-medium": {"n_layer": 24, "n_head": 16, "n_embd": 1024, "context": 1024},
    "gpt2-large": {"n_layer": 36, "n_head": 20, "n_embd": 1280, "context": 1024},
    "gpt2-xl": {"n_layer": 48, "n_head": 25, "n_embd": 1600, "context": 1024},
}
"""Named shapes. GPT-2's four are those of Radford et al. (2019), table 2, as its released weights have them."""


AUTO_CONTEXT = 128
"""The context of size = "auto" where none is given: preparing the rows needs it before a size is chosen."""


class ModelSettings(Section):
    """A model by its size, by its shape, or a size with some of its numbers changed; with size = "auto" width, depth,
    dropout, batch and rates are chosen for the data and the minutes given (training/auto.py). Beside a recipe's `start`
    only context, which may be shortened, and dropout."""

    kind: Literal["gpt"] = "gpt"
    size: Literal["auto", "mini", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"] | None = None
    n_layer: int | None = Field(None, ge=1)
    n_head: int | None = Field(None, ge=1)
    n_embd: int | None = Field(None, ge=1)
    context: int | None = Field(None, ge=2)
    dropout: float = Field(0.1, ge=0, lt=1)
    tie_head: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> ModelSettings:
        numbers = self.numbers()
        if self.size == "auto" and (given := [name for name in numbers if name != "context"]):
            raise ValueError(f"{', '.join(given)}: is chosen by size = auto; leave one of the two out")
        if {"n_embd", "n_head"} <= numbers.keys() and numbers["n_embd"] % numbers["n_head"]:
            raise ValueError(f"n_embd = {numbers['n_embd']} is not divisible by n_head = {numbers['n_head']}")
        return self

    def missing(self) -> list[str]:
        """The numbers of a new model's shape that are neither given nor chosen."""
        return [] if self.size == "auto" else [name for name in SIZES["mini"] if name not in self.numbers()]

    def numbers(self) -> dict[str, int]:
        """n_layer, n_head, n_embd, context: the size's, with what is given beside it put in."""
        given = {name: getattr(self, name) for name in SIZES["mini"]}
        named = {"context": AUTO_CONTEXT} if self.size == "auto" else SIZES.get(self.size or "", {})
        return {**named, **{name: n for name, n in given.items() if n is not None}}

    def shape(self, vocab_size: int) -> GPTShape:
        """The shape with this vocabulary."""
        numbers: dict[str, Any] = self.numbers()
        return GPTShape(vocab_size=vocab_size, dropout=self.dropout, tie_head=self.tie_head, **numbers)


def build_model(settings: ModelSettings, vocab_size: int) -> GPT:
    """A new model with random weights (torch's global generator decides them)."""
    return GPT(settings.shape(vocab_size))


def parameter_count(model: GPT) -> int:
    """All parameters, a tied head counted once, an adapter's among them."""
    return trainable_counts(model)["all"]


def flops_per_token(model: GPT) -> float:
    """Floating-point operations a token of training takes, forward and backward.

    6 for each weight that a token is multiplied with (2 forward, 4 backward) and 12 · n_layer · n_embd · context
    for attention: Chowdhery et al., "PaLM" (2022), appendix B. Embeddings are looked up and cost nothing; the
    output layer counts, tied or not. A frozen weight has no gradient of its own, so it takes 4.
    """
    shape = model.shape
    looked_up = model.wpe.weight.numel() + (0 if shape.tie_head else model.wte.weight.numel())
    attention = 12 * shape.n_layer * shape.n_embd * shape.context
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad and p.dim() == 2)
    frozen = max(0, frozen - looked_up)
    return 6.0 * (parameter_count(model) - looked_up) - 2.0 * frozen + attention
