"""Optimizers: those of torch.optim, and AdamW with a small state; both saved and loaded by parameter name."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from gptlab.errors import CheckpointError, DeviceError, RecipeError, UserError
from gptlab.settings import Section

Beta = Annotated[float, Field(ge=0, lt=1)]

TABLES = {"qmap1": "dynamic", "qmap2": "udynamic"}
"""What the codes of an 8-bit state mean: bitsandbytes' constants, shared by all parameters and not saved."""


DECOUPLED = ("adamw", "muon", "adafactor")
"""Whose weight decay is no part of the gradient."""


class OptimizerSettings(Section):
    """`[optimizer]`. Weight decay acts on matrices only. That of AdamW, Muon and Adafactor is apart from the gradient,
    0.1 by default; of the others it is a part of the gradient (Loshchilov and Hutter, "Decoupled weight decay
    regularization", 2019), where 0.1 would drown a small one, so by default they have none. `momentum` is SGD's and
    Muon's; `betas` are Adam's and AdamW's.

    The second beta is for steps of some thousand tokens; for half a million 0.95 is GPT-3's. With 0.95 perplexity was
    8 % higher after 584 steps of 4,096 tokens and 3 % after 1,190 (docs/log.md), probably since Adam forgets between
    two sights of a rare token how large its gradient was, and meanwhile moves its embedding at the full rate.

    Muon (Jordan et al., 2024) takes the weights of the linear layers inside the blocks, at `matrix_learning_rate` (by
    default the same rate: its updates are scaled to AdamW's size, Liu et al., 2025); AdamW takes the rest. LoRA's
    two factors are not what it is made for, so there it is refused.

    `state = "8bit"` (AdamW only) keeps both moments of the matrices inside the blocks in 8 bits, with a scale for each
    256 values: a quarter of the memory, nearly the same steps (Dettmers et al., 2022; bitsandbytes, on CPU and CUDA).
    Embeddings and vectors stay in float32: in a row that few batches meet a second moment can round to zero beside a
    first one that does not, and the next step there is hundreds of times too long.
    """

    kind: Literal["adamw", "adam", "sgd", "nesterov", "adafactor", "muon"] = "adamw"
    state: Literal["float32", "8bit"] = "float32"
    learning_rate: float = Field(5e-4, gt=0)
    matrix_learning_rate: float | None = Field(None, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), strict=False)
    momentum: float = Field(0.9, ge=0, lt=1)
    gradient_clip: float = Field(1.0, ge=0)
    """The largest norm of the whole gradient; 0 clips nothing."""

    @model_validator(mode="before")
    @classmethod
    def _coupled_decay_is_asked_for(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and tree.get("kind", "adamw") not in DECOUPLED:
            return {"weight_decay": 0.0, **tree}
        return tree

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> OptimizerSettings:
        if self.kind == "nesterov" and self.momentum == 0:
            raise ValueError("kind = nesterov needs a momentum above 0; without one it is kind = sgd")
        return self

    @model_validator(mode="after")
    def _8_bits_are_adamws(self) -> OptimizerSettings:
        if self.state == "8bit" and self.kind != "adamw":
            raise ValueError(f"state = 8bit is for kind = adamw, not {self.kind}")
        return self


def check_device(settings: OptimizerSettings, device: torch.device) -> None:
    """DeviceError where the state asked for cannot be kept on `device`."""
    if settings.state == "8bit" and device.type == "mps":
        raise DeviceError(
            "optimizer.state = 8bit: bitsandbytes has no 8-bit optimizer for MPS; take optimizer.state=float32, or "
            "optimizer.kind=adafactor, whose state is small"
        )


class Optimizer:
    """One or two optimizers that step together over a model's trainable parameters.

    RecipeError where Muon finds no weight to train; UserError without bitsandbytes for an 8-bit state, DeviceError
    on a device that it does not serve.
    """

    def __init__(self, model: nn.Module, settings: OptimizerSettings) -> None:
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._names: dict[Tensor, str] = {parameter: name for name, parameter in named.items()}
        self.parameters = list(named.values())
        self.parts: list[torch.optim.Optimizer] = []
        matrices = [p for name, p in named.items() if p.dim() == 2 and name.startswith("h.")]
        if settings.kind == "muon":
            self.parts.append(_muon(settings, _linear_weights(model, matrices)))
        elif settings.state == "8bit" and matrices:
            self.parts.append(_adamw_8bit(settings, matrices))
        taken = {p for group in self._groups() for p in group["params"]}
        if rest := [p for p in self.parameters if p not in taken]:
            self.parts.append(_make(settings, rest))
        for group in self._groups():
            group["full_rate"] = group["lr"]

    def _groups(self) -> Iterable[dict[str, Any]]:
        return (group for part in self.parts for group in part.param_groups)

    def set_rate(self, factor: float) -> None:
        """Every group's learning rate becomes `factor` times its own full rate."""
        for group in self._groups():
            group["lr"] = group["full_rate"] * factor

    @property
    def rate(self) -> float:
        """The learning rate now; beside Muon's that of AdamW."""
        return float(self.parts[-1].param_groups[0]["lr"])

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """The state as flat tensors: "h.0.mlp.c_fc.weight:exp_avg" → its first moment."""
        return {
            f"{self._names[parameter]}:{key}": value if isinstance(value, Tensor) else torch.tensor(value)
            for part in self.parts
            for parameter, state in part.state.items()
            for key, value in state.items()
            if value is not None and key not in TABLES
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes up what `tensors()` gave; CheckpointError where a name is not one of this model's."""
        states: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            name, _, field = key.rpartition(":")
            states.setdefault(name, {})[field] = value
        unknown = states.keys() - set(self._names.values())
        if unknown:
            raise CheckpointError(
                f"the optimizer's state names parameters this model has not: {', '.join(sorted(unknown)[:3])}"
            )
        for part in self.parts:
            order = [p for group in part.param_groups for p in group["params"]]
            kept = {i: states[self._names[p]] for i, p in enumerate(order) if self._names[p] in states}
            if hasattr(part, "name2qmap"):  # bitsandbytes'
                part.state.update({order[i]: _state_8bit(part, order[i], state) for i, state in kept.items()})
            else:
                part.load_state_dict({**part.state_dict(), "state": kept})


def _make(settings: OptimizerSettings, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    rate = settings.learning_rate
    match settings.kind:
        case "adamw" | "muon":
            return torch.optim.AdamW(groups, lr=rate, betas=settings.betas, fused=True)
        case "adam":
            return torch.optim.Adam(groups, lr=rate, betas=settings.betas, fused=True)
        case "sgd" | "nesterov":
            nesterov = settings.kind == "nesterov"
            return torch.optim.SGD(groups, lr=rate, momentum=settings.momentum, nesterov=nesterov, fused=True)
        case "adafactor":
            return torch.optim.Adafactor(groups, lr=rate)


def _linear_weights(model: nn.Module, parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Those of `parameters` that are the weight of a linear layer: LoRA's factors are not."""
    weights = {module.weight for module in model.modules() if isinstance(module, nn.Linear)}
    return [p for p in parameters if p in weights]


def _muon(settings: OptimizerSettings, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if not parameters:
        raise RecipeError(
            "optimizer.kind = muon is for the weights of the linear layers inside the blocks, and none of them is "
            "trained here (LoRA keeps them as they are, an RNN has none): take optimizer.kind=adamw"
        )
    return torch.optim.Muon(
        parameters,
        lr=settings.matrix_learning_rate or settings.learning_rate,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
        adjust_lr_fn="match_rms_adamw",
    )


def _adamw_8bit(settings: OptimizerSettings, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    check_device(settings, parameters[0].device)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of 4-bit kernels, which nothing here uses
    try:
        with _disable_current_modes():  # its module's constants must be real also where a step is only traced
            from bitsandbytes.optim.adamw import AdamW8bit
    except ImportError as error:
        raise UserError("optimizer.state = 8bit needs: pip install 'gptlab[8bit]'") from error
    return AdamW8bit(parameters, lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay)


def _state_8bit(part: Any, parameter: Tensor, saved: Mapping[str, Tensor]) -> dict[str, Any]:
    """A parameter's state as bitsandbytes wants it, whose own loading copies all states and makes the step a float."""
    state: dict[str, Any] = {key: value.to(parameter.device) for key, value in saved.items()}
    state["step"] = int(saved["step"])
    if saved["state1"].dtype == torch.uint8:  # a matrix of less than 4,096 values keeps float32
        state |= {key: part.name2qmap[table].to(parameter.device) for key, table in TABLES.items()}
    return state
