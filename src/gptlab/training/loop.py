"""The training loop: one for every objective, and the only backward() in the lab.

What differs between objectives comes in as a value (objectives/base.py). The order of things in a step is
the order of the code in `train`.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gptlab.data.batch import Batch, Rows, rows_of_step, steps_per_epoch
from gptlab.device import Precision, autocast, in_float64, peak_memory
from gptlab.errors import Interrupted, MemoryLimitError, TrainingStopped
from gptlab.kernels.layers import fast_layers, training_kernels
from gptlab.objectives.base import Objective, means
from gptlab.training.length import Length
from gptlab.training.optimizer import Optimizer
from gptlab.training.schedule import ScheduleSettings, rate_factor

LOGGED_STEPS = 2000
"""A run logs at most so many lines of steps; a line of a longer run is the mean over the steps since the last."""

SKIPPED_IN_A_ROW = 20
"""So many fp16 steps skipped one after the other end a run: no loss scale works for it."""


@dataclass
class State:
    """Where a run is: what, with the weights, the optimizer and the random states, continuing needs.

    step:    optimizer steps done
    weight:  items (tokens, texts, pairs) learned from
    seconds: time trained, over all sessions
    """

    step: int = 0
    weight: float = 0.0
    seconds: float = 0.0


@dataclass
class Engine:
    """What turns a batch into a step: the model and all that acts on it, on its device."""

    model: nn.Module
    objective: Objective
    optimizer: Optimizer
    device: torch.device
    precision: Precision
    micro_batch_size: int
    gradient_clip: float
    say: Callable[[str], None] = lambda text: None
    scaler: torch.amp.GradScaler = field(init=False)

    def __post_init__(self) -> None:
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision.dtype == torch.float16)


class Watcher(Protocol):
    """Whom the loop tells of itself. A watcher evaluates, saves and prints; it never changes the mathematics."""

    def decided(self, state: State, length: Length) -> None:
        """A length in minutes became steps."""
        ...

    def due(self, state: State, length: Length) -> bool:
        """Whether `rest` is wanted now. What was summed is then logged first."""
        ...

    def log(self, record: dict[str, Any], state: State, length: Length) -> None:
        """A line for the metrics."""
        ...

    def rest(self, state: State, length: Length) -> bool:
        """Between two steps: evaluates, samples, saves. True asks the loop to end here."""
        ...

    def asked_to_stop(self, state: State, length: Length) -> bool:
        """Whether Ctrl-C or SIGTERM came; if so, everything has been saved."""
        ...


def train(
    engine: Engine,
    rows: Rows,
    *,
    batch_size: int,
    seed: int,
    schedule: ScheduleSettings,
    length: Length,
    state: State,
    watcher: Watcher,
) -> None:
    """Trains from `state.step` to `length.total` steps; `state` and `length` are brought forward in place.

    Raises TrainingStopped where the loss or its gradient is not finite (what was saved before is good),
    Interrupted when asked to stop, MemoryLimitError where not even one row fits.
    """
    epoch_steps = steps_per_epoch(len(rows), batch_size)
    log = _Log(engine)
    skipped = 0
    started = time.perf_counter() - state.seconds
    engine.model.train()
    while length.total is None or state.step < length.total:
        step_started = time.perf_counter()
        engine.optimizer.set_rate(rate_factor(schedule, state.step, length.total))
        epoch, numbers = rows_of_step(len(rows), batch_size, seed, state.step)
        batch = rows.batch(numbers, epoch)
        sums = gradients(engine, batch)
        norm, was_skipped = descend(engine)
        state.step += 1
        state.weight += batch.weight
        state.seconds = time.perf_counter() - started
        log.add(sums, batch.weight, norm, step_started)
        skipped = skipped + 1 if was_skipped else 0
        if skipped == SKIPPED_IN_A_ROW:
            raise TrainingStopped(
                f"step {state.step}: fp16 skipped {skipped} steps in a row, since their gradients overflow at any "
                f"loss scale. The checkpoints before it are good. Try "
                f"training.precision=float32 or a lower rate in a new run: --fresh or --name NAME"
            )
        if length.decide(state.step, state.seconds):
            watcher.decided(state, length)
        pause = watcher.due(state, length)
        if pause or _line_due(state.step, length.total):
            watcher.log(log.take(state, state.step / epoch_steps), state, length)
        if pause and watcher.rest(state, length):
            return
        state.seconds = time.perf_counter() - started
        if watcher.asked_to_stop(state, length):
            raise Interrupted(f"stopped after step {state.step}, all saved; the same command continues")


def gradients(engine: Engine, batch: Batch) -> dict[str, Tensor]:
    """The gradient of one step's loss, in the parameters' .grad; returns the step's sums, detached.

    Micro-batches add up; each is divided by the weight of the whole step before its backward, so that the
    cut changes no number and fp16 does not overflow. Where a GPU's memory is not enough, the micro-batch is
    halved and the step begun again: the same mathematics in smaller pieces.
    """
    while True:
        try:
            engine.optimizer.zero_grad()
            totals: dict[str, Tensor] = {}
            with fast_layers(training_kernels(engine.device, engine.precision.dtype)):
                for part in batch.split(engine.micro_batch_size):
                    with autocast(engine.device, engine.precision):
                        sums = engine.objective(engine.model, part.to(engine.device))
                    engine.scaler.scale(sums["loss"] / (batch.weight or 1.0)).backward()
                    for key, value in sums.items():
                        totals[key] = totals.get(key, 0) + value.detach()
            return totals
        except torch.OutOfMemoryError:
            rows = min(engine.micro_batch_size, len(batch))
        # Here, since inside the except block the traceback would keep the failed step's tensors alive.
        if rows == 1:
            raise MemoryLimitError(
                "not even one row fits into this GPU's memory. What helps: training.activation_checkpointing=true, "
                "optimizer.state=8bit, a shorter model.context, a smaller model"
            )
        sums = totals = {}
        torch.cuda.empty_cache()
        engine.micro_batch_size = -(-rows // 2)
        engine.say(f"out of memory: micro-batches of {engine.micro_batch_size} rows from here on, the same mathematics")


def descend(engine: Engine) -> tuple[Tensor, bool]:
    """Clips and steps; returns the gradient's norm before clipping, and whether fp16 skipped the step."""
    parts, scaler = engine.optimizer.parts, engine.scaler
    for part in parts:
        scaler.unscale_(part)
    norm = nn.utils.clip_grad_norm_(engine.optimizer.parameters, engine.gradient_clip or math.inf)
    scale = scaler.get_scale() if scaler.is_enabled() else 0.0
    for part in parts:
        scaler.step(part)
    scaler.update()
    return norm, scaler.is_enabled() and scaler.get_scale() < scale


@contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """torch's deterministic algorithms for as long as a run lasts, if the recipe asks for them."""
    before = torch.are_deterministic_algorithms_enabled()
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what torch's notes on randomness ask for
    torch.use_deterministic_algorithms(enabled or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


class _Log:
    """Sums since the last line of the metrics, kept on the device so that no step waits for it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._clear()

    def _clear(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.norms: Tensor | float = 0.0
        self.weight, self.steps, self.began_at = 0.0, 0, 0.0

    def add(self, sums: dict[str, Tensor], weight: float, norm: Tensor, began_at: float) -> None:
        if not self.steps:
            self.began_at = began_at
        for key, value in sums.items():
            self.sums[key] = self.sums.get(key, 0) + in_float64(value)
        self.norms = self.norms + norm
        self.weight += weight
        self.steps += 1

    def take(self, state: State, epoch: float) -> dict[str, Any]:
        """The line that is due, and a new beginning. TrainingStopped where it is not finite."""
        values = {key: value.tolist() for key, value in self.sums.items()}  # floats; of counts lists of them
        norm = float(self.norms) / self.steps
        seconds = time.perf_counter() - self.began_at  # after the values have been waited for
        rate, objective, weight = self.engine.optimizer.rate, self.engine.objective, self.weight or 1.0
        scores = means(objective, values, weight)
        # fp16 skips a step whose gradient overflows and lowers its scale, so there the norm may be infinite.
        if not math.isfinite(scores["loss"]) or not (math.isfinite(norm) or self.engine.scaler.is_enabled()):
            raise TrainingStopped(
                f"step {state.step}: the loss is {scores['loss']:.4g} and its gradient's norm {norm:.4g}, at a "
                f"learning rate of {rate:.3g}. The checkpoints before it are good. Try a third of "
                f"optimizer.learning_rate, a longer schedule.warmup_steps or a smaller optimizer.gradient_clip, "
                f"in a new run: --fresh or --name NAME"
            )
        record = {
            "event": "step", "step": state.step, "epoch": epoch, **scores, **objective.metrics(values, weight),
            "learning_rate": rate, "gradient_norm": norm, "tokens": state.weight,
            "tokens_per_second": self.weight / seconds, "seconds": state.seconds,
            "memory_bytes": peak_memory(self.engine.device),
        }  # fmt: skip
        self._clear()
        return record


def _line_due(step: int, total: int | None) -> bool:
    return step % (1 if total is None else -(-total // LOGGED_STEPS)) == 0
