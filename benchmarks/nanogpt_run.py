"""nanoGPT trained for some minutes on a recipe's own tokens, as its train.py trains, and scored as our runs are.

Its model, its configure_optimizers, random windows, a cosine to a tenth, compiled; shape, context, rows a step, dropout
and precision are the recipe's. Where something could count against it, it is decided in its favour: neither compiling
nor validating is on its clock, it is scored in float32, and its cosine's length follows the clock as ours does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from models import Shape, nanogpt
from torch import Tensor, nn

from gptlab.data.batch import IGNORE, Batch
from gptlab.data.windows import TrainingWindows
from gptlab.device import autocast, pick_precision
from gptlab.evaluation.scores import Scorer
from gptlab.objectives.language import LanguageObjective
from gptlab.training.cadence import Cadence
from gptlab.training.length import Length
from gptlab.training.prepare import Prepared
from gptlab.training.recipe import Recipe
from gptlab.training.schedule import ScheduleSettings, rate_factor

BETAS, DECAY, CLIP = (0.9, 0.95), 0.1, 1.0
SCHEDULE = ScheduleSettings(kind="cosine", warmup_steps=100, final_fraction=0.1)
TWENTY_TIMES = Cadence(evaluate_every=0, sample_every=0, save_every=0, epoch_steps=1)
CPU = torch.device("cpu")


class TheirLoss(LanguageObjective):
    """The sums that our scorer reads, from nanoGPT's own loss: a mean, where −1 marks what is not predicted."""

    def __call__(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        targets = batch.targets.masked_fill(batch.targets == IGNORE, -1)
        return {"loss": model(batch.tokens, targets)[1] * batch.weight}


def train_nanogpt(recipe: Recipe, data: Prepared, folder: str, rate: float, minutes: float) -> dict[str, Any]:
    """The curve of sampled validation, twenty points, and at the end the whole validation set. Where the loss is no
    longer finite it stops, says so in `diverged`, and has no `validation`. `folder` is a checkout of nanoGPT."""
    torch.manual_seed(recipe.seed)
    model = make_nanogpt(recipe, data.tokenizer.vocab_size, folder)
    optimizer = model.configure_optimizers(DECAY, rate, BETAS, CPU.type)
    gradients = backward(torch.compile(model), recipe, data)
    started = time.perf_counter()
    gradients()
    optimizer.zero_grad(set_to_none=True)
    compile_seconds = time.perf_counter() - started

    scorer = Scorer(TheirLoss(), CPU, pick_precision("float32", CPU), recipe.training.batch_size)
    rows = len(data.validation)
    sampled = np.linspace(0, rows - 1, min(rows, recipe.validation.sampled_rows)).astype(np.int64)  # as in watch.py
    length, curve, step, seconds, diverged = Length.timed(60 * minutes), [], 0, 0.0, ""
    while length.total is None or step < length.total:
        started = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = rate * rate_factor(SCHEDULE, step, length.total)
        gradients()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step, seconds = step + 1, seconds + time.perf_counter() - started
        length.decide(step, seconds)
        if TWENTY_TIMES.evaluation(step, length.total):
            loss = scorer.rows(model, data.validation, sampled)["loss"]
            if not math.isfinite(loss):
                diverged = f"after step {step:,} the loss on validation was not finite"
                break
            curve.append({"seconds": seconds, "step": step, "loss": loss})
    tokens = step * recipe.training.batch_size * data.rows.context
    return {
        "seconds": seconds, "compile_seconds": compile_seconds, "steps": step, "tokens": tokens,
        "tokens_per_second": tokens / seconds, "parameters": sum(p.numel() for p in model.parameters()),
        "validation": None if diverged else scorer.text(model, data.validation), "diverged": diverged, "curve": curve,
    }  # fmt: skip


def make_nanogpt(recipe: Recipe, vocab_size: int, folder: str) -> Any:
    """nanoGPT of the recipe's shape and dropout (its attention keeps the rate as a number, beside its modules)."""
    model = nanogpt(Shape(**recipe.model.numbers(), tie_head=recipe.model.tie_head, vocab_size=vocab_size), folder)
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = recipe.model.dropout
        elif isinstance(getattr(part, "dropout", None), float):
            part.dropout = recipe.model.dropout
    return model.train()


def backward(compiled: Any, recipe: Recipe, data: Prepared) -> Callable[[], None]:
    """What adds the gradients of one batch of random windows (its get_batch, as one index into the memory map)."""
    assert isinstance(data.rows, TrainingWindows)  # a corpus, as the recipe's
    ids, context = np.asarray(data.rows.file.tokens), data.rows.context  # indexing np.memmap itself is slower
    precision = pick_precision(recipe.training.precision, CPU)

    def gradients() -> None:
        starts = torch.randint(len(ids) - context, (recipe.training.batch_size,)).numpy()
        window = torch.from_numpy(ids[starts[:, None] + np.arange(context + 1)].astype(np.int64))
        with autocast(CPU, precision):
            loss = compiled(window[:, :-1].contiguous(), window[:, 1:].contiguous())[1]
        loss.backward()

    return gradients
