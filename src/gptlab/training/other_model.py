"""The model that a run asks and does not train: a teacher, or DPO's reference. Finding it loads no weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from gptlab.errors import ModelError, RunError
from gptlab.model.folder import read_labels
from gptlab.objectives.distillation import DistillationSettings
from gptlab.objectives.dpo import DPOSettings
from gptlab.run.base import weights_fingerprint
from gptlab.run.open import find_model, require_task
from gptlab.run.run import Run
from gptlab.settings import Tree
from gptlab.training.recipe import Recipe
from gptlab.training.row_values import model_fingerprint


@dataclass(frozen=True)
class OtherModel:
    """Where it is and what it was when the run began.

    role:        what origin.json calls it
    name:        what the recipe calls it
    fingerprint: of its weights
    """

    role: Literal["teacher", "reference"]
    name: str
    folder: Path
    fingerprint: str

    @property
    def said(self) -> Tree:
        """What origin.json says of it."""
        return {key: str(value) for key, value in asdict(self).items() if key != "role"}


def find_other_model(recipe: Recipe, existing: Run | None, runs: Path) -> OtherModel | None:
    """The teacher or the reference that the recipe has, if any. A run that continues has the one that it began with,
    wherever that is found; of a reference, which it may need no more, that is not looked for.

    Errors as `find_model`; UserError where a teacher is of another kind than is wanted, RunError where a run that
    continues began with other weights.
    """
    match recipe.objective:
        case DistillationSettings(teacher=name):
            return _find_teacher(recipe, name, existing, runs)
        case DPOSettings(needs_reference=True):
            return _find_reference(recipe, existing, runs)
    return None


def _find_teacher(recipe: Recipe, name: str, existing: Run | None, runs: Path) -> OtherModel:
    begun = (existing.origin.get("teacher") if existing else None) or {}
    folder, fingerprint = Path(begun.get("folder", "")), ""
    if begun:  # also where the teacher has been trained on, and its best is another now
        fingerprint = weights_fingerprint(folder)
    if not begun or fingerprint != begun["fingerprint"]:
        try:
            folder = find_model(name, runs=runs)
        except ModelError as error:
            raise ModelError(f"the teacher (objective.teacher) is not there: {error}") from error
        fingerprint = weights_fingerprint(folder)
    require_task("classification" if recipe.data.kind == "labels" else "language", name, read_labels(folder))
    if begun and fingerprint != begun["fingerprint"]:
        raise RunError(
            f"{existing.folder if existing else name}: its teacher {name} is no longer the one that it began with (the "
            f"weights are not those that {begun['folder']} had), and it cannot go on with another. --fresh starts "
            "over, --name NAME names another run"
        )
    return OtherModel("teacher", name, folder.absolute(), fingerprint)


def _find_reference(recipe: Recipe, existing: Run | None, runs: Path) -> OtherModel:
    if existing and (begun := existing.origin.get("reference")):
        return OtherModel("reference", begun["name"], Path(begun["folder"]), begun["fingerprint"])
    assert recipe.start is not None
    folder = find_model(recipe.start, runs=runs)
    return OtherModel("reference", recipe.start, folder.absolute(), model_fingerprint(folder, runs))
