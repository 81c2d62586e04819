"""A recipe: the tree of sections that describes one run, from one TOML file.

Each section is defined beside the code that reads it; here they only meet.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from gptlab import settings
from gptlab.catalog import find_file, read_file, shipped, variant_of
from gptlab.data.corpus import CorpusSettings
from gptlab.data.dialogues import DialogueSettings
from gptlab.data.labels import LabelSettings
from gptlab.data.preferences import PreferenceSettings
from gptlab.errors import RecipeError
from gptlab.evaluation.samples import SampleSettings
from gptlab.model.build import SIZES, ModelSettings
from gptlab.model.lora import LoraSettings
from gptlab.objectives.classification import ClassificationSettings
from gptlab.objectives.distillation import DistillationSettings
from gptlab.objectives.dpo import DPOSettings
from gptlab.objectives.language import LanguageSettings
from gptlab.objectives.reward import RewardSettings
from gptlab.run.run import RECIPE
from gptlab.settings import Section, Tree
from gptlab.text.tokenizer import TokenizerSettings
from gptlab.training.cadence import CLASS_METRICS, CheckpointSettings, ValidationSettings
from gptlab.training.defaults import OBJECTIVES, with_defaults
from gptlab.training.optimizer import OptimizerSettings
from gptlab.training.schedule import ScheduleSettings
from gptlab.training.tracking import TrackingSettings


class TrainingSettings(Section):
    """`[training]`: how long (exactly one of the four), how many rows a step, and how it is computed.

    `batch_size` is mathematics: the rows an optimizer step sees. `micro_batch_size` is memory: the rows the
    machine holds at once; it changes no number. `parameters = "head"` trains a classifier's new layer alone.
    """

    epochs: float | None = Field(None, gt=0)
    max_steps: int | None = Field(None, ge=1)
    tokens: int | None = Field(None, ge=1)
    minutes: float | None = Field(None, gt=0)
    batch_size: int = Field(32, ge=1)
    micro_batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    parameters: Literal["all", "head"] = "all"
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

OF_A_KIND = ("data", "objective")
"""Sections whose other keys belong to their kind."""


def _kind_of(usual: str) -> Discriminator:
    """Which form a section has, by its `kind`; the `usual` one where it does not say."""
    return Discriminator(lambda section: section.get("kind", usual) if isinstance(section, dict) else section.kind)


DataSettings = Annotated[
    Annotated[CorpusSettings, Tag("corpus")]
    | Annotated[DialogueSettings, Tag("dialogues")]
    | Annotated[LabelSettings, Tag("labels")]
    | Annotated[PreferenceSettings, Tag("preferences")],
    _kind_of("corpus"),
]

ObjectiveSettings = Annotated[
    Annotated[LanguageSettings, Tag("language")]
    | Annotated[ClassificationSettings, Tag("classification")]
    | Annotated[DistillationSettings, Tag("distillation")]
    | Annotated[RewardSettings, Tag("reward")]
    | Annotated[DPOSettings, Tag("dpo")],
    _kind_of("language"),
]


OF_A_NEW_MODEL = {"kind": "gpt"} | dict.fromkeys(("size", "n_layer", "n_head", "n_embd", "n_hidden"))
"""What of `[model]` a start decides, and the value that says nothing."""


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
    objective: ObjectiveSettings = LanguageSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    training: TrainingSettings
    validation: ValidationSettings = ValidationSettings()
    samples: SampleSettings = SampleSettings()
    checkpoints: CheckpointSettings = CheckpointSettings()
    tracking: TrackingSettings = TrackingSettings()

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, tree: Any) -> Any:
        return with_defaults(tree) if isinstance(tree, dict) else tree

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
        elif given := [key for key, none in OF_A_NEW_MODEL.items() if getattr(self.model, key) != none]:
            raise ValueError(
                f"model.{given[0]}: start has a shape; only context, dropout and keep_layers may stand beside it"
            )
        if self.start is None and self.model.keep_layers is not None:
            raise ValueError("model.keep_layers: are layers of a start, and there is none")
        return self

    @model_validator(mode="after")
    def _objective_fits_the_data(self) -> Recipe:
        kind, able = self.objective.kind, OBJECTIVES[self.data.kind]
        if kind not in able:
            others = [data for data, objectives in OBJECTIVES.items() if kind in objectives]
            raise ValueError(
                f"objective.kind = {kind}: wants data.kind = {' or '.join(others)}; {self.data.kind} are learned by "
                f"kind = {' or '.join(able)}"
            )
        if self.training.tokens is not None and not self.of_text:
            counted = "pairs" if self.data.kind == "preferences" else "texts with labels"
            raise ValueError(f"training.tokens: {counted} are counted in epochs, steps or minutes")
        if not self.writes and (self.samples.prompts or self.samples.reward):
            whom = "a reward model" if kind == "reward" else "a classifier"
            raise ValueError(f"samples: {whom} writes nothing; leave prompts and reward out")
        return self

    @model_validator(mode="after")
    def _aligns_what_there_is(self) -> Recipe:
        if self.objective.kind == "dpo" and self.start is None:
            raise ValueError("objective.kind = dpo: tunes a model that can answer: it wants a start")
        return self

    @property
    def of_text(self) -> bool:
        """Whether tokens are learned, and not texts or pairs as a whole."""
        return self.data.kind in ("corpus", "dialogues")

    @property
    def writes(self) -> bool:
        """Whether it is a language model that is trained."""
        return self.data.kind != "labels" and self.objective.kind != "reward"

    @model_validator(mode="after")
    def _trains_something(self) -> Recipe:
        if self.training.parameters == "head" and self.writes:
            raise ValueError("training.parameters = head: is for a classifier, and this is a language model")
        if self.training.parameters == "head" and (self.start is None or self.lora is not None):
            raise ValueError("training.parameters = head: wants a start whose body stays as it is, and no [lora]")
        return self

    @model_validator(mode="after")
    def _auto_has_minutes(self) -> Recipe:
        if self.model.size == "auto" and self.training.minutes is None:
            raise ValueError("model.size = auto: chooses for a time, so it wants training.minutes")
        if self.model.size == "auto" and not self.of_text:
            raise ValueError("model.size = auto: is chosen by what a language model learns; give this one its size")
        return self

    @model_validator(mode="after")
    def _range_has_an_end(self) -> Recipe:
        if self.schedule.kind == "range" and self.training.minutes is not None:
            raise ValueError(
                "schedule.kind = range: rises to its last step, so it wants training.max_steps, epochs or tokens"
            )
        return self

    @model_validator(mode="after")
    def _can_be_judged(self) -> Recipe:
        if self.validation.best_by == "reward" and self.samples.reward is None:
            raise ValueError("validation.best_by = reward: wants samples.reward, the model that scores answers")
        by = self.validation.best_by
        kinds = ("labels", "preferences") if by == "accuracy" else ("labels",)
        if by in CLASS_METRICS and self.data.kind not in kinds:
            raise ValueError(f"validation.best_by = {by}: wants data.kind = {' or '.join(kinds)}")
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
    parsed = dict(settings.parse_change(change) for change in changes)
    return make_recipe(recipe, parsed, variants=[variant] if variant is not None else [], data=data, name=name)


def make_recipe(
    recipe: str | Path, changes: Mapping[str, Any], *, variants: Sequence[str] = (), data: Sequence[str] = (),
    name: str | None = None,
) -> Recipe:  # fmt: skip
    """`load_recipe` with several variants, one after the other, and changes as values: "section.key" → value."""
    path = find_recipe(str(recipe))
    tree, known = read_file(path)
    for variant in variants:
        tree["name"] = f"{tree['name']}-{variant}"
        tree = _change(tree, dotted(variant_of(known, variant, path)))
    if data:
        like = _columns(tree.get("data"))
        tree = settings.apply_changes(tree, {"data.sources": [{"path": item, **like} for item in data]})
        for split in ("validation", "test"):
            section = tree["data"].get(split)
            if isinstance(section, dict) and "sources" in section:
                tree["data"][split] = {"share": 0.05}
    tree = _change(tree, dotted(changes))
    if name is not None:
        tree["name"] = name
    return settings.build(Recipe, tree, str(path))


def _columns(data: Any) -> Tree:
    """Where texts and labels stand in a recipe's own files, and so in those that take their place."""
    sources = data.get("sources") if isinstance(data, dict) and data.get("kind") == "labels" else None
    first = sources[0] if isinstance(sources, list) and sources and isinstance(sources[0], dict) else {}
    return {key: first[key] for key in ("header", "text", "label") if key in first and "hub" not in first}


def dotted(changes: Mapping[str, Any]) -> Tree:
    """A variant's changes by dotted keys: `model.n_embd = 256` in TOML is a table, "model.n_embd" = 256 is not."""
    dotted: Tree = {}
    for key, value in changes.items():
        inner = {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, dict) else None
        dotted.update({key: value} if inner is None or "." in key else inner)
    return dotted


def _change(tree: Tree, changes: Tree) -> Tree:
    """Changes by dotted keys; one of several alternatives (a length, say) takes the place of the one there was, and a
    section of another kind that of the whole section."""
    for section, names in ALTERNATIVES.items():
        there = tree.get(section)
        if isinstance(there, dict) and any(f"{section}.{name}" in changes for name in names):
            tree = {**tree, section: {key: value for key, value in there.items() if key not in names}}
    for section in OF_A_KIND:
        there, kind = tree.get(section), changes.get(f"{section}.kind")
        if isinstance(there, dict) and kind is not None and kind != there.get("kind"):
            tree = {**tree, section: {}}
    return settings.apply_changes(tree, changes)


def merged(first: Mapping[str, Any], then: Mapping[str, Any]) -> Tree:
    """Changes by dotted keys, and others after them, which also take the place of their alternatives."""
    replaced = {
        f"{section}.{name}"
        for section, names in ALTERNATIVES.items() if any(f"{section}.{name}" in then for name in names)
        for name in names
    }  # fmt: skip
    return {**{key: value for key, value in first.items() if key not in replaced}, **then}


def find_recipe(name: str) -> Path:
    """The file of a recipe: an existing path, else one that ships."""
    path = Path(name).expanduser()
    if path.is_dir() and name not in shipped("recipe"):
        raise RecipeError(f"{name} is a folder; a recipe is a TOML file (a run's own is {path / RECIPE})")
    return find_file("recipe", name)
