"""From logits to the next id: greedy, temperature, top-k, top-p, min-p, repetition penalty.

Order and meaning are those of transformers' logits processors, which the tests compare with
(tests/parity/test_sampling.py): repetition penalty, temperature, top-k, top-p, min-p.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gptlab.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The defaults draw from the model's own distribution.

    greedy:             the most probable token; only the repetition penalty may stand beside it
    temperature:        logits are divided by it
    top_k:              only the k most probable tokens (0: all); those as probable as the k-th stay too
    top_p:              only the smallest set of tokens that has this probability; those as probable as the last
                        stay too (nucleus sampling: Holtzman et al., "The Curious Case of Neural Text
                        Degeneration", 2020)
    min_p:              only tokens at least this share as probable as the most probable one
                        (Nguyen et al., "Turning Up the Heat: Min-p Sampling", 2024)
    repetition_penalty: the logit of a token that was read or written is divided by it, or multiplied where
                        it is negative (Keskar et al., "CTRL", 2019, section 4.1; made sign-aware)
    """

    greedy: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        _want("temperature", self.temperature, self.temperature > 0, "above 0; for the most probable token use greedy")
        _want("top_k", self.top_k, self.top_k >= 0, "at least 0 (0: all tokens)")
        _want("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1 (1: all tokens)")
        _want("min_p", self.min_p, 0 <= self.min_p <= 1, "from 0 (all tokens) to 1")
        _want("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0, "above 0 (1: none)")
        if self.greedy:
            for name, neutral in (("temperature", 1), ("top_k", 0), ("top_p", 1), ("min_p", 0)):
                if getattr(self, name) != neutral:
                    raise UserError(
                        f"{name} = {getattr(self, name)} beside greedy: greedy draws nothing, leave one out"
                    )


def choose(
    logits: Tensor, sampling: Sampling, seen: Sequence[Tensor] | Tensor, generators: Sequence[torch.Generator]
) -> Tensor:
    """The next id of each row, (rows,) int64 on the logits' device; arguments as in `adjust` and `draw`."""
    logits = _penalize(logits.float(), sampling.repetition_penalty, seen)
    if sampling.greedy:
        return logits.argmax(dim=-1)
    if not 0 < sampling.top_k < logits.shape[-1]:
        return draw(_distribution(logits, sampling), generators)
    logits, ids = _most_probable(logits, sampling.top_k)
    return ids.gather(1, draw(_distribution(logits, sampling), generators)[:, None])[:, 0]


def adjust(logits: Tensor, sampling: Sampling, seen: Sequence[Tensor] | Tensor = ()) -> Tensor:
    """The probabilities (rows, vocab_size) float32 that `sampling` makes of logits (rows, vocab_size).

    `seen` holds for each row the ids it has read and written, (n,) int64; only the repetition penalty looks at
    it. `sampling.greedy` is no distribution: that is `choose`'s.
    """
    return _distribution(_penalize(logits.float(), sampling.repetition_penalty, seen), sampling)


def _distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """What `sampling` makes of logits whose repetitions are penalized."""
    # The largest becomes 0, so that no temperature however small makes an infinity of it.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        logits = _without(logits, logits < logits.topk(sampling.top_k).values[:, -1:])
    if sampling.top_p < 1:
        logits = _nucleus(logits, sampling.top_p)
    if sampling.min_p > 0:
        logits = _without(logits, logits < logits.amax(dim=-1, keepdim=True) + math.log(sampling.min_p))
    return logits.softmax(dim=-1)


def draw(probabilities: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """One id a row, (rows,) int64, from probabilities (rows, vocab_size), by one generator a row.

    A row's draw depends on its own generator (on the CPU) and its own probabilities alone, neither on the
    rows beside it nor on the device: one uniform number is drawn, and the id is where the cumulative
    distribution passes it. An id of probability 0 is never drawn.
    """
    exact = torch.float32 if probabilities.device.type == "mps" else torch.float64  # MPS has no float64
    uniform = torch.stack([torch.rand(1, generator=generator, dtype=exact) for generator in generators])
    cumulative = probabilities.cumsum(dim=-1, dtype=exact)
    # Times the last sum, for the sum of rounded probabilities is not exactly 1.
    wanted = uniform.to(probabilities.device) * cumulative[:, -1:]
    ids = torch.searchsorted(cumulative, wanted, right=True).clamp_(max=probabilities.shape[-1] - 1)
    # A parallel sum is monotone only up to rounding and may step up where the probability is 0.
    ids = torch.where(probabilities.gather(1, ids) > 0, ids, probabilities.argmax(dim=-1, keepdim=True))
    return ids.squeeze(1)


def _penalize(logits: Tensor, penalty: float, seen: Sequence[Tensor] | Tensor) -> Tensor:
    if penalty == 1:
        return logits
    logits = logits.clone()
    for row, ids in zip(logits, seen, strict=True):
        scores = row[ids]
        row[ids] = torch.where(scores < 0, scores * penalty, scores / penalty)
    return logits


def _most_probable(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest logits of each row, with all that equal the k-th and perhaps some smaller ones, and their ids, both
    (rows, n), in the order of ids: what is done with these is not done with the whole vocabulary."""
    largest, ids = logits.topk(k + 1)
    if (largest[:, k] == largest[:, k - 1]).any():
        ids = logits.topk(int((logits >= largest[:, k - 1 : k]).sum(dim=-1).max())).indices
    ids = ids.sort().values
    return logits.gather(1, ids), ids


def _nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Logits of only the tokens before which, from the most probable on, there is less than `top_p`, and of those as
    probable as the last of them. All of the vocabulary is sorted (8 ms for 50,257) only where that is over 2,048."""
    total = logits.logsumexp(dim=-1, keepdim=True)
    for n in (min(2048, logits.shape[-1]), logits.shape[-1]):
        largest = logits.topk(n).values
        probabilities = (largest - total).exp()
        inside = probabilities.cumsum(dim=-1) - probabilities < top_p
        if not inside[:, -1].any():
            break
    return _without(logits, logits < largest.where(inside, math.inf).amin(dim=-1, keepdim=True))


def _without(logits: Tensor, removed: Tensor) -> Tensor:
    return logits.masked_fill(removed, -math.inf)


def _want(name: str, value: float, valid: bool, wanted: str) -> None:
    if not (valid and math.isfinite(value)):
        raise UserError(f"{name} = {value}: must be {wanted}")
