"""How probable a language model finds continuations of contexts.

What is scored after what is as lm-evaluation-harness 0.4.13 has it: `loglikelihood` and `_encode_pair` in
lm_eval/api/model.py, `_loglikelihood_tokens` in lm_eval/models/huggingface.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gptlab.data.batch import IGNORE, Batch, pad_rows
from gptlab.data.choices import Item
from gptlab.device import Precision
from gptlab.errors import ModelError
from gptlab.evaluation.scores import Scorer
from gptlab.model import head
from gptlab.model.folder import Model
from gptlab.text.tokenizer import Tokenizer


class LogLikelihoods(NamedTuple):
    """Of every continuation of every item, in their order.

    log_probs: log p(continuation | context) in nats, (continuations,) float64
    greedy:    whether each of its tokens is the most probable one, (continuations,) bool; True where that was not asked
    truncated: items of which something did not fit into the model's context
    """

    log_probs: np.ndarray
    greedy: np.ndarray
    truncated: int


def log_likelihoods(
    model: Model,
    tokenizer: Tokenizer,
    items: Sequence[Item],
    *,
    device: torch.device,
    precision: Precision,
    batch_tokens: int = 8192,
    greedy: bool = False,
    on_batch: Callable[[int, int], None] | None = None,
) -> LogLikelihoods:
    """What a language model on `device` makes of the items' continuations, at most `batch_tokens` read at once.

    An item without a context follows EOS. What is longer than the model's context loses its beginning; a continuation
    that alone is longer is read in pieces, each after as much of what stands before it as there is room for.
    `on_batch(done, total)` is told of rows, one a continuation or piece.

    ModelError where a probability is not finite.
    """
    rows = Continuations(items, tokenizer, model.shape.context)
    reading = _Reading(rows.continuations, greedy)
    scorer = Scorer(reading, device, precision, max(1, batch_tokens // rows.context))
    scorer.rows(model, rows, on_batch=on_batch)
    if not np.isfinite(reading.log_probs).all():
        raise ModelError("the model's probabilities are not finite: its weights are damaged; use another checkpoint")
    return LogLikelihoods(reading.log_probs, reading.greedy, rows.truncated)


class _Row(NamedTuple):
    """Ids (n + 1,), of which the last `scored` are predicted: (a piece of) the continuation of this number."""

    ids: np.ndarray
    scored: int
    number: int


class Continuations:
    """The items' continuations as rows (see data.batch.Rows), the longest first, so that the rows of a batch are about
    equally long. A batch's `rows` are the numbers of the continuations.

    continuations: how many there are
    truncated:     items of which something did not fit into `context` tokens
    """

    def __init__(self, items: Sequence[Item], tokenizer: Tokenizer, context: int) -> None:
        rows: list[_Row] = []
        truncated = set()
        whose = [number for number, item in enumerate(items) for _ in item.continuations]
        for number, (before, after) in enumerate(_encode(items, tokenizer)):
            whole = np.concatenate([before, after])
            if len(whole) > context + 1:
                truncated.add(whose[number])
            for start in range(len(before), len(whole), context):
                end = min(start + context, len(whole))
                rows.append(_Row(whole[max(0, end - context - 1) : end], end - start, number))
        self._rows = sorted(rows, key=lambda row: -len(row.ids))
        self.continuations, self.truncated = len(whose), len(truncated)
        self.context = len(self._rows[0].ids) - 1
        self.scored = sum(row.scored for row in rows)

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, rows: np.ndarray, epoch: int = 0) -> Batch:
        chosen = [self._rows[row] for row in rows]
        pairs = [(row.ids[:-1].tolist(), _targets(row)) for row in chosen]
        return pad_rows(pairs, [row.number for row in chosen])


def _targets(row: _Row) -> list[int]:
    return [IGNORE] * (len(row.ids) - 1 - row.scored) + row.ids[len(row.ids) - row.scored :].tolist()


def _encode(items: Sequence[Item], tokenizer: Tokenizer) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each continuation the ids of its context and its own; EOS is the context where there is none.

    The harness encodes both together, and takes what is beyond the ids of the context alone. Encoded apart they are the
    same: GPT-2's splitting never joins a space to the word before it, and white space at the end of a context goes,
    there as here, to the continuation.
    """
    pairs = []
    for item in items:
        context = item.context.rstrip()
        space = item.context[len(context) :]
        pairs += [(context, space + continuation) for continuation in item.continuations]
    contexts = list(dict.fromkeys(context for context, _ in pairs))
    ids_of = dict(zip(contexts, tokenizer.encode_documents(contexts), strict=True))
    ids_of[""] = np.array([tokenizer.eos_id], dtype=np.uint32)
    after = tokenizer.encode_documents([continuation for _, continuation in pairs])
    return [(ids_of[context], ids) for (context, _), ids in zip(pairs, after, strict=True)]


class _Reading:
    """As an objective it sums nothing, and keeps what is found of each continuation."""

    weights: Mapping[str, str] = {}

    def __init__(self, continuations: int, asks_greedy: bool) -> None:
        self.log_probs = np.zeros(continuations)
        self.greedy = np.ones(continuations, dtype=bool)
        self._asks_greedy = asks_greedy

    def __call__(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        hidden, weight = model(batch.tokens), model.head_weight
        log_probs = head.target_log_probs(hidden, weight, batch.targets, batch.positions)  # (n,)
        numbers = batch.rows[(batch.positions // batch.tokens.shape[1]).cpu()].numpy()  # (n,), whose each of them is
        np.add.at(self.log_probs, numbers, log_probs.cpu().double().numpy())
        if self._asks_greedy:
            np.logical_and.at(self.greedy, numbers, _are_most_probable(hidden, weight, batch).cpu().numpy())
        return {}

    def metrics(self, sums: Mapping[str, float], weight: float) -> dict[str, float]:
        return {}


def _are_most_probable(hidden: Tensor, weight: Tensor, batch: Batch) -> Tensor:
    """Whether the target of each supervised position has the highest logit, (n,) bool; some positions at a time.

    In float32 whatever the precision: a bfloat16 has three digits, so that often several tokens share the highest.
    """
    chosen = hidden.flatten(0, 1)[batch.positions].float()
    size = max(1, head.CHUNK_ELEMENTS // len(weight))
    with torch.autocast(hidden.device.type, enabled=False):
        best = torch.cat([F.linear(part, weight.float()).argmax(dim=1) for part in chosen.split(size)])
    return best == batch.targets.flatten()[batch.positions]
