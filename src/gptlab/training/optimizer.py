"""The optimizers of torch.optim behind one small face that saves and loads by parameter name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from gptlab.errors import CheckpointError
from gptlab.settings import Section

Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerSettings(Section):
    """`[optimizer]`. Weight decay acts on matrices only. `momentum` is SGD's and Muon's; `betas` are Adam's and
    AdamW's. Muon (Jordan et al., 2024) takes the matrices inside the blocks, at `matrix_learning_rate` (by
    default the same rate: its updates are scaled to AdamW's size, Liu et al., 2025); AdamW takes the rest."""

    kind: Literal["adamw", "adam", "sgd", "nesterov", "adafactor", "muon"] = "adamw"
    learning_rate: float = Field(5e-4, gt=0)
    matrix_learning_rate: float | None = Field(None, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    betas: tuple[Beta, Beta] = Field((0.9, 0.95), strict=False)
    momentum: float = Field(0.9, ge=0, lt=1)
    gradient_clip: float = Field(1.0, ge=0)
    """The largest norm of the whole gradient; 0 clips nothing."""

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> OptimizerSettings:
        if self.kind == "nesterov" and self.momentum == 0:
            raise ValueError("kind = nesterov needs a momentum above 0; without one it is kind = sgd")
        return self


class Optimizer:
    """One or two of torch's optimizers that step together over a model's trainable parameters."""

    def __init__(self, model: nn.Module, settings: OptimizerSettings) -> None:
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._names: dict[Tensor, str] = {parameter: name for name, parameter in named.items()}
        self.parameters = list(named.values())
        muon = settings.kind == "muon"
        inside = [p for name, p in named.items() if muon and p.dim() == 2 and name.startswith("h.")]
        chosen = set(inside)
        rest = [p for p in self.parameters if p not in chosen]
        self.parts = [_make(settings, rest)]
        if inside:
            self.parts.insert(0, _muon(settings, inside))
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
        """The learning rate now; beside Muon that of AdamW's part."""
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
            if value is not None
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
            packed = part.state_dict()
            order = [p for group in part.param_groups for p in group["params"]]
            packed["state"] = {i: states[self._names[p]] for i, p in enumerate(order) if self._names[p] in states}
            part.load_state_dict(packed)


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


def _muon(settings: OptimizerSettings, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Muon(
        parameters,
        lr=settings.matrix_learning_rate or settings.learning_rate,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
        adjust_lr_fn="match_rms_adamw",
    )
