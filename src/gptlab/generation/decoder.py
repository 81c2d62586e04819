"""A model that is ready to write: prompts are read at once, then a token a row is read at a time.

    decoder = Decoder(model, "int8")                    # prepares the weights
    cache, logits = decoder.read(windows, capacity)     # windows of ids → logits (rows, vocab_size)
    logits = decoder.step(ids, cache)                   # one more id a row → logits

A token at a time is bound by the memory that its weights come from. On a CPU one C++ call therefore makes a step
(kernels/decode.cpp); elsewhere, and where that call cannot be had, torch does. `precision` is that of the weights in
the products of a step. Prompts are always read with the model as it is: there arithmetic is the bound, not memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from gptlab.generation.precision import with_rounded_products
from gptlab.kernels import native
from gptlab.kernels.decode import Decode, Precision, check_precision
from gptlab.model.cache import KeyValueCache
from gptlab.model.gpt import GPT, MLP, Attention, Block


class Decoder:
    """A model and its weights in `precision`, for as many texts as wanted.

    It is made for the weights as they are: after training goes on, make another. With float32 nothing is copied;
    bfloat16 and int8 keep a half and a quarter of the products' bytes beside the model. UserError for a precision that
    there is not. `native` is the C++ step, or None where torch makes it.
    """

    def __init__(self, model: GPT, precision: Precision = "float32") -> None:
        self.model, self.precision = model, check_precision(precision)
        self.native = _native(model, precision)
        self._steps = model if self.native or precision == "float32" else with_rounded_products(model, precision)

    def read(self, windows: Sequence[Sequence[int]], capacity: int) -> tuple[KeyValueCache, Tensor]:
        """Reads token sequences of any lengths in one forward: a cache for `capacity` tokens a row, and the
        logits (rows, vocab_size) after the last token of each."""
        lengths = [len(window) for window in windows]
        padded = np.zeros((len(windows), max(lengths)), dtype=np.int64)
        for row, window in zip(padded, windows, strict=True):
            row[: len(window)] = window
        model, weight = self.model, self.model.wte.weight
        cache = KeyValueCache(model.shape, len(windows), device=weight.device, dtype=weight.dtype, capacity=capacity)
        hidden = model(torch.from_numpy(padded).to(weight.device), cache)  # (rows, time, n_embd)
        cache.set_lengths(lengths)
        # Only the last real position goes through the head: no (rows, time, vocab_size) logits.
        return cache, model.logits(hidden[torch.arange(len(windows), device=weight.device), cache.lengths - 1])

    def step(self, ids: Tensor, cache: KeyValueCache) -> Tensor:
        """Reads one more token a row, ids (rows,), and gives the logits (rows, vocab_size) after it.

        ValueError where the cache is full, IndexError for an id that the model does not know.
        """
        if self.native is None:
            return self._steps.lm_head(self._steps(ids[:, None], cache)[:, -1])
        cache.require_room(1)
        logits = self.native(ids, cache.lengths, cache.keys, cache.values)
        cache.advance(1)
        return logits


def _native(model: GPT, precision: Precision) -> Decode | None:
    """The C++ step, where it can be built and the model is what it computes: a GPT in float32 on the CPU, each of its
    modules GPT-2's own (none wrapped, as an adapter does)."""
    plain = {GPT, Block, Attention, MLP, nn.ModuleList, nn.LayerNorm, nn.Linear, nn.Embedding}
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if not {type(module) for module in model.modules()} <= plain or not all(
        tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.is_contiguous()
        for tensor in weights.values()
    ):
        return None
    library, shape = native.library("decode"), model.shape
    if library is None:
        return None
    return Decode(library, weights, precision, n_head=shape.n_head, epsilon=shape.layer_norm_epsilon)
