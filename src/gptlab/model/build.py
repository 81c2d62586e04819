"""The `[model]` section of a recipe, and the model it describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from gptlab.model.classifier import HEADS, new_model
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.lora import trainable_counts
from gptlab.model.rnn import RNN, RNNShape
from gptlab.model.weights import tied
from gptlab.settings import Section

SIZES: dict[str, dict[str, int]] = {
    "mini": {"n_layer": 2, "n_head": 4, "n_embd": 128, "context": 128},
    "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 768, "context": 1024},
    "gpt2-medium": {"n_layer": 24, "n_head": 16, "n_embd": 1024, "context": 1024},
    "gpt2-large": {"n_layer": 36, "n_head": 20, "n_embd": 1280, "context": 1024},
    "gpt2-xl": {"n_layer": 48, "n_head": 25, "n_embd": 1600, "context": 1024},
}
"""Named shapes. GPT-2's four are those of Radford et al. (2019), table 2, as its released weights have them."""

RNN_NUMBERS = ("n_layer", "n_embd", "context", "n_hidden")

AUTO_CONTEXT = 128
"""The context of size = "auto" where none is given: preparing the rows needs it before a size is chosen."""


class ModelSettings(Section):
    """A model by its size, by its shape, or a size with some of its numbers changed; with size = "auto" width, depth,
    dropout, batch and rates are chosen for the data and the minutes given (training/auto.py). The other kinds, RNNs,
    have no sizes and no heads; their `n_hidden` is n_embd where it is not given.

    Beside a recipe's `start` only context, which may be shortened, dropout, and `keep_layers`: those of the start's
    layers that the model has, numbered from 0, or "every-second" (Sanh et al., "DistilBERT", 2019, section 3).
    """

    kind: Literal["gpt", "rnn", "gru", "lstm"] = "gpt"
    size: Literal["auto", "mini", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"] | None = None
    n_layer: int | None = Field(None, ge=1)
    n_head: int | None = Field(None, ge=1)
    n_embd: int | None = Field(None, ge=1)
    n_hidden: int | None = Field(None, ge=1)
    context: int | None = Field(None, ge=2)
    dropout: float = Field(0.1, ge=0, lt=1)
    tie_head: bool = True
    keep_layers: tuple[int, ...] | Literal["every-second"] | None = None

    @field_validator("keep_layers", mode="before")
    @classmethod
    def _layers(cls, value: Any) -> Any:
        if value is None or value == "every-second":
            return value
        layers = value if isinstance(value, list | tuple) else ()
        ascending = all(type(layer) is int for layer in layers) and list(layers) == sorted(set(layers))
        if not layers or not ascending or layers[0] < 0:
            raise ValueError(f'{value!r}: wanted "every-second", or layers in ascending order, as [0, 2, 4]')
        return tuple(layers)

    @model_validator(mode="before")
    @classmethod
    def _tied_where_it_can_be(cls, tree: Any) -> Any:
        """The output layer of an RNN of two widths cannot share the embedding's weights, and need not be told."""
        if not isinstance(tree, dict) or tree.get("n_hidden") in (None, tree.get("n_embd")):
            return tree
        return {"tie_head": False, **tree}

    @model_validator(mode="after")
    def _consistent(self) -> ModelSettings:
        if self.kind == "gpt":
            self._is_a_gpt()
        else:
            self._is_an_rnn()
        return self

    def _is_a_gpt(self) -> None:
        numbers = self.numbers()
        if self.n_hidden is not None:
            raise ValueError("n_hidden: is the width of an RNN (kind = rnn, gru or lstm); a GPT's is n_embd")
        if self.size == "auto" and (given := [name for name in numbers if name != "context"]):
            raise ValueError(f"{', '.join(given)}: is chosen by size = auto; leave one of the two out")
        if {"n_embd", "n_head"} <= numbers.keys() and numbers["n_embd"] % numbers["n_head"]:
            raise ValueError(f"n_embd = {numbers['n_embd']} is not divisible by n_head = {numbers['n_head']}")

    def _is_an_rnn(self) -> None:
        if self.size is not None:
            wanted = ", ".join(RNN_NUMBERS[:-1])
            raise ValueError(f"size = {self.size}: is a GPT's; for kind = {self.kind} give {wanted}, perhaps n_hidden")
        if self.n_head is not None:
            raise ValueError(f"n_head: kind = {self.kind} has no attention, so no heads; leave it out")
        if not self.missing():
            self.shape(vocab_size=1)  # says what does not go together

    def missing(self) -> list[str]:
        """The numbers of a new model's shape that are neither given nor chosen."""
        return [] if self.size == "auto" else [name for name in self._names() if name not in self.numbers()]

    def numbers(self) -> dict[str, int]:
        """n_layer, n_head, n_embd, context: the size's, with what is given beside it put in. Of an RNN n_layer, n_embd,
        context, n_hidden."""
        named: Mapping[str, int | None]
        if self.kind != "gpt":
            named = {"n_hidden": self.n_embd}
        else:
            named = {"context": AUTO_CONTEXT} if self.size == "auto" else SIZES.get(self.size or "", {})
        return {name: n for name in self._names() if (n := getattr(self, name) or named.get(name))}

    def _names(self) -> tuple[str, ...]:
        return tuple(SIZES["mini"]) if self.kind == "gpt" else RNN_NUMBERS

    def shape(self, vocab_size: int) -> GPTShape | RNNShape:
        """The shape with this vocabulary."""
        common: dict[str, Any] = {**self.numbers(), "dropout": self.dropout, "tie_head": self.tie_head}
        if self.kind == "gpt":
            return GPTShape(vocab_size=vocab_size, **common)
        return RNNShape(vocab_size=vocab_size, cell=self.kind, **common)


def build_model(settings: ModelSettings, vocab_size: int) -> GPT | RNN:
    """A new model with random weights (torch's global generator decides them)."""
    return new_model(settings.shape(vocab_size))


def parameter_count(model: GPT | RNN) -> int:
    """All parameters, a tied head counted once, an adapter's among them."""
    return trainable_counts(model)["all"]


def flops_per_token(model: GPT | RNN) -> float:
    """Floating-point operations a token of training takes, forward and backward.

    6 for each weight that a token is multiplied with (2 forward, 4 backward), in a GPT 12 · n_layer · n_embd · context
    for attention: Chowdhery et al., "PaLM" (2022), appendix B. Embeddings are looked up and cost nothing; a language
    model's output layer counts, tied or not. A frozen weight has no gradient of its own, so it takes 4; where the whole
    body is frozen nothing goes back through it, and it takes 2.
    """
    looked_up = 0 if tied(model) else model.wte.weight.numel()
    attention = 0
    if isinstance(model, GPT):
        looked_up += model.wpe.weight.numel()
        attention = 12 * model.shape.n_layer * model.shape.n_embd * model.shape.context
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad and p.dim() == 2)
    frozen = max(0, frozen - looked_up)
    backward = any(p.requires_grad for name, p in model.named_parameters() if not name.startswith(HEADS))
    saved = 2.0 * frozen if backward else 4.0 * frozen + attention * 2 / 3
    return 6.0 * (parameter_count(model) - looked_up) + attention - saved
