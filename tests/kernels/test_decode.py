"""The C++ step against the model in torch: the same logits, the same keys and values."""

from __future__ import annotations

import copy
import ctypes
import platform
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from gptlab.errors import UserError
from gptlab.generation.precision import dequantised
from gptlab.kernels import native
from gptlab.kernels.decode import Decode, Precision, check_precision, rounded
from gptlab.model.cache import KeyValueCache
from gptlab.model.gpt import GPT, GPTShape

SHAPES = [
    GPTShape(vocab_size=61, context=24, n_layer=2, n_head=2, n_embd=16),
    GPTShape(vocab_size=257, context=90, n_layer=3, n_head=5, n_embd=60, tie_head=False),
    GPTShape(vocab_size=101, context=33, n_layer=1, n_head=1, n_embd=132),  # a head of more than four vectors
    GPTShape(vocab_size=7, context=12, n_layer=1, n_head=3, n_embd=3, layer_norm_epsilon=1e-3),
]
PRECISIONS: list[Precision] = ["float32", "bfloat16", "int8"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    library = native.library("decode")
    if library is None:
        pytest.skip(native.reason("decode"))
    return library


@pytest.fixture(autouse=True)
def _restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def make(shape: GPTShape) -> GPT:
    """A model far from its start, where all texts are alike; logits of a few units."""
    torch.manual_seed(shape.n_embd)
    model = GPT(shape).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (1 / shape.n_embd**0.5 if parameter.dim() == 2 else 0.1))
    return model


def step_of(library: ctypes.CDLL, model: GPT, precision: Precision = "float32") -> Decode:
    shape = model.shape
    return Decode(library, model.state_dict(), precision, n_head=shape.n_head, epsilon=shape.layer_norm_epsilon)


def prompt(model: GPT, lengths: list[int], capacity: int) -> KeyValueCache:
    """A cache that has read random prompts of these lengths."""
    cache = KeyValueCache(model.shape, len(lengths), device=CPU, dtype=torch.float32, capacity=capacity)
    model(torch.randint(model.shape.vocab_size, (len(lengths), max(lengths))), cache)
    cache.set_lengths(lengths)
    return cache


@torch.no_grad()
def check(library: ctypes.CDLL, model: GPT, rows: int, precision: Precision = "float32") -> None:
    """Four steps of rows of uneven lengths, of which one leaves, until the longest has filled its context."""
    reference, context, vocab_size = dequantised(model, precision), model.shape.context, model.shape.vocab_size
    step = step_of(library, model, precision)
    lengths = [1 + (context - 5) * (row + 1) // rows for row in range(rows)]
    cache = prompt(reference, lengths, context)
    twin = copy.deepcopy(cache)
    for _ in range(4):
        ids = torch.randint(vocab_size, (len(cache.lengths),))
        logits = step(ids, cache.lengths, cache.keys, cache.values)
        cache.advance(1)
        expected = reference.logits(reference(ids[:, None], twin)[:, 0])
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
        for found, wanted in zip(cache.keys + cache.values, twin.keys + twin.values, strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
        if rows > 1:
            kept = list(range(1, len(cache.lengths)))
            cache.keep(kept)
            twin.keep(kept)
            rows -= 1


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("rows", [1, 3, 8, 20])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.n_layer}x{s.n_embd}")
def test_logits_and_cache_are_those_of_torch(
    library: ctypes.CDLL, shape: GPTShape, rows: int, precision: Precision
) -> None:
    check(library, make(shape), rows, precision)


AVX2 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or not torch.cpu._is_avx2_supported(), reason="no AVX2"
)


@pytest.mark.parametrize("flags", [pytest.param([], id="baseline"), pytest.param(["-march=x86-64-v3"], marks=AVX2)])
def test_other_instruction_sets(flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors of 4 and 8 lanes, where this machine may have 16."""
    compiler = native.find_compiler()
    if compiler is None:
        pytest.skip("no C++ compiler")
    monkeypatch.setattr(native, "_machine_flags", lambda: flags)
    library = ctypes.CDLL(str(native.build("decode", compiler, tmp_path)))
    for precision in PRECISIONS:
        for rows in (1, 3, 8):
            check(library, make(SHAPES[1]), rows, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@torch.no_grad()
def test_neither_threads_nor_other_rows_change_a_bit(library: ctypes.CDLL, precision: Precision) -> None:
    model = make(SHAPES[1])
    step = step_of(library, model, precision)
    cache = prompt(model, [3, 50, 17, 9, 30, 30], 60)
    ids = torch.arange(6)

    def logits(rows: list[int], threads: int) -> torch.Tensor:
        torch.set_num_threads(threads)
        own = copy.deepcopy(cache)
        own.keep(rows)
        return step(ids[rows], own.lengths, own.keys, own.values)

    together = logits([0, 1, 2, 3, 4, 5], 1)
    for threads in (2, 3):
        assert torch.equal(logits([0, 1, 2, 3, 4, 5], threads), together)
        assert torch.equal(logits([4, 1], threads), together[[4, 1]])
        assert torch.equal(logits([2], threads), together[[2]])


def test_threads_may_share_one(library: ctypes.CDLL) -> None:
    """ctypes lets them all run at once: what they write meanwhile must not be each other's. Rows of other numbers and
    caches of other capacities too, so that none takes memory away from another."""
    model = make(GPTShape(vocab_size=503, context=96, n_layer=3, n_head=4, n_embd=96))
    step = step_of(library, model)
    with torch.no_grad():
        prompts = [prompt(model, [2 + thread] * (1 + thread % 3), 60 + thread) for thread in range(6)]

    def write(thread: int) -> list[list[int]]:
        cache, written = copy.deepcopy(prompts[thread]), []
        ids = torch.full_like(cache.lengths, thread)
        for _ in range(40):
            ids = step(ids, cache.lengths, cache.keys, cache.values).argmax(dim=1)
            cache.advance(1)
            written.append(ids.tolist())
        return written

    alone = [write(thread) for thread in range(6)]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            assert list(pool.map(write, range(6))) == alone


@torch.no_grad()
def test_large_activations(library: ctypes.CDLL) -> None:
    """Where exp would overflow: GELU of hundreds of either sign, scores far apart."""
    model = make(SHAPES[0])
    for block in model.h:
        block.mlp.c_fc.weight.mul_(100)
        block.attn.c_attn.weight.mul_(30)
    check(library, model, 3)


@torch.no_grad()
def test_float32_weights_are_read_where_they_lie(library: ctypes.CDLL) -> None:
    model = make(SHAPES[0])
    step = step_of(library, model)
    cache = prompt(model, [4], 8)
    before = step(torch.tensor([5]), cache.lengths, cache.keys, cache.values)
    model.ln_f.weight.mul_(2)
    model.ln_f.bias.mul_(2)
    torch.testing.assert_close(step(torch.tensor([5]), cache.lengths, cache.keys, cache.values), 2 * before)


@pytest.mark.parametrize(
    ("id", "length", "capacity"),
    [(61, 3, 8), (-1, 3, 8), (0, -1, 8), pytest.param(0, 8, 8, id="full"), pytest.param(0, 24, 40, id="context")],
)
@torch.no_grad()
def test_an_id_or_a_position_that_is_none(library: ctypes.CDLL, id: int, length: int, capacity: int) -> None:
    model = make(SHAPES[0])
    cache = prompt(model, [3], capacity)
    with pytest.raises(IndexError, match=rf"ids \[{id}\] at \[{length}\]"):
        step_of(library, model)(torch.tensor([id]), torch.tensor([length]), cache.keys, cache.values)


def test_rounding_to_int8() -> None:
    weight = torch.randn(5, 40)
    weight[3] = 0
    values, scale = rounded(weight, "int8")
    assert scale is not None
    assert values.dtype == torch.int8
    assert values.abs().amax(dim=1).tolist() == [127, 127, 127, 0, 127]
    restored = rounded(weight, "int8").restored()
    assert ((restored - weight).abs() <= 0.5001 * scale[:, None]).all()
    torch.testing.assert_close(scale, weight.abs().amax(dim=1) / 127)


def test_rounding_to_bfloat16_and_not_at_all() -> None:
    weight = torch.randn(5, 40)
    assert torch.equal(rounded(weight, "bfloat16").restored(), weight.bfloat16().float())
    assert rounded(weight, "float32").values.data_ptr() == weight.data_ptr()


def test_a_precision_that_there_is_not() -> None:
    assert check_precision("int8") == "int8"
    with pytest.raises(UserError, match="precision 'int4': wanted float32, bfloat16, int8"):
        check_precision("int4")
