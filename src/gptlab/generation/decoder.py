"""A model that is ready to write: prompts are read at once, then a token a row is read at a time.

    decoder = Decoder(model, "int8")                    # prepares the weights
    cache, logits = decoder.read(windows, capacity)     # windows of ids → logits (rows, vocab_size)
    logits = decoder.step(ids, cache)                   # one more id a row → logits

A token at a time is bound by the memory that its weights come from. On a CPU one C++ call therefore makes a GPT's step
(kernels/decode.cpp); elsewhere, and where that call cannot be had, torch does. `precision` is that of the weights in
the products of a step. Prompts are always read with the model as it is: there arithmetic is the bound, not memory.

What a GPT has read is kept as keys and values. An RNN is in a state, of one size however long the text.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gptlab.errors import UserError
from gptlab.generation.precision import with_rounded_products
from gptlab.kernels import native
from gptlab.kernels.decode import Decode, Precision, check_precision
from gptlab.model.cache import KeyValueCache
from gptlab.model.classifier import KINDS, Task, labels_of, task_of
from gptlab.model.gpt import GPT, MLP, Attention, Block
from gptlab.model.rnn import RNN, RecurrentState

INSTEAD: dict[Task, str] = {
    "classification": "gptlab.classify asks it",
    "reward": "as evaluate's reward, or samples.reward in a recipe, it scores what another model answers",
}
"""What to do with a model that does not write."""


class Decoder:
    """A model and its weights in `precision`, for as many texts as wanted.

    It is made for the model as it is: after training goes on, or a hook was put on it, make another. With float32
    nothing is copied; bfloat16 and int8 keep a half and a quarter of the products' bytes beside the model. Threads may
    share one whose model is in eval mode. UserError for a model that does not write, and for a precision that there is
    not; an RNN has float32 alone.

    context: how long a text can get before its beginning must go
    native:  the C++ step, or None where torch makes it
    reason:  why torch does so on a CPU, more slowly, in a few words; else "" (on a GPU nothing else is wanted)
    """

    def __init__(self, model: GPT | RNN, precision: Precision = "float32") -> None:
        if (task := task_of(labels_of(model))) != "language":
            raise UserError(f"the model is {KINDS[task]} and writes no text; {INSTEAD[task]}")
        self.model, self.precision = model, check_precision(precision)
        self.context, self.reason = sys.maxsize, ""
        self.native: Decode | None = None
        self._steps: Any = model
        if not isinstance(model, RNN):
            self._prepare(model, precision)
        elif precision != "float32":
            raise UserError(f"precision {precision!r}: is for GPTs; an RNN writes with float32 weights, leave it out")

    def _prepare(self, model: GPT, precision: Precision) -> None:
        self.context = model.shape.context
        on_cpu = model.wte.weight.device.type == "cpu"
        self.reason = _unlike(model) or native.reason("decode") if on_cpu else ""
        if on_cpu and not self.reason:
            self.native = _native(model, precision)
        elif precision != "float32":
            self._steps = with_rounded_products(model, precision)

    def read(self, windows: Sequence[Sequence[int]], capacity: int) -> tuple[KeyValueCache | RecurrentState, Tensor]:
        """Reads token sequences of any lengths in one forward: what is kept of them, with room for `capacity` tokens a
        row, and the logits (rows, vocab_size) after the last token of each."""
        lengths = [len(window) for window in windows]
        padded = np.zeros((len(windows), max(lengths)), dtype=np.int64)
        for row, window in zip(padded, windows, strict=True):
            row[: len(window)] = window
        model, weight = self.model, self.model.wte.weight
        tokens, ends = torch.from_numpy(padded).to(weight.device), torch.tensor(lengths, device=weight.device) - 1
        cache: KeyValueCache | RecurrentState
        if isinstance(model, RNN):
            cache = RecurrentState(lengths)
            hidden = model(tokens, cache)  # (rows, time, n_hidden)
        else:
            cache = KeyValueCache(model.shape, len(tokens), device=weight.device, dtype=weight.dtype, capacity=capacity)
            hidden = model(tokens, cache)  # (rows, time, n_embd)
            cache.set_lengths(lengths)
        # Only the last real position goes through the head: no (rows, time, vocab_size) logits.
        return cache, model.lm_head(hidden[torch.arange(len(tokens), device=weight.device), ends])

    def step(self, ids: Tensor, cache: KeyValueCache | RecurrentState) -> Tensor:
        """Reads one more token a row, ids (rows,), and gives the logits (rows, vocab_size) after it.

        ValueError where a GPT's cache is full, IndexError for an id that the model does not know.
        """
        if self.native is None or isinstance(cache, RecurrentState):
            logits: Tensor = self._steps.lm_head(self._steps(ids[:, None], cache)[:, -1])
            return logits
        cache.require_room(1)
        logits = self.native(ids, cache.lengths, cache.keys, cache.values)
        cache.advance(1)
        return logits


def _native(model: GPT, precision: Precision) -> Decode:
    library, shape = native.library("decode"), model.shape
    assert library is not None
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    return Decode(library, weights, precision, n_head=shape.n_head, epsilon=shape.layer_norm_epsilon)


PLAIN = {GPT, Block, Attention, MLP, nn.ModuleList, nn.LayerNorm, nn.Linear, nn.Embedding}


def _unlike(model: GPT) -> str:
    """What of a model on the CPU the C++ step would not compute, in a few words; "" where it computes all.

    It computes a GPT in float32 with GPT-2's own GELU and calls no module, so nobody may have wrapped one (as an
    adapter does) or listen to one.
    """
    if model.shape.activation != "gelu_new":
        return f"its activation is {model.shape.activation}"
    for module in model.modules():
        if type(module) not in PLAIN:
            return f"it has a {type(module).__name__}"
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return "a module of it has a hook"
    if not all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in model.state_dict().values()):
        return "its weights are not float32, or not contiguous"
    return ""
