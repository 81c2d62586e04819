"""This lab's own training, its parts met as src/gptlab/training/assemble.py has them meet."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

from models import Shape, own_folder, random_ids, token_file

if TYPE_CHECKING:
    from gptlab.device import PrecisionName
    from gptlab.model.gpt import GPT
    from gptlab.training.fit import Fit

BATCHES = 64
"""The text is this many batches long."""


class Training(NamedTuple):
    """One optimizer step, to be called again and again; the memory that was predicted for it."""

    step: Callable[[], None]
    fit: Fit


def as_in_a_run(device: str, precision: PrecisionName = "auto") -> None:
    """What a run in this precision sets while it lasts, for as long as this process does."""
    import torch

    from gptlab.device import float32_products, pick_precision
    from gptlab.kernels.layers import training_kernels
    from gptlab.kernels.native import kernels

    place = torch.device(device)
    life = ExitStack()
    atexit.register(life.close)
    life.enter_context(float32_products(place))
    names = training_kernels(place, pick_precision(precision, place).dtype)
    life.enter_context(kernels(names, None, lambda text: None))


def training(shape: Shape, rows: int, *, device: str = "cpu", optimizer: str = "adamw", **settings: Any) -> Training:
    """Steps of `rows` full rows of random tokens. `settings` are keys of a recipe's `[training]`; the micro-batch is
    all rows where they name none."""
    import torch

    from gptlab.data.batch import rows_of_step
    from gptlab.data.windows import TrainingWindows
    from gptlab.device import measure_peak_flops, pick_precision
    from gptlab.objectives.language import LanguageObjective
    from gptlab.settings import build
    from gptlab.training.fit import decide_micro_batch
    from gptlab.training.loop import Engine, descend, gradients
    from gptlab.training.memory import FullRows
    from gptlab.training.optimizer import Optimizer
    from gptlab.training.recipe import Recipe
    from gptlab.training.start import Vocabulary, outline

    tree = {
        "name": "benchmark",
        "model": {name: getattr(shape, name) for name in ("n_layer", "n_head", "n_embd", "context", "tie_head")}
        | {"dropout": 0.0},
        "tokenizer": {"from": "gpt2"},
        "data": {"sources": [{"path": "none"}], "validation": {"share": 0.1}},
        "optimizer": {"kind": optimizer, "learning_rate": 3e-4},
        "training": {"max_steps": 1, "batch_size": rows, "micro_batch_size": rows, **settings},
    }
    recipe = build(Recipe, tree, "benchmark")
    place = torch.device(device)
    precision = pick_precision(recipe.training.precision, place)
    ids = random_ids(BATCHES * rows * shape.context + 1, shape.vocab_size)
    windows = TrainingWindows(token_file(own_folder() / "train.tokens", ids, shape.vocab_size), shape.context, seed=0)
    as_in_a_run(device, recipe.training.precision)
    measure_peak_flops(place, precision.dtype)  # as a run does, for the memory that it leaves behind
    objective = LanguageObjective()

    def make_model() -> GPT:
        return outline(recipe, Vocabulary(shape.vocab_size), None)

    fit = decide_micro_batch(
        recipe, make_model, LanguageObjective, len(windows), FullRows(windows.context), device=place,
        precision=precision, kept=None,
    )  # fmt: skip
    torch.manual_seed(recipe.seed)
    model = make_model().to(place).train()
    engine = Engine(
        model=model,
        objective=objective,
        optimizer=Optimizer(model, recipe.optimizer),
        device=place,
        precision=precision,
        micro_batch_size=fit.micro_batch_size,
        gradient_clip=recipe.optimizer.gradient_clip,
    )
    done = 0

    def step() -> None:
        nonlocal done
        epoch, numbers = rows_of_step(len(windows), rows, recipe.seed, done)
        gradients(engine, windows.batch(numbers, epoch))
        descend(engine)
        done += 1

    return Training(step, fit)
