"""What a recipe gets that does not say it: the objective, optimizer and schedule that suit what is trained."""

from __future__ import annotations

from gptlab.settings import Tree


def _tuning(learning_rate: float, *, weight_decay: float = 0.0, warmup_steps: int = 100) -> Tree:
    return {
        "optimizer": {"kind": "adamw", "learning_rate": learning_rate, "weight_decay": weight_decay},
        "schedule": {"kind": "linear", "warmup_steps": warmup_steps, "final_fraction": 0.0},
    }


DEFAULTS: dict[str, Tree] = {
    "new": {
        "optimizer": {"kind": "muon", "learning_rate": 3e-3, "matrix_learning_rate": 1e-2, "momentum": 0.95},
        "schedule": {"kind": "wsd", "warmup_steps": 50, "decay_fraction": 0.4, "final_fraction": 0.0},
    },
    "tuned": _tuning(5e-5),
    "adapted": _tuning(2e-4),
    "aligned": _tuning(5e-6),
    "aligned by an adapter": _tuning(5e-5),
    "small": _tuning(1e-3, weight_decay=0.01, warmup_steps=50),
}
"""Optimizer and schedule for a new model, one that is tuned, one tuned by LoRA; the same two under DPO; and for RNNs,
new classifiers and a new head alone. A new model's is what learned most in the same minutes (docs/log.md)."""

OBJECTIVES = {
    "corpus": ("language", "distillation"),
    "dialogues": ("language", "distillation"),
    "labels": ("classification", "distillation"),
    "preferences": ("dpo", "reward"),
}
"""What can be learned from each kind of data; the first where a recipe names none."""

SAMPLED_ROWS = {"labels": 2000, "preferences": 256}
"""`validation.sampled_rows`, where it is not given: texts with labels are short, and 128 of them, or of pairs, say
little."""


def with_defaults(tree: Tree) -> Tree:
    """A recipe's tree, with what suits it where it chooses no kind itself. What is wrongly typed is left as it is."""
    data, model = _section(tree, "data"), _section(tree, "model")
    filled = dict(tree)
    kind = data.get("kind")
    if isinstance(kind, str) and kind in SAMPLED_ROWS:
        _fill(filled, "objective", {"kind": OBJECTIVES[kind][0]})
        _fill(filled, "validation", {"sampled_rows": SAMPLED_ROWS[kind]})
    if _section(filled, "objective").get("kind") == "dpo":
        _fill(filled, "model", {"dropout": 0.0})  # it would make policy and reference differ before anything is learned
    chosen_later = ("learning_rate", "matrix_learning_rate") if model.get("size") == "auto" else ()
    for section, values in _optimization(filled).items():
        if _section(tree, section).get("kind", values["kind"]) == values["kind"]:
            _fill(filled, section, {key: value for key, value in values.items() if key not in chosen_later})
    return filled


def _optimization(tree: Tree) -> Tree:
    """Which of DEFAULTS suits a recipe."""
    model, data, adapted = _section(tree, "model"), _section(tree, "data"), tree.get("lora") is not None
    if _section(tree, "training").get("parameters") == "head":
        return DEFAULTS["small"]
    if tree.get("start") is None:
        new = model.get("kind", "gpt") == "gpt" and data.get("kind", "corpus") in ("corpus", "dialogues")
        return DEFAULTS["new" if new else "small"]
    if _section(tree, "objective").get("kind") == "dpo":
        return DEFAULTS["aligned by an adapter" if adapted else "aligned"]
    return DEFAULTS["adapted" if adapted else "tuned"]


def _section(tree: Tree, name: str) -> Tree:
    section = tree.get(name)
    return section if isinstance(section, dict) else {}


def _fill(tree: Tree, name: str, values: Tree) -> None:
    """Puts the values into a section, where they are not given."""
    if isinstance(given := tree.get(name, {}), dict):
        tree[name] = {**values, **given}
