"""One more token a row through a whole GPT-2 on a CPU: the weights in their precision, and the call of decode.cpp.

A token at batch 1 costs one reading of all weights, so fewer bytes a weight are as much more speed.

bfloat16 is a rounding to 8 significant bits. int8 is symmetric, w ≈ scale · q with one scale for each output: then
the scale stands outside of the sum over the inputs, a sum costs one multiplication, and torch's own int8 product
(`_weight_int8pack_mm`) reads the same numbers. The perplexity of a trained model of width 128, where a weight counts
for more than in a wide one, rises by 0.22 % (bfloat16: 0.003 %; benchmarks/generation.py measures it). A scale for
each 64 inputs would leave 0.08 % of it, for 6 % more bytes. Activations stay float32 here; torch's products, which do
the work where there is no compiler, round them to bfloat16 (generation/precision.py).
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from gptlab.errors import UserError

Precision = Literal["float32", "bfloat16", "int8"]


def check_precision(name: str) -> Precision:
    """The name, if it is one of a precision; else UserError."""
    if name not in get_args(Precision):
        raise UserError(f"precision {name!r}: wanted {', '.join(get_args(Precision))}")
    return cast("Precision", name)


class Weight(NamedTuple):
    """A product's weight (out, in): `values` in float32, bfloat16 or int8, times `scale` (out,) where there is one."""

    values: Tensor
    scale: Tensor | None = None

    def restored(self) -> Tensor:
        """What it stands for, (out, in) float32."""
        values = self.values.float()
        return values if self.scale is None else values * self.scale[:, None]


def rounded(weight: Tensor, precision: Precision) -> Weight:
    """A weight (out, in) float32 in `precision`; float32 is the weight itself, not a copy."""
    weight = weight.detach()
    if precision == "float32":
        return Weight(weight)
    if precision == "bfloat16":
        return Weight(weight.bfloat16())
    scale = (weight.abs().amax(dim=1) / 127).clamp_min(torch.finfo(torch.float32).tiny)
    return Weight((weight / scale[:, None]).round_().to(torch.int8), scale)


class Decode:
    """A GPT-2 that reads one token a row, in the C++ of `library`: no other call, no copy of a float32 weight.

    weights: by GPT-2's own names, as `GPT.state_dict()` has them: float32, contiguous, on the CPU. They are used where
    they lie; the weights of products are copied where `precision` is not float32. Threads may share one: a call changes
    nothing but the keys and values that it is given.
    """

    def __init__(
        self, library: ctypes.CDLL, weights: Mapping[str, Tensor], precision: Precision, *, n_head: int, epsilon: float
    ) -> None:
        self._call = getattr(library, f"decode_{precision}")
        self._scratch_floats = library.decode_scratch
        self._scratch_floats.restype = ctypes.c_int64
        self._alive: list[Tensor] = []  # what C++ points to

        def pointer(tensor: Tensor) -> int:
            self._alive.append(tensor)
            return tensor.data_ptr()

        def norm(name: str) -> _Norm:
            return _Norm(pointer(weights[f"{name}.weight"]), pointer(weights[f"{name}.bias"]))

        def product(name: str) -> _Product:
            weight, bias = rounded(weights[f"{name}.weight"], precision), weights.get(f"{name}.bias")
            rest = (None if tensor is None else pointer(tensor) for tensor in (weight.scale, bias))
            return _Product(pointer(_pack(weight.values)), *rest)

        def layer(name: str) -> _Layer:
            return _Layer(
                norm(f"{name}.ln_1"), product(f"{name}.attn.c_attn"), product(f"{name}.attn.c_proj"),
                norm(f"{name}.ln_2"), product(f"{name}.mlp.c_fc"), product(f"{name}.mlp.c_proj"),
            )  # fmt: skip

        n_layer = sum(name.endswith(".ln_1.weight") for name in weights)
        self._layers = (_Layer * n_layer)(*(layer(f"h.{n}") for n in range(n_layer)))
        wte, wpe = weights["wte.weight"], weights["wpe.weight"]
        self._vocab_size = len(wte)
        self._model = _Model(
            *wte.shape, len(wpe), n_head, n_layer, epsilon, pointer(wte), pointer(wpe), self._layers,
            norm("ln_f"), product("lm_head"),
        )  # fmt: skip

    def __call__(self, ids: Tensor, lengths: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
        """Logits (rows, vocab_size) float32 after one more token a row.

        ids (rows,) int64 stand at positions `lengths` (rows,) int64, for which keys and values, of each layer (rows,
        n_head, capacity, size) float32, have room; they are written there. IndexError for an id or a position that
        there is not.
        """
        rows, _, capacity, _ = keys[0].shape
        threads = torch.get_num_threads()
        layout = ctypes.c_int64(rows), ctypes.c_int64(capacity), threads
        # Of each call its own: ctypes lets other threads run meanwhile. Behind the rows' ends it must be 0.
        scratch = torch.zeros(self._scratch_floats(ctypes.byref(self._model), *layout))
        ids = ids.contiguous()
        logits = torch.empty(rows, self._vocab_size)
        batch = _Batch(
            rows, capacity, ids.data_ptr(), lengths.data_ptr(), _pointers(keys), _pointers(values),
            logits.data_ptr(), scratch.data_ptr(),
        )  # fmt: skip
        if not self._call(ctypes.byref(self._model), ctypes.byref(batch), threads):
            raise IndexError(f"ids {ids.tolist()} at {lengths.tolist()}: {self._vocab_size} ids, {capacity} positions")
        return logits


def _pack(values: Tensor) -> Tensor:
    """(out, in) as decode.cpp reads it: in words of 32 bits, whose parts are 16 apart; in padded with 0 to 64s.

    bfloat16: word 0 is (0, 16), word 1 (1, 17), …; int8: word 0 is (0, 16, 32, 48). float32 stays as it is.
    """
    parts = 4 // values.element_size()
    if parts == 1:
        return values
    padded = F.pad(values, (0, -values.shape[1] % 64))
    return padded.view(len(values), -1, parts, 16).transpose(2, 3).contiguous()


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


# The structures of decode.cpp, field by field.


class _Norm(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("weight", "bias")]


class _Product(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("weight", "scale", "bias")]


class _Layer(ctypes.Structure):
    _fields_ = [
        ("ln_1", _Norm), ("c_attn", _Product), ("attn_c_proj", _Product),
        ("ln_2", _Norm), ("c_fc", _Product), ("mlp_c_proj", _Product),
    ]  # fmt: skip


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("vocab", "width", "context", "heads", "n_layer")),
        ("epsilon", ctypes.c_double), ("wte", ctypes.c_void_p), ("wpe", ctypes.c_void_p),
        ("layers", ctypes.POINTER(_Layer)), ("ln_f", _Norm), ("head", _Product),
    ]  # fmt: skip


class _Batch(ctypes.Structure):
    _fields_ = [
        ("rows", ctypes.c_int64), ("capacity", ctypes.c_int64), ("ids", ctypes.c_void_p), ("lengths", ctypes.c_void_p),
        ("keys", ctypes.POINTER(ctypes.c_void_p)), ("values", ctypes.POINTER(ctypes.c_void_p)),
        ("logits", ctypes.c_void_p), ("scratch", ctypes.c_void_p),
    ]  # fmt: skip
