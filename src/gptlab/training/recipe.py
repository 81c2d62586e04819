"""A recipe: the tree of sections that describes one run, from one TOML file.

Each section is defined beside the code that reads it; here they only meet.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from gptlab import settings
from gptlab.data.corpus import CorpusSettings
from gptlab.data.dialogues import DialogueSettings
from gptlab.errors import RecipeError, nearest
from gptlab.evaluation.samples import SampleSettings
from gptlab.model.build import SIZES, ModelSettings
from gptlab.model.lora import LoraSettings
from gptlab.objectives.language import LanguageSettings
from gptlab.settings import Section, Tree
from gptlab.text.tokenizer import TokenizerSettings
from gptlab.training.cadence import CheckpointSettings, ValidationSettings
from gptlab.training.optimizer import OptimizerSettings
from gptlab.training.schedule import ScheduleSettings


class TrainingSettings(Section):
    """`[training]`: how long (exactly one of the four), how many rows a step, and how it is computed.

    `batch_size` is mathematics: the rows an optimizer step sees. `micro_batch_size` is memory: the rows the
    machine holds at once; it changes no number.
    """

    epochs: float | None = Field(None, gt=0)
    max_steps: int | None = Field(None, ge=1)
    tokens: int | None = Field(None, ge=1)
    minutes: float | None = Field(None, gt=0)
    batch_size: int = Field(32, ge=1)
    micro_batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    activation_checkpointing: bool = False
    compile: bool = False
    deterministic: bool = False

    @model_validator(mode="after")
    def _one_length(self) -> TrainingSettings:
        given = [name for name in LENGTHS if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"wanted exactly one of {', '.join(LENGTHS)}; found {found}")
        return self


LENGTHS = ("epochs", "max_steps", "tokens", "minutes")

ALTERNATIVES = {"training": LENGTHS, "tokenizer": ("from", "train")}
"""Keys of which a section has exactly one."""


def _kind(data: Any) -> str:
    """Which form `[data]` has; a corpus where it does not say."""
    return str(data.get("kind", "corpus") if isinstance(data, dict) else data.kind)


DataSettings = Annotated[
    Annotated[CorpusSettings, Tag("corpus")] | Annotated[DialogueSettings, Tag("dialogues")], Discriminator(_kind)
]


DEFAULTS: dict[str, Tree] = {
    "new": {
        "optimizer": {"kind": "muon", "learning_rate": 3e-3, "matrix_learning_rate": 1e-2, "momentum": 0.95},
        "schedule": {"kind": "wsd", "warmup_steps": 50, "decay_fraction": 0.4, "final_fraction": 0.0},
    },
    "tuned": {
        "optimizer": {"kind": "adamw", "learning_rate": 5e-5, "weight_decay": 0.0},
        "schedule": {"kind": "linear", "warmup_steps": 100, "final_fraction": 0.0},
    },
    "adapted": {
        "optimizer": {"kind": "adamw", "learning_rate": 2e-4, "weight_decay": 0.0},
        "schedule": {"kind": "linear", "warmup_steps": 100, "final_fraction": 0.0},
    },
}
"""What a recipe gets that does not name an optimizer or a schedule, for a new model, one that is tuned, and by LoRA. A
new model's is what learned most in the same minutes (docs/log.md)."""


class Recipe(Section):
    """One run: what is trained, on what, how, for how long."""

    name: str
    """The run's folder."""
    seed: int = Field(1337, ge=0, lt=2**63)
    start: str | None = Field(None, min_length=1)
    """The model that is tuned: a folder, a run, a name on the hub, nanoGPT's ckpt.pt. Without it a new one is made."""
    model: ModelSettings = ModelSettings()
    tokenizer: TokenizerSettings | None = None
    """A start brings its own."""
    data: DataSettings
    lora: LoraSettings | None = None
    objective: LanguageSettings = LanguageSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    training: TrainingSettings
    validation: ValidationSettings = ValidationSettings()
    samples: SampleSettings = SampleSettings()
    checkpoints: CheckpointSettings = CheckpointSettings()

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, tree: Any) -> Any:
        """Optimizer and schedule that suit what is trained, where the recipe does not choose a kind itself."""
        if not isinstance(tree, dict):
            return tree
        defaults = DEFAULTS["new" if tree.get("start") is None else "tuned" if tree.get("lora") is None else "adapted"]
        model = tree.get("model")
        chosen_later = (
            ("learning_rate", "matrix_learning_rate") if isinstance(model, dict) and model.get("size") == "auto" else ()
        )
        filled = dict(tree)
        for section, values in defaults.items():
            given = tree.get(section, {})
            if isinstance(given, dict) and given.get("kind", values["kind"]) == values["kind"]:
                filled[section] = {**{key: v for key, v in values.items() if key not in chosen_later}, **given}
        return filled

    @model_validator(mode="after")
    def _has_a_model(self) -> Recipe:
        if self.start is None:
            if missing := self.model.missing():
                sizes = ", ".join(SIZES)
                raise ValueError(
                    f"model: {', '.join(missing)}: missing; give them, or size = one of {sizes}, or a start to be tuned"
                )
            if self.tokenizer is None:
                raise ValueError('tokenizer: is missing; from = "gpt2" (or a folder), or train = 32000')
            if self.lora is not None:
                raise ValueError("lora: tunes a model that exists: it wants a start")
        elif given := [key for key in ("size", "n_layer", "n_head", "n_embd") if getattr(self.model, key) is not None]:
            raise ValueError(f"model.{given[0]}: start has a shape; only context and dropout may stand beside it")
        return self

    @model_validator(mode="after")
    def _auto_has_minutes(self) -> Recipe:
        if self.model.size == "auto" and self.training.minutes is None:
            raise ValueError("model.size = auto: chooses for a time, so it wants training.minutes")
        return self

    @model_validator(mode="after")
    def _can_be_judged(self) -> Recipe:
        if self.validation.best_by == "reward" and self.samples.reward is None:
            raise ValueError("validation.best_by = reward: wants samples.reward, the model that scores answers")
        return self

    @field_validator("name")
    @classmethod
    def _is_a_folder(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ValueError(
                f"{name!r} cannot be the name of a run's folder: wanted letters, digits and . _ - behind a letter or "
                "digit (--name NAME gives it one)"
            )
        return name


def load_recipe(
    recipe: str | Path, *changes: str, variant: str | None = None, data: Sequence[str] = (), name: str | None = None
) -> Recipe:
    """The recipe of this name (one that ships) or path, with a variant and then `section.key=value` changes.

    `data`: paths that stand in place of the recipe's own sources, each a file source; the validation and test
    sets are then shares of them. RecipeError names what is wrong, all of it, before anything is loaded.
    """
    path = find_recipe(str(recipe))
    tree = settings.read_toml(path)
    variants = _variants(tree.pop("variants", {}), path)
    tree.setdefault("name", path.stem)
    if variant is not None:
        if variant not in variants:
            known = ", ".join(variants) or "none"
            raise RecipeError(f"{path}: no variant {variant!r}{nearest(variant, list(variants))}; there is {known}")
        tree["name"] = f"{tree['name']}-{variant}"
        tree = _change(tree, _dotted(variants[variant]))
    if data:
        tree = settings.apply_changes(tree, {"data.sources": [{"path": item} for item in data]})
        for split in ("validation", "test"):
            section = tree["data"].get(split)
            if isinstance(section, dict) and "sources" in section:
                tree["data"][split] = {"share": 0.05}
    tree = _change(tree, dict(settings.parse_change(change) for change in changes))
    if name is not None:
        tree["name"] = name
    return settings.build(Recipe, tree, str(path))


def _variants(variants: Any, path: Path) -> dict[str, Tree]:
    if not isinstance(variants, dict) or not all(isinstance(changes, dict) for changes in variants.values()):
        raise RecipeError(f'{path}: variants: wanted [variants.NAME] sections of changes: "section.key" = value')
    return variants


def _dotted(changes: Tree) -> Tree:
    """A variant's changes by dotted keys: `model.n_embd = 256` in TOML is a table, "model.n_embd" = 256 is not."""
    dotted: Tree = {}
    for key, value in changes.items():
        inner = {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, dict) else None
        dotted.update({key: value} if inner is None or "." in key else inner)
    return dotted


def _change(tree: Tree, changes: Tree) -> Tree:
    """Changes by dotted keys; one of several alternatives (a length, say) takes the place of the one there was."""
    for section, names in ALTERNATIVES.items():
        there = tree.get(section)
        if isinstance(there, dict) and any(f"{section}.{name}" in changes for name in names):
            tree = {**tree, section: {key: value for key, value in there.items() if key not in names}}
    return settings.apply_changes(tree, changes)


def shipped_recipes() -> dict[str, Path]:
    """The recipes that ship, by name."""
    folder = Path(str(resources.files("gptlab"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def find_recipe(name: str) -> Path:
    """The file of a recipe: an existing path, else one that ships."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    shipped = shipped_recipes()
    if name in shipped:
        return shipped[name]
    if path.is_dir():
        raise RecipeError(f"{name} is a folder; a recipe is a TOML file (a run's own is {path / 'recipe.toml'})")
    known = ", ".join(shipped)
    raise RecipeError(
        f"there is no recipe {name!r}{nearest(name, list(shipped))}: no such file, and those that ship are {known}"
    )
