"""What the files of a run on pairs, a reward model's or DPO's, say beyond those of any other (facts.py)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Facts = dict[str, Any]
Record = dict[str, Any]

OPTIONAL = ("reward", "win_rate", "other_text")
"""What a comparison has only where there was a reward model, or other text."""


def preferences(recipe: Mapping[str, Any], origin: Mapping[str, Any], evaluation: Mapping[str, Any]) -> Facts | None:
    """What a run learns from pairs; None for any other.

    objective:  "reward" or "dpo"
    settings:   the objective's, by the recipe's keys
    template:   by which prompts and answers are written
    reference:  the `name` and the `fingerprint` of the model that DPO starts from
    level:      the loss of a model that gives both answers of every pair the same reward, and so knows nothing of them
    comparison: what evaluation.json has of the model and its start ("against_start"); None where they were not compared
    shown:      the scores whose calibration is told; `add_baselines` finds them
    """
    if recipe.get("data", {}).get("kind") != "preferences":
        return None
    objective, compared = recipe.get("objective", {}), evaluation.get("against_start")
    return {
        "objective": objective.get("kind"),
        "settings": {key: value for key, value in objective.items() if key != "kind"},
        "template": origin.get("data", {}).get("template"),
        "reference": origin.get("reference", {}),
        "level": _level(objective),
        "comparison": {**dict.fromkeys(OPTIONAL), **compared} if compared else None,
        "shown": None,
    }


def add_baselines(preferences: Facts, scores: Sequence[Record], sources: Sequence[Record]) -> list[Record]:
    """The scores, each with its `longer_accuracy`, that of always preferring the longer answer: where a line does not
    have it (of a run that is still going), of what the `sources` gave to its split, of which a sample is taken for the
    whole. `preferences` gets what is shown: a reward model's best on the test set, else on the validation set."""
    found = [
        {**row, "longer_accuracy": row.get("longer_accuracy", _longer_accuracy(sources, row["on"]))} for row in scores
    ]
    calibrated = [row for row in found if row["model"] == "best" and "calibration" in row]
    if preferences["objective"] == "reward" and calibrated:
        preferences["shown"] = calibrated[-1]
    return found


def _level(objective: Mapping[str, Any]) -> float:
    """The losses of objectives/dpo.py and objectives/reward.py where the margin is 0."""
    if objective.get("loss") == "ipo":
        return 1 / (4 * objective["beta"] ** 2)
    wanted = objective.get("gamma", 0.0) if objective.get("loss") == "simpo" else 0.0
    return math.log1p(math.exp(wanted))


def _longer_accuracy(sources: Sequence[Record], on: str) -> float | None:
    """A pair whose answers are equally long counts half."""
    rows = [row for row in sources if row["split"] == on.partition(",")[0]]
    pairs = sum(row["pairs"] for row in rows)
    return sum(row["longer"] + row["as_long"] / 2 for row in rows) / pairs if pairs else None
