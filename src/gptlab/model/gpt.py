"""GPT-2, exactly, in one file that needs nothing but torch.

Radford et al., "Language Models are Unsupervised Multitask Learners" (2019); checked against
transformers' modeling_gpt2.py (logits and gradients, tests/parity/test_gpt2.py). Modules carry GPT-2's own
names (wte, wpe, h, c_attn, c_proj, c_fc, ln_f), so that Hugging Face's and PEFT's files map one to one;
weights are kept (out, in).

    model = GPT(GPTShape(vocab_size=50_257, context=1024, n_layer=12, n_head=12, n_embd=768))
    hidden = model(tokens)             # (rows, time) → (rows, time, n_embd)
    logits = model.logits(hidden)      # (rows, time, vocab_size)

The model stops at the last hidden state, because training never wants all logits at once: the head and its
loss are one fused function (head.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

PLAIN_ATTENTION_TIME = 512
"""Up to so many positions a CPU does attention by plain products: in bfloat16 forward and backward take less than a
third of the time of torch's SDPA at 128 (15 against 52 ms of processor time for 8 × 12 heads), six tenths at 512; at
1,024 SDPA wins in float32."""

Activation = Literal["gelu_new", "gelu"]
"""GELU (Hendrycks & Gimpel, 2016) by its tanh formula, GPT-2's own, or exactly, by the error function; the names are
those of a config.json."""


@dataclass(frozen=True)
class GPTShape:
    """What a GPT-2 is made from. `tie_head`: the output layer shares the token embedding's weights."""

    vocab_size: int
    context: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float = 0.0
    tie_head: bool = True
    layer_norm_epsilon: float = 1e-5
    activation: Activation = "gelu_new"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context", "n_layer", "n_head", "n_embd"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd = {self.n_embd} is not divisible by n_head = {self.n_head}")
        if self.activation not in get_args(Activation):
            raise ValueError(f"activation = {self.activation!r}: wanted {' or '.join(map(repr, get_args(Activation)))}")


class Cache(Protocol):
    """Keys and values of what has been read (cache.py has the one that generation uses)."""

    def positions(self, time: int) -> Tensor:
        """The positions (rows, time) of the next `time` tokens of each row."""
        ...

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Writes (rows, heads, time, size) keys and values of the next tokens; returns all of the layer's
        keys and values and the mask (rows, 1, time, all), True where a query may look."""
        ...

    def advance(self, time: int) -> None:
        """All layers have written `time` tokens."""
        ...


class Attention(nn.Module):
    def __init__(self, shape: GPTShape, layer: int) -> None:
        super().__init__()
        self.layer, self.n_head, self.dropout = layer, shape.n_head, shape.dropout
        self.c_attn = nn.Linear(shape.n_embd, 3 * shape.n_embd)
        self.c_proj = nn.Linear(shape.n_embd, shape.n_embd)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        rows, time, width = x.shape
        queries, keys, values = (
            part.view(rows, time, self.n_head, -1).transpose(1, 2)  # (rows, heads, time, size)
            for part in self.c_attn(x).split(width, dim=2)
        )
        if cache is not None:
            keys, values, mask = cache.extend(self.layer, keys, values)
            mixed = F.scaled_dot_product_attention(queries, keys, values, mask)
        else:
            mixed = causal_attention(queries, keys, values, self.dropout if self.training else 0.0)
        return self.c_proj(mixed.transpose(1, 2).reshape(rows, time, width))


def causal_attention(queries: Tensor, keys: Tensor, values: Tensor, dropout: float = 0.0) -> Tensor:
    """softmax(Q·Kᵀ/√size + causal mask)·V for (rows, heads, time, size), with dropout on the softmax."""
    rows, heads, time, size = queries.shape
    if queries.device.type != "cpu" or time > PLAIN_ATTENTION_TIME:
        return F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout, is_causal=True)
    flat = (rows * heads, time, size)
    probabilities: Tensor = _CausalSoftmax.apply(queries.reshape(flat), keys.reshape(flat))
    mixed = F.dropout(probabilities, dropout, dropout > 0) @ values.reshape(flat)
    return mixed.view(rows, heads, time, size)


class _CausalSoftmax(torch.autograd.Function):
    """softmax(Q·Kᵀ/√size + causal mask) for queries and keys (n, time, size): (n, time, time) in their own dtype.

    Scores and softmax are float32 also where that is bfloat16: a score of 20 would be off by up to 0.06, and its
    probability by 6 %. Backward has the rounded probabilities alone, which cost no memory that the product with V does
    not keep anyway, and is then as exact as SDPA's.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor) -> Tensor:
        time, wide = queries.shape[1], torch.promote_types(queries.dtype, torch.float32)
        later = torch.full((time, time), -math.inf, dtype=wide, device=queries.device).triu_(1)
        with torch.autocast(queries.device.type, enabled=False):
            scores = torch.baddbmm(
                later, queries.to(wide), keys.to(wide).transpose(1, 2), alpha=1 / math.sqrt(queries.shape[2])
            )  # (n, time, time)
        probabilities = scores.softmax(dim=-1).to(queries.dtype)
        ctx.save_for_backward(queries, keys, probabilities)
        return probabilities

    @staticmethod
    def backward(ctx: Any, d_probabilities: Tensor) -> tuple[Tensor, Tensor]:
        queries, keys, probabilities = ctx.saved_tensors
        d_scores = torch._softmax_backward_data(d_probabilities, probabilities, -1, probabilities.dtype)
        d_scores *= 1 / math.sqrt(queries.shape[2])
        return d_scores @ keys, d_scores.transpose(1, 2) @ queries


class MLP(nn.Module):
    def __init__(self, shape: GPTShape) -> None:
        super().__init__()
        self.c_fc = nn.Linear(shape.n_embd, 4 * shape.n_embd)
        self.c_proj = nn.Linear(4 * shape.n_embd, shape.n_embd)
        self.approximate = "tanh" if shape.activation == "gelu_new" else "none"

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate=self.approximate))


class Block(nn.Module):
    def __init__(self, shape: GPTShape, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(shape.n_embd, eps=shape.layer_norm_epsilon)
        self.attn = Attention(shape, layer)
        self.ln_2 = nn.LayerNorm(shape.n_embd, eps=shape.layer_norm_epsilon)
        self.mlp = MLP(shape)
        self.dropout = shape.dropout

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        x = x + F.dropout(self.attn(self.ln_1(x), cache), self.dropout, self.training)
        return x + F.dropout(self.mlp(self.ln_2(x)), self.dropout, self.training)


class GPT(nn.Module):
    """GPT-2. `activation_checkpointing = True` computes each block again in backward instead of keeping
    its insides: memory of one block instead of all, for a third more arithmetic, the same gradients."""

    def __init__(self, shape: GPTShape) -> None:
        super().__init__()
        self.shape = shape
        self.activation_checkpointing = False
        self.wte = nn.Embedding(shape.vocab_size, shape.n_embd)
        self.wpe = nn.Embedding(shape.context, shape.n_embd)
        self.h = nn.ModuleList(Block(shape, layer) for layer in range(shape.n_layer))
        self.ln_f = nn.LayerNorm(shape.n_embd, eps=shape.layer_norm_epsilon)
        self.lm_head = nn.Linear(shape.n_embd, shape.vocab_size, bias=False)
        if shape.tie_head:
            self.lm_head.weight = self.wte.weight
        self.initialize()

    @torch.no_grad()
    def initialize(self) -> None:
        """GPT-2's start: N(0, 0.02), biases 0, layers that write into the residual stream N(0, 0.02/√(2·n_layer))."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)  # LayerNorm's weight; any bias
            else:
                into_residual = name.endswith("c_proj.weight")
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.shape.n_layer) if into_residual else 0.02)

    @property
    def head_weight(self) -> Tensor:
        """The output layer's weight, (vocab_size, n_embd)."""
        return self.lm_head.weight

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Tokens (rows, time) int64 → the last hidden state (rows, time, n_embd), after ln_f.

        With a cache the tokens continue what it holds. ValueError where time exceeds the context.
        """
        time = tokens.shape[1]
        if time > self.shape.context:
            raise ValueError(f"{time} tokens do not fit into a context of {self.shape.context}")
        positions = torch.arange(time, device=tokens.device) if cache is None else cache.positions(time)
        x = F.dropout(self.wte(tokens) + self.wpe(positions), self.shape.dropout, self.training)
        for block in self.h:
            if self.activation_checkpointing and cache is None and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x, cache)
        if cache is not None:
            cache.advance(time)
        return self.ln_f(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (…, n_embd) → logits (…, vocab_size)."""
        return F.linear(hidden, self.head_weight)
