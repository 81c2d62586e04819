"""`[model] size = "auto"`: width, depth, dropout, batch and rates for the data and the minutes given.

One dial, the depth, decides the rest: width 64 · depth, heads of 64 (depth 12 is GPT-2 small). A deeper model learns
more from a token and sees fewer of them in the time; the depth taken is the one with the least predicted loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from gptlab.model.build import ModelSettings, build_model, flops_per_token
from gptlab.settings import Tree, apply_changes, build, flatten, plain
from gptlab.training.recipe import Recipe

DEPTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24)

EFFICIENCY = 0.5
"""The share of the measured peak that training reaches (docs/log.md: 0.45 to 0.6 from mini to GPT-2 small)."""

CHOSEN = (
    "model.n_layer",
    "model.n_head",
    "model.n_embd",
    "model.dropout",
    "training.batch_size",
    "optimizer.learning_rate",
    "optimizer.matrix_learning_rate",
)
"""What is chosen, where the recipe does not say it itself."""


def choose_size(recipe: Recipe, *, tokens: int, vocab_size: int, peak_flops: float) -> Recipe:
    """The recipe with everything chosen that size = "auto" leaves open; any other recipe as it is.

    tokens: in the training set; peak_flops: FLOP/s of the machine in the recipe's precision
    """
    if recipe.model.size != "auto":
        return recipe
    assert recipe.training.minutes is not None
    budget = 60 * recipe.training.minutes * peak_flops * EFFICIENCY
    return as_chosen(recipe, _choice(recipe, budget, tokens, vocab_size))


def as_chosen(recipe: Recipe, choice: Mapping[str, Any]) -> Recipe:
    """The recipe with a choice (a tree with all of CHOSEN, such as the recipe of the run that it continues)."""
    if recipe.model.size != "auto":
        return recipe
    chosen = flatten(choice)
    changes = {key: chosen[key] for key in CHOSEN if key in chosen and not _is_given(recipe, key)}
    tree = apply_changes(plain(recipe), changes)
    del tree["model"]["size"]
    tree["model"]["context"] = recipe.model.numbers()["context"]
    return build(Recipe, tree, 'model.size = "auto"')


def _is_given(recipe: Recipe, key: str) -> bool:
    section, name = key.split(".")
    return name in getattr(recipe, section).model_fields_set


def _choice(recipe: Recipe, budget: float, tokens: int, vocab_size: int) -> Tree:
    """What the depth of least predicted loss brings with it; `budget` in floating-point operations."""
    candidates = []
    for depth in DEPTHS:
        settings = ModelSettings(
            n_layer=depth, n_head=depth, n_embd=64 * depth, context=recipe.model.numbers()["context"],
            tie_head=recipe.model.tie_head,
        )  # fmt: skip
        with torch.device("meta"):  # shapes without memory
            model = build_model(settings, vocab_size)
        seen = budget / flops_per_token(model)
        candidates.append((predicted_loss(sum(p.numel() for p in model.h.parameters()), seen, tokens), depth, seen))
    _, depth, seen = min(candidates)
    return {
        "model": {"n_layer": depth, "n_head": depth, "n_embd": 64 * depth, "dropout": _dropout(seen / tokens)},
        "training": {"batch_size": 32},
        "optimizer": _rates(depth) if recipe.optimizer.kind == "muon" else {},
    }


def predicted_loss(parameters: float, seen: float, unique: float) -> float:
    """What a loss has above the data's own entropy, in nats: A / parameters^α + B / tokens^β.

    parameters: of the blocks, since a vocabulary as large as GPT-2's would make the smallest model look large
    (Kaplan et al., "Scaling Laws for Neural Language Models", 2020, section 3.2); seen, unique: tokens.
    Hoffmann et al., "Training Compute-Optimal Large Language Models" (2022), section 3.3 and appendix D.3. Tokens
    seen again count for less: Muennighoff et al., "Scaling Data-Constrained Language Models" (2023), equation 5.
    """
    epochs = max(seen / unique, 1e-9)
    worth = min(seen, unique) * (1 + REPEATS * (1 - math.exp(-max(0.0, epochs - 1) / REPEATS)))
    return float(406.4 / parameters**0.34 + 410.7 / worth**0.28)


REPEATS = 15.4
"""So many repetitions of the data are worth, all together, as much as e / (e − 1) times as many new ones."""


def _dropout(epochs: float) -> float:
    """Text that is seen once needs none; the oftener it is seen the more."""
    return 0.0 if epochs < 2 else 0.1 if epochs < 6 else 0.2


def _rates(depth: int) -> Tree:
    """For Muon, whose updates have one size whatever the width; beside it Adam's rate falls with the width's root
    (nanochat's rule)."""
    return {"learning_rate": round(3e-3 * math.sqrt(4 / depth), 6), "matrix_learning_rate": 1e-2}
