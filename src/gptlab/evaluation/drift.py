"""How far a model has moved from the one that it came from: in what it writes itself, and on another text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptlab.data.batch import IGNORE, Batch, TextRows, pad_rows
from gptlab.device import Precision, pick_precision
from gptlab.errors import UserError
from gptlab.evaluation.answers import Answer, prompt_ids
from gptlab.evaluation.scores import Scorer, rows_at_once
from gptlab.model.distilled_head import summed_distillation
from gptlab.model.folder import Model
from gptlab.objectives.language import LanguageObjective
from gptlab.run.open import OpenModel
from gptlab.text.dialogue import Message

SHOWN_TOKENS = 5
"""An error names at most so many tokens."""


def answers_kl(
    model: OpenModel,
    start: OpenModel,
    prompts: Sequence[Sequence[Message]],
    answers: Sequence[Answer],
    *,
    max_new_tokens: int,
    device: torch.device,
    on_batch: Callable[[int, int], None] | None = None,
) -> float:
    """KL(model ‖ start) of the next token, in nats: the mean over the tokens of the model's own `answers` (one to each
    of the `prompts`, of at most `max_new_tokens`), those that close them included.

    At each of these positions it is exact, over all of the vocabulary. Of answers drawn as they come (temperature 1,
    from all tokens) its sum estimates, without bias, the KL of the two distributions of answers (Amini, Vieira and
    Cotterell, "Better Estimation of the KL Divergence Between Language Models", 2025). Both models read the same ids,
    by the model's template; what was written after the shorter of their contexts was full is left out.

    It is computed in float32 whatever the precision of the models' other scores: logits of bfloat16 have errors larger
    than the divergence of two models that are alike.

    Both models are on `device`, in eval mode. UserError where they do not read the same tokens.
    """
    check_same_tokens(model, start)
    rows = _AnswerRows(_rows(model, prompts, answers, _context(model, start), max_new_tokens))
    divergence = _Divergence(start.model, model.require_tokenizer().vocab_size)
    scorer = Scorer(divergence, device, pick_precision("float32", device), rows_at_once(rows))
    return scorer.rows(model.model, rows, on_batch=on_batch)["kl"]


def text_perplexity(
    model: Model,
    rows: TextRows,
    *,
    device: torch.device,
    precision: Precision,
    on_batch: Callable[[int, int], None] | None = None,
) -> float:
    """A language model's perplexity per token of a text."""
    scorer = Scorer(LanguageObjective(), device, precision, rows_at_once(rows))
    return scorer.rows(model, rows, on_batch=on_batch)["perplexity"]


def check_same_tokens(model: OpenModel, start: OpenModel) -> None:
    """UserError, with the tokens, where `start` cannot read what `model` reads and writes."""
    ours, theirs = model.require_tokenizer(), start.require_tokenizer()
    if ours.fingerprint == theirs.fingerprint:
        return
    if lacking := [token for token in ours.special_tokens if token not in theirs.special_tokens]:
        raise UserError(
            f"{start.name} lacks tokens that {model.name} was given: {', '.join(lacking[:SHOWN_TOKENS])}. It cannot "
            "read the same dialogues; compare with a model that has them, such as the one that this was tuned from"
        )
    raise UserError(
        f"{start.name} reads other tokens ({theirs.vocab_size:,}) than {model.name} ({ours.vocab_size:,}), so that "
        "nothing of theirs stands beside each other; compare two models of one tokenizer"
    )


def _context(model: OpenModel, start: OpenModel) -> int:
    return min(model.model.shape.context, start.model.shape.context)


def _rows(
    model: OpenModel, prompts: Sequence[Sequence[Message]], answers: Sequence[Answer], context: int, max_new_tokens: int
) -> list[tuple[list[int], list[int]]]:
    """(ids, targets) of each answer after its prompt: what was read while it was written, within `context` tokens."""
    tokenizer, template = model.require_tokenizer(), model.template
    end = tokenizer.eos_id if template is None else template.end_id(tokenizer)
    rows = []
    for messages, answer in zip(prompts, answers, strict=True):
        prompt = prompt_ids(messages, tokenizer, template, context, max_new_tokens)[0] or [end]
        if len(prompt) > context:  # as generation/engine.py shortens it
            prompt = prompt[-max(context - max_new_tokens, context // 2, 1) :]
        written = [*answer.ids, *([end] if answer.stopped == "eos" else [])]
        ids, targets = [*prompt, *written][:-1], [*[IGNORE] * (len(prompt) - 1), *written]
        rows.append((ids[:context], targets[:context]))
    return rows


class _AnswerRows:
    """(ids, targets) as rows (data/batch.py's Rows), the longest first, so that the rows of a batch are about equally
    long."""

    def __init__(self, rows: list[tuple[list[int], list[int]]]) -> None:
        self._rows = sorted(rows, key=lambda row: -len(row[0]))
        self.context = len(self._rows[0][0])
        self.scored = sum(target != IGNORE for _, targets in rows for target in targets)

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, rows: np.ndarray, epoch: int = 0) -> Batch:
        numbers = rows.tolist()
        return pad_rows([self._rows[number] for number in numbers], numbers)


class _Divergence:
    """As an objective: KL(model ‖ start) over the first `vocab_size` tokens, summed over supervised positions. What
    either output layer is padded with beyond them is no token."""

    weights: Mapping[str, str] = {}

    def __init__(self, start: Model, vocab_size: int) -> None:
        self.start, self.vocab_size = start, vocab_size

    def __call__(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        # The fused distillation's KL is from the teacher to the student, and here the model is in the teacher's place.
        _, kl, _ = summed_distillation(
            self.start(batch.tokens), self.start.head_weight[: self.vocab_size],
            model(batch.tokens), model.head_weight[: self.vocab_size],
            batch.targets, batch.positions, alpha=1.0, temperature=1.0,
        )  # fmt: skip
        return {"kl": kl}

    def metrics(self, sums: Mapping[str, Any], weight: float) -> dict[str, float]:
        return {}
