"""How many rows the machine holds at once: decided before the first step, then kept for the run's life."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from gptlab.device import Precision, available_memory, current_memory
from gptlab.errors import MemoryLimitError
from gptlab.model.folder import Model
from gptlab.objectives.base import Objective
from gptlab.training.memory import FullRows, choose_micro_batch, predict_peak_bytes, process_bytes
from gptlab.training.recipe import Recipe
from gptlab.words import size

SAFE_SHARE = 0.9
"""Of the memory that is available so much may be used: other programs also live."""

WHAT_HELPS = (
    "What helps, the most first: training.activation_checkpointing=true, [lora], optimizer.state=8bit, a shorter "
    "model.context, a smaller model"
)


@dataclass(frozen=True)
class Fit:
    """A micro-batch size, and the predicted memory: of the whole process on a CPU, of the tensors on a GPU."""

    micro_batch_size: int
    peak_bytes: int
    available_bytes: int


def decide_micro_batch(
    recipe: Recipe,
    make_model: Callable[[], Model],
    make_objective: Callable[[], Objective],
    n_rows: int,
    rows: FullRows,
    *,
    held_bytes: int = 0,
    device: torch.device,
    precision: Precision,
    kept: int | None,
) -> Fit:
    """The recipe's micro-batch, else the `kept` one of a run that continues, else what the machine holds.

    On a CPU an allocation that is too large is not refused but killed later, so "auto" is decided by prediction:
    the largest of batch_size, its half, its quarter, … that fits; MemoryLimitError where not even one row does.
    On a GPU it begins with all rows, and the loop halves them if they do not fit.

    `make_model` makes the model as the run trains it, adapted or not, `make_objective` what it learns. `n_rows` is how
    many rows there are to train on, `rows` what the worst of them are like. `held_bytes`: of what the objective has,
    those that are on the device already, so that they are no longer available.
    """
    batch_size = min(recipe.training.batch_size, n_rows)

    def predict(micro_batch_size: int) -> int:
        return predict_peak_bytes(
            make_model, make_objective, recipe.optimizer, precision=precision, micro_batch_size=micro_batch_size,
            batch_size=batch_size, rows=rows,
        ) - held_bytes  # fmt: skip

    available = available_memory(device)
    wanted = recipe.training.micro_batch_size if recipe.training.micro_batch_size != "auto" else kept
    on_cpu = device.type == "cpu"
    here = current_memory() if on_cpu else held_bytes
    if wanted is not None or not on_cpu:
        micro = min(wanted or batch_size, batch_size)
        live = predict(micro)
        return Fit(micro, here + (process_bytes(live) if on_cpu else live), here + available)
    micro, needed = choose_micro_batch(predict, batch_size, round(available * SAFE_SHARE))
    if needed > available * SAFE_SHARE:
        raise MemoryLimitError(
            f"not even one row fits: a step needs about {size(needed)}, and {size(available)} are free. {WHAT_HELPS}. "
            f"training.micro_batch_size=1 tries it all the same"
        )
    return Fit(micro, here + needed, here + available)


@contextmanager
def memory_errors() -> Iterator[None]:
    """Memory that the device or the system refuses inside the block becomes a MemoryLimitError."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise MemoryLimitError(f"the memory is not enough: {error}. {WHAT_HELPS}") from error
