"""How much memory a step takes, found by tracing a real step without data, weights or time.

Under FakeTensorMode tensors have shapes and no storage, so a step of any model can be run in a second or so;
counting the storages that are alive gives exactly what the same count of the real step gives. The optimizer
steps once before, on gradients of zero, because its state appears then.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from gptlab.data.batch import Batch
from gptlab.device import Precision
from gptlab.kernels import fused_head
from gptlab.objectives.base import Objective
from gptlab.training.loop import Engine, descend, gradients
from gptlab.training.optimizer import Optimizer, OptimizerSettings

LIBRARY_BYTES = 165 * 2**20
"""What a process grows by with its first step beside its tensors: thread pools, oneDNN, MKL."""

ALLOCATOR_FACTOR = 1.09
"""What the allocator holds for a byte of live tensors. Both were fitted to seven shapes of 0.4 to 3 GB, which they
meet within 5 % (docs/log.md)."""


def process_bytes(live_bytes: int) -> int:
    """How much a CPU process grows by when its tensors take `live_bytes` at their peak."""
    return LIBRARY_BYTES + round(live_bytes * ALLOCATOR_FACTOR)


LSTM_WORKSPACE = {torch.float32: (37, 25), torch.bfloat16: (23, 21)}
"""Bytes that oneDNN's LSTM keeps until backward for each position: so many times its width, and so many times the wider
of its width and its input's (found by measuring; a traced layer says that there are none)."""


class LiveStorages(TorchDispatchMode):
    """Counts the bytes of all storages that operations inside return, as long as each is alive."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_iter(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)


class _TracedStorages(LiveStorages):
    """The same for a traced step, in which a tensor that is asked for its value says 1: a size never depends on
    it, and an optimizer that asks (Adafactor) could not be traced otherwise. The fused head's scratch, which no
    tensor of the step shows, is counted from its first call on, and an LSTM is given its workspace."""

    scratch = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0
        if func is torch.ops.gptlab.fused_head.default:
            hidden, weight, *_, need_hidden, need_weight = args
            needed = fused_head.scratch_bytes(len(hidden), *weight.shape, gradients=need_hidden or need_weight)
            self.live += max(0, needed - self.scratch)
            self.scratch = max(needed, self.scratch)
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if func is torch.ops.aten.mkldnn_rnn_layer.default and args[-1]:  # in training
            *outputs, workspace = result
            workspace = workspace.new_empty(_lstm_workspace_bytes(args[0], n_hidden=args[10]))
            self._count(workspace.untyped_storage())
            return (*outputs, workspace)
        return result


def _lstm_workspace_bytes(inputs: Tensor, n_hidden: int) -> int:
    """Of a layer whose inputs are (time, rows, n_in)."""
    time, rows, n_in = inputs.shape
    own, wider = LSTM_WORKSPACE[inputs.dtype]
    return time * rows * (own * n_hidden + wider * max(n_in, n_hidden))


@dataclass(frozen=True)
class FullRows:
    """The worst rows that a run's data can have.

    context: tokens of each sequence
    last:    whether something is learned at its last token alone, else at every one
    pairs:   whether a row is a pair of sequences
    values:  what stands beside each row (`Batch.values`): name → how many numbers
    """

    context: int
    last: bool = False
    pairs: bool = False
    values: Mapping[str, int] = field(default_factory=dict)

    def batch(self, rows: int) -> Batch:
        """A batch of so many of them."""
        sequences = 2 * rows if self.pairs else rows
        tokens = torch.zeros((sequences, self.context), dtype=torch.int64)
        first, every = (self.context - 1, self.context) if self.last else (0, 1)
        positions = torch.arange(first, tokens.numel(), every)
        weight = float(rows if self.pairs else len(positions))
        values = {name: torch.zeros(rows, numbers) for name, numbers in self.values.items()}
        return _Full(tokens, tokens, positions, torch.arange(rows), weight, values, self.pairs, self)


@dataclass(frozen=True)
class _Full(Batch):
    """A batch that is cut without looking at its values, which a traced tensor has not."""

    like: FullRows = FullRows(1)

    def split(self, micro_batch_size: int) -> Iterator[Batch]:
        for start in range(0, len(self), micro_batch_size):
            yield self.like.batch(min(micro_batch_size, len(self) - start))


def predict_peak_bytes(
    make_model: Callable[[], nn.Module],
    make_objective: Callable[[], Objective],
    settings: OptimizerSettings,
    *,
    precision: Precision,
    micro_batch_size: int,
    batch_size: int,
    rows: FullRows,
) -> int:
    """Peak bytes of live tensors in training steps of `batch_size` of these rows, on a CPU.

    `make_model` makes the model as the run would, `make_objective` the objective, with a teacher if it has one; here
    they get no memory.
    """
    cpu = torch.device("cpu")
    with FakeTensorMode(), _TracedStorages() as storages:
        model = make_model()
        engine = Engine(model, make_objective(), Optimizer(model, settings), cpu, precision, micro_batch_size, 1.0)
        # More than two micro-batches need no more memory than two: the gradients are there after the first.
        batch = rows.batch(min(batch_size, 2 * micro_batch_size))
        for parameter in engine.optimizer.parameters:
            parameter.grad = torch.zeros_like(parameter)
        descend(engine)  # the optimizer's state appears
        gradients(engine, batch)
        descend(engine)
    return storages.peak


def choose_micro_batch(predict: Callable[[int], int], batch_size: int, available: int) -> tuple[int, int]:
    """(the largest of batch_size, its half, its quarter, … whose predicted process memory fits, that memory).

    `predict` gives the peak bytes of a micro-batch size; `available` is in bytes. Where not even one row fits,
    (1, its memory) is returned and the caller decides.
    """
    size = batch_size
    while True:
        needed = process_bytes(predict(size))
        if needed <= available or size == 1:
            return size, needed
        size = -(-size // 2)
