"""Keys and values while decoding: one static buffer a layer, each row written at its own length."""

from __future__ import annotations

import torch
from torch import Tensor

from gptlab.model.gpt import GPTShape


class KeyValueCache:
    """A cache for `rows` rows of at most `capacity` tokens (the model's context by default).

    Rows of different length stand in one batch. A prompt is read padded on the right; then `lengths` is set
    to what each row really has, and the next token of each row is written over its padding. A query at
    position p sees keys 0…p of its own row, so what lies behind is never looked at.
    """

    def __init__(
        self, shape: GPTShape, rows: int, *, device: torch.device, dtype: torch.dtype, capacity: int | None = None
    ) -> None:
        self.capacity = capacity or shape.context
        size = (rows, shape.n_head, self.capacity, shape.n_embd // shape.n_head)
        self.keys = [torch.zeros(size, device=device, dtype=dtype) for _ in range(shape.n_layer)]
        self.values = [torch.zeros(size, device=device, dtype=dtype) for _ in range(shape.n_layer)]
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        self.longest = 0
        """The length of the longest row, known on the host, so that nothing waits for a GPU."""

    def positions(self, time: int) -> Tensor:
        """The positions (rows, time) of the next `time` tokens of each row."""
        return self.lengths[:, None] + torch.arange(time, device=self.lengths.device)

    def require_room(self, time: int) -> int:
        """The length that the longest row has after `time` more tokens; ValueError where that is over the capacity."""
        end = self.longest + time
        if end > self.capacity:
            raise ValueError(f"{end} tokens do not fit into a cache of {self.capacity}")
        return end

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `gpt.Cache.extend`."""
        time = keys.shape[2]
        end = self.require_room(time)
        positions = self.positions(time)
        places = positions[:, None, :, None].expand_as(keys)
        self.keys[layer].scatter_(2, places, keys)
        self.values[layer].scatter_(2, places, values)
        mask = torch.arange(end, device=positions.device) <= positions[:, None, :, None]  # (rows, 1, time, end)
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end], mask

    def advance(self, time: int) -> None:
        """All layers have written `time` tokens a row."""
        self.lengths += time
        self.longest += time

    def set_lengths(self, lengths: list[int]) -> None:
        """What each row really has, after a prompt was read with padding."""
        self.lengths = torch.tensor(lengths, dtype=torch.int64, device=self.lengths.device)
        self.longest = max(lengths)

    def keep(self, rows: list[int]) -> None:
        """Only these rows go on, in this order; the memory of the others is freed, layer by layer."""
        kept = torch.tensor(rows, device=self.lengths.device)
        for buffers in (self.keys, self.values):
            for layer, buffer in enumerate(buffers):
                buffers[layer] = buffer[kept]
        self.lengths = self.lengths[kept]
        self.longest = int(self.lengths.max())
