"""LoRA: instead of a layer's weight W (out, in) a small product is learned beside it, W + s · B · A.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021); rsLoRA is Kalajdzievski, "A Rank Stabilization
Scaling Factor for Fine-Tuning with LoRA" (2023). Names and mathematics are PEFT's, which logits and gradients are held
against (tests/parity/test_peft.py); adapter.py has its files.

    add_lora(model, LoraSettings(rank=8, alpha=16))     # in place: all but the adapter is frozen
    train_new_rows(model, 50_257)                       # tokens from this id on are new: their rows are learned too
    …
    merge_lora(model)                                   # a plain GPT again

A classifier's head (`score`) is new, so it is learned with every adapter, or alone (`freeze_body`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gptlab.errors import UserError, nearest
from gptlab.model.classifier import HEADS, is_classifier
from gptlab.model.gpt import GPT
from gptlab.model.rnn import RNN
from gptlab.settings import Section

LAYER_NORMS = ("ln_1", "ln_2", "ln_f")


class LoraSettings(Section):
    """`[lora]`. `targets`: the linear layers that get an adapter, by the end of their names ("attn.c_attn", "c_proj",
    "h.11.mlp.c_fc"). `also_train`: what is learned beside, "biases" (all of them), "layer_norms", or modules by the end
    of their names (wpe, wte, ln_f; wte with a tied head is the head too, and its 38 million numbers of GPT-2 small are
    all stored with the adapter). `rslora`: the adapter counts alpha/√rank instead of alpha/rank, so that a larger rank
    does not learn more slowly."""

    rank: int = Field(8, ge=1)
    alpha: float = Field(16, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] = Field(
        ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"), min_length=1, strict=False
    )
    also_train: tuple[str, ...] = Field((), strict=False)
    rslora: bool = False

    @property
    def scaling(self) -> float:
        """s, the factor of B · A."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class LoraLinear(nn.Module):
    """y = base_layer(x) + s · dropout(x) · Aᵀ · Bᵀ, with lora_A (rank, in), lora_B (out, rank) and a frozen base."""

    def __init__(self, base_layer: nn.Linear, settings: LoraSettings) -> None:
        super().__init__()
        self.base_layer, self.settings = base_layer, settings
        weight = base_layer.weight
        self.lora_A = nn.Parameter(weight.new_empty(settings.rank, weight.shape[1]))
        self.lora_B = nn.Parameter(weight.new_empty(weight.shape[0], settings.rank))

    def initialize(self) -> None:
        """PEFT's start: A as a linear layer's weight, B zero, so that at first the model says what its base says."""
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B)

    def forward(self, x: Tensor) -> Tensor:
        dropped = F.dropout(x, self.settings.dropout, self.training)
        small = self.settings.scaling * F.linear(dropped, self.lora_A)  # (…, rank): the cheapest place for s
        return self.base_layer(x) + F.linear(small, self.lora_B)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The base layer with W + s · B · A, computed in float32 (float64 where it is), as its weight."""
        weight = self.base_layer.weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        a, b = self.lora_A.to(wide), self.lora_B.to(wide)
        weight.copy_(torch.addmm(weight.to(wide), b, a, alpha=self.settings.scaling))
        return self.base_layer


class NewRows(nn.Module):
    """An embedding or output layer of which only the last rows are learned: `rows` (new, width) stand for those of the
    frozen `base_layer`, and are all that has a gradient and an optimizer state."""

    def __init__(self, base_layer: nn.Embedding | nn.Linear, rows: nn.Parameter) -> None:
        super().__init__()
        self.base_layer, self.rows = base_layer, rows

    @property
    def weight(self) -> Tensor:
        """The whole weight (vocabulary, width)."""
        whole: Tensor = _WithRows.apply(self.base_layer.weight, self.rows)
        return whole

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.base_layer, nn.Linear):
            return F.linear(x, self.weight)
        # Two lookups, so that backward makes no gradient of the vocabulary's size.
        first = len(self.base_layer.weight) - len(self.rows)
        old, new = self.base_layer(x), F.embedding((x - first).clamp(min=0), self.rows)
        return torch.where((x < first).unsqueeze(-1), old, new)

    @torch.no_grad()
    def merged(self) -> nn.Embedding | nn.Linear:
        """The base layer, with the new rows in it."""
        self.base_layer.weight[-len(self.rows) :] = self.rows
        return self.base_layer


class _WithRows(torch.autograd.Function):
    """`whole` (vocabulary, width) with `rows` (new, width) as its last, in the memory of `whole`: a copy would take as
    long as reading the vocabulary, at every use."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, rows: Tensor) -> Tensor:
        ctx.new = len(rows)
        # Through .data, which autograd does not count as a change: until the next step the same values are written.
        whole.data[-ctx.new :] = rows
        return whole.detach()

    @staticmethod
    def backward(ctx: Any, d_whole: Tensor) -> tuple[None, Tensor]:
        return None, d_whole[-ctx.new :].clone()  # a view would keep the vocabulary's gradient alive


def add_lora(model: GPT | RNN, settings: LoraSettings, *, initialize: bool = True) -> None:
    """Wraps the target layers in place and freezes all that the settings do not let learn, but a classifier's head.

    The base's weights stay where they are, in `base_layer`. torch's global generator decides A; with `initialize` false
    A and B are left for a reader to fill. UserError for an RNN, for a name that the model has not, or that is both a
    target and in `also_train`, and where the model has an adapter.
    """
    if not isinstance(model, GPT):
        raise UserError(
            f"lora: the model is an RNN ({model.shape.cell}), and adapters are for the layers of a GPT; leave [lora] "
            "out, an RNN is small enough to be tuned whole"
        )
    if lora_settings(model) is not None:
        raise UserError("this model has an adapter already: merge_lora(model) first")
    targets = _find(linear_layers(model), settings.targets, "lora.targets")
    others = [name for name in settings.also_train if name not in ("biases", "layer_norms")]
    learned = _find(_simple_modules(model), others, "lora.also_train")
    if both := [name for name in targets if name in learned]:
        raise UserError(f"lora: {_kind(both[0])} is in targets and in also_train: it is learned one way or the other")
    for name in targets:
        base_layer = model.get_submodule(name)
        assert isinstance(base_layer, nn.Linear)
        layer = LoraLinear(base_layer, settings)
        if initialize:
            layer.initialize()
        model.set_submodule(name, layer)
    parameters = set(adapter_parameters(model).values())
    for parameter in model.parameters():
        parameter.requires_grad_(parameter in parameters)


def train_new_rows(model: GPT, first: int) -> None:
    """Lets an adapted model learn the rows of the tokens from id `first` on, in wte and in an output layer of its own.

    The rows before stay frozen; where an embedding is learned whole (`also_train`), nothing changes. ValueError for a
    plain model, and where `first` is not in the vocabulary.
    """
    if lora_settings(model) is None:
        raise ValueError("a plain model learns all of its rows: add_lora comes first")
    if not 0 < first < model.shape.vocab_size:
        raise ValueError(f"first = {first}: no row of a vocabulary of {model.shape.vocab_size}, or all of them")
    rows: dict[Tensor, nn.Parameter] = {}  # by the weight: a tied head has the embedding's
    tables: dict[str, nn.Embedding | nn.Linear] = {"wte": model.wte}
    if not is_classifier(model):
        tables["lm_head"] = model.lm_head
    for name, layer in tables.items():
        weight = layer.weight
        if not weight.requires_grad:
            if weight not in rows:
                rows[weight] = nn.Parameter(weight.detach()[first:].clone())
            model.set_submodule(name, NewRows(layer, rows[weight]))


def merge_lora(model: nn.Module) -> None:
    """Makes an adapted model a plain one in place: W + s · B · A, new rows in their place, everything trainable again.

    A plain model is left as it is.
    """
    wrapped = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLinear | NewRows)]
    for name, module in wrapped:
        model.set_submodule(name, module.merged())
    if wrapped:
        model.requires_grad_(True)


def lora_settings(model: nn.Module) -> LoraSettings | None:
    """What an adapted model was made with; None for a plain one."""
    return next((module.settings for module in model.modules() if isinstance(module, LoraLinear)), None)


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What an adapted model learns, and all that its adapter stores, by the model's names; {} for a plain one."""
    settings = lora_settings(model)
    if settings is None:
        return {}
    modules = _simple_modules(model)
    learned = {
        parameter
        for name, module in modules.items()
        if any(_ends(name, end) for end in settings.also_train)
        or ("layer_norms" in settings.also_train and isinstance(module, nn.LayerNorm))
        for parameter in module.parameters()
    }
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter in learned
        or name.endswith((".lora_A", ".lora_B", ".rows"))
        or name.startswith("score.")
        or ("biases" in settings.also_train and name.endswith(".bias"))
    }


def freeze_body(model: nn.Module) -> None:
    """Lets a classifier learn its head alone. ValueError for a language model."""
    if not is_classifier(model):
        raise ValueError("a language model has no head of its own to learn alone")
    model.requires_grad_(False)
    model.score.requires_grad_(True)


def trainable_counts(model: GPT | RNN) -> dict[str, int]:
    """How many numbers are learned, by what they are, in sum ("trainable"), and how many the model has ("all").

    A LayerNorm whose bias alone is learned counts among the biases; a tied head is an embedding. What else is inside
    the blocks of a GPT, or the layers of an RNN, is "other".
    """
    counts = dict.fromkeys(("adapters", "layer_norms", "biases", "embeddings", "head", "other", "trainable", "all"), 0)
    for name, parameter in model.named_parameters():
        module = model.get_submodule(name.rpartition(".")[0])
        counts["all"] += 0 if name.endswith(".rows") else parameter.numel()  # the base layer has room for them
        if parameter.requires_grad:
            counts[_part(name, module)] += parameter.numel()
            counts["trainable"] += parameter.numel()
    return counts


def _part(name: str, module: nn.Module) -> str:
    if isinstance(module, LoraLinear):
        return "adapters"
    if isinstance(module, nn.LayerNorm) and module.weight.requires_grad:
        return "layer_norms"
    if name.startswith(HEADS):
        return "head"
    if name.rpartition(".")[2].startswith("bias"):  # of an RNN bias_ih_l0, …
        return "biases"
    return "embeddings" if name.startswith(("wte.", "wpe.")) else "other"


def linear_layers(model: GPT) -> list[str]:
    """The names of the layers that an adapter can be put on: the blocks' linear ones."""
    return [f"h.{name}" for name, module in model.h.named_modules() if isinstance(module, nn.Linear)]


def _simple_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that have weights of their own, by name."""
    kinds = nn.Linear | nn.LayerNorm | nn.Embedding
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def _find(names: Iterable[str], ends: Iterable[str], setting: str) -> list[str]:
    """The names, in their order, that end as one of `ends` says; UserError for an end that none has."""
    names = list(names)
    for end in ends:
        if not any(_ends(name, end) for name in names):
            there = list(dict.fromkeys(map(_kind, names)))
            if setting == "lora.also_train":
                there = ["biases", "layer_norms", *there]
            raise UserError(
                f"{setting} has {end!r}, which names nothing here{nearest(end, there)}; there is {', '.join(there)}"
            )
    return [name for name in names if any(_ends(name, end) for end in ends)]


def _ends(name: str, end: str) -> bool:
    return f".{name}".endswith(f".{end}")


def _kind(name: str) -> str:
    """The name without the block's: "attn.c_attn" for "h.3.attn.c_attn"."""
    return name.split(".", 2)[2] if name.startswith("h.") else name
