"""Scores of a model on rows, by its objective; of a text also perplexity per word and bits per byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from gptlab.data.batch import Batch, Rows, TextRows
from gptlab.device import Precision, autocast, in_float64
from gptlab.errors import DataError, ModelError
from gptlab.kernels.layers import fast_layers, training_kernels
from gptlab.objectives.base import Objective, exp, means

MICRO_BATCH_TOKENS = 8192


def rows_at_once(rows: Rows) -> int:
    """How many rows a model reads at once where nothing but scoring needs memory."""
    return max(1, MICRO_BATCH_TOKENS // rows.context)


@dataclass(frozen=True)
class Scorer:
    """How rows are scored: by which objective, where, in which precision, how many rows at once."""

    objective: Objective
    device: torch.device
    precision: Precision
    micro_batch_size: int

    @torch.no_grad()
    def rows(
        self,
        model: torch.nn.Module,
        rows: Rows,
        numbers: np.ndarray | None = None,
        on_batch: Callable[[int, int], None] | None = None,
    ) -> dict[str, float]:
        """The objective's means and metrics over the rows `numbers` (all by default), and "tokens", their weight.

        `on_batch(done, total)` is told of each micro-batch. The model is in eval mode meanwhile and afterwards in
        the mode it was in.
        """
        numbers = np.arange(len(rows)) if numbers is None else numbers
        totals: dict[str, Tensor] = {}
        weight = 0.0
        kernels = training_kernels(self.device, self.precision.dtype)
        was_training = model.training
        model.eval()
        try:
            for start in range(0, len(numbers), self.micro_batch_size):
                batch = rows.batch(numbers[start : start + self.micro_batch_size])
                for part in batch.split(len(batch)):
                    with autocast(self.device, self.precision), fast_layers(kernels):
                        sums = self.objective(model, part.to(self.device))
                    for key, value in sums.items():
                        totals[key] = totals.get(key, 0) + in_float64(value)
                weight += batch.weight
                if on_batch:
                    on_batch(min(start + self.micro_batch_size, len(numbers)), len(numbers))
        finally:
            model.train(was_training)
        if not weight:
            raise DataError(
                "the rows to be scored have nothing to learn: choose more (validation.sampled_rows), or all"
            )
        values = {key: value.tolist() for key, value in totals.items()}  # floats; of counts lists of them
        return {**means(self.objective, values, weight), **self.objective.metrics(values, weight), "tokens": weight}

    def text(
        self, model: torch.nn.Module, text: TextRows, on_batch: Callable[[int, int], None] | None = None
    ) -> dict[str, float]:
        """The scores of a whole text, per token, per word and per byte."""
        scores = self.rows(model, text, on_batch=on_batch)
        return scores | text_scores(scores.get("cross_entropy", scores["loss"]), text)

    def whole(
        self, model: torch.nn.Module, rows: Rows, on_batch: Callable[[int, int], None] | None = None
    ) -> dict[str, float]:
        """The scores of all rows, as `text` gives them where they are one."""
        if hasattr(rows, "text_bytes"):
            return self.text(model, cast(TextRows, rows), on_batch)
        return self.rows(model, rows, on_batch=on_batch)


def read_rows(
    read: Callable[[Any, Batch], Tensor],
    numbers: int,
    what: str,
    model: torch.nn.Module,
    rows: Rows,
    *,
    device: torch.device,
    precision: Precision,
    micro_batch_size: int,
    on_batch: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """What `read(model, batch)` finds of every row, (rows, numbers) float32, in the order of the rows, which are read
    as `Scorer.rows` does: the model is left in the mode that it was in. ModelError, which names `what` they are, where
    they are not finite."""
    reading = _Reading(len(rows), numbers, read)
    Scorer(reading, device, precision, micro_batch_size).rows(model, rows, on_batch=on_batch)
    if not np.isfinite(reading.found).all():
        raise ModelError(f"the model's {what} are not finite: its weights are damaged; use another checkpoint")
    return reading.found


class _Reading:
    """As an objective it sums nothing, and keeps what `read` finds of each row."""

    weights: Mapping[str, str] = {}

    def __init__(self, n_rows: int, numbers: int, read: Callable[[Any, Batch], Tensor]) -> None:
        self.read = read
        self.found = np.empty((n_rows, numbers), dtype=np.float32)

    def __call__(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        self.found[batch.rows.numpy()] = self.read(model, batch).float().cpu().numpy()
        return {}

    def metrics(self, sums: Mapping[str, Any], weight: float) -> dict[str, float]:
        return {}


def text_scores(loss: float, text: TextRows) -> dict[str, float]:
    """What does not depend on the tokenizer, from the mean `loss` (nats a token) over a whole text.

    perplexity_per_word = exp(total nats / words), words being separated by white space;
    bits_per_byte = total nats / (ln 2 · bytes of UTF-8). The EOS after each document is in the total.
    """
    nats = loss * text.scored
    return {
        "perplexity_per_word": exp(nats / max(1, text.words)),
        "bits_per_byte": nats / math.log(2) / max(1, text.text_bytes),
    }


def unigram_loss(train_tokens: np.ndarray, scored_tokens: np.ndarray, vocab_size: int) -> float:
    """Nats a token of the best model that ignores context: token frequencies of the training text, each
    counted once more than it stands there (Laplace), so that an unseen token is not impossible.

    Both arrays hold token ids and may be memory maps: they are read in pieces.
    """
    seen, wanted = _counts(train_tokens, vocab_size), _counts(scored_tokens, vocab_size)
    log_probs = np.log((seen + 1) / (seen.sum() + vocab_size))
    return float(-(wanted * log_probs).sum() / wanted.sum())


def _counts(tokens: np.ndarray, vocab_size: int, piece: int = 1 << 22) -> np.ndarray:
    counts = np.zeros(vocab_size, dtype=np.int64)
    for start in range(0, len(tokens), piece):
        counts += np.bincount(tokens[start : start + piece], minlength=vocab_size)
    return counts
