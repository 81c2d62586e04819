"""`[model] size = "auto"`: depth, width, dropout, rows a step and rates for the data and the minutes given.

    depth      1 to 24; width 64 · depth, heads of 64 (depth 12 is GPT-2 small). A deeper model learns more from a token
               and sees fewer of them in the time: the one of least predicted loss
    dropout    0, 0.1 or 0.2, by how often the text is seen
    batch_size the power of two nearest to 4,096 tokens a step for 3 million tokens in all, more for more
    rates      Muon's 0.01 for matrices whatever the width, 0.003 · √(256 / width) for the rest; AdamW's and Adam's
               0.5 / width; those of other optimizers are not chosen

What the recipe gives itself stays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gptlab.model.build import ModelSettings, build_model, flops_per_token
from gptlab.model.meta import without_memory
from gptlab.settings import Tree, apply_changes, build, flatten, plain
from gptlab.training.recipe import Recipe

DEPTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24)

EFFICIENCY = 0.5
"""The share of the measured peak that a run reaches: its steps 0.54 (wikitext2-cpu's shape) to 0.64 (quickstart's) in
the median, and validation, samples and saving take a tenth of the time (docs/log.md)."""

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
        with without_memory():
            model = build_model(settings, vocab_size)
        seen = budget / flops_per_token(model)
        blocks = sum(p.numel() for name, p in model.named_parameters() if name.startswith("h."))
        candidates.append((predicted_loss(blocks, seen, tokens), depth, seen))
    _, depth, seen = min(candidates)
    return {
        "model": {"n_layer": depth, "n_head": depth, "n_embd": 64 * depth, "dropout": _dropout(seen / tokens)},
        "training": {"batch_size": _rows(seen, recipe.model.numbers()["context"])},
        "optimizer": _rates(recipe.optimizer.kind, 64 * depth),
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


def _rows(seen: float, context: int) -> int:
    """The batch size for `seen` tokens in all.

    The best number of tokens a step grows with the tokens seen to the power 0.571, whatever the model (Li et al.,
    "Predictable Scale: Part I", 2025). Here, with Muon at 0.01 and 0.003, it was found at 2,048 or less for 1 million
    tokens (1,024: perplexity 88.7, 2,048: 89.1, 4,096: 95.9; width 128), at 4,096 for 2 million (118, 2,048: 145; width
    256) and at 2,048 to 4,096 for 4 million (52.7, 52.6; 8,192: 54.8; width 128).
    """
    tokens = 4096 * (seen / 3e6) ** 0.571
    return 1 << max(0, round(math.log2(tokens / context)))


def _rates(kind: str, width: int) -> Tree:
    """The rates that depend on the width.

    Muon's updates have one size whatever the width; beside it Adam's rate falls with the width's root, which is
    nanochat's rule. At width 256 twice the matrices' rate was clearly worse, and half of both rates a little
    (docs/log.md). Adam's for matrices falls with the width itself (Yang et al., "Tensor Programs V", 2022): 0.5 / width
    is within 1.7 times of GPT-3's from width 768 to 12,288 (Brown et al., 2020, table 2.1), and on 1 million tokens
    0.008 was better than 0.004 at width 64, 0.004 than 0.002 and 0.008 at 128, 0.002 than 0.004 at 256.
    """
    match kind:
        case "muon":
            return {"learning_rate": _two_digits(3e-3 * math.sqrt(256 / width)), "matrix_learning_rate": 1e-2}
        case "adamw" | "adam":
            return {"learning_rate": _two_digits(0.5 / width)}
    return {}


def _two_digits(rate: float) -> float:
    return float(f"{rate:.2g}")
