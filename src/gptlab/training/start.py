"""What a run trains: a new model, or a start (a model that exists), perhaps adapted by LoRA."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from gptlab.errors import CheckpointError, RecipeError, TokenizerError
from gptlab.model.adapter import is_adapter, load_adapter
from gptlab.model.build import build_model
from gptlab.model.classifier import Task, as_classifier, new_model, task_of
from gptlab.model.folder import Model, Shape, load_model, read_labels, read_shape
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.lora import LoraSettings, add_lora, freeze_body, train_new_rows
from gptlab.model.weights import every_second, extend_vocabulary, keep_layers
from gptlab.run.base import check_base, keep_base, weights_fingerprint
from gptlab.run.checkpoint import Base, save_parts, write_folder
from gptlab.run.open import base_of, find_model, load_weights, read_template, read_tokenizer
from gptlab.run.run import Run
from gptlab.text.dialogue import Template
from gptlab.text.tokenizer import Tokenizer
from gptlab.training.recipe import Recipe


@dataclass(frozen=True)
class Start:
    """A model to be tuned. Finding one loads no weights.

    name:     what the recipe calls it
    folder:   where it is (of nanoGPT's: the file)
    shape:    as it is there
    template: as it is there; of a run that continues, the run's own
    labels:   of a classifier, its classes; of a reward model, its one output; None for a language model
    continued: whether a run goes on from a checkpoint
    own:      whether `folder` is the run's own (a checkpoint, or its base), which has only the layers that it keeps
    """

    name: str
    folder: Path
    shape: Shape
    tokenizer: Tokenizer | None
    template: Template | None
    labels: tuple[str, ...] | None = None
    continued: bool = False
    own: bool = False

    def is_for(self, vocab: Vocabulary) -> bool:
        """Whether it does already what is trained, so that it can be scored before: a classifier of other classes gets
        a new head."""
        same = vocab.task != "classification" or set(self.labels or ()) == set(vocab.labels or ())
        return task_of(self.labels) == vocab.task and same

    def load(self, recipe: Recipe, vocab: Vocabulary, runs: Path) -> Model:
        """Its weights in the shape in which it is tuned, rows of added tokens at the mean of the others; a classifier's
        head as it is there."""
        shape = self.tuned_shape(recipe, vocab.size)
        model = load_weights(
            self.folder, runs=runs, context=shape.context, vocab_size=shape.vocab_size, dropout=shape.dropout
        )
        if isinstance(model, GPT):
            if vocab.first_added is not None:
                extend_vocabulary(model, vocab.size, known=vocab.first_added)
            if (layers := self._layers(recipe)) is not None:
                model = keep_layers(model, layers)
        return model

    def tuned_shape(self, recipe: Recipe, vocab_size: int) -> Shape:
        """Its shape with the recipe's context, layers and dropout, and a vocabulary that is no smaller than
        `vocab_size`."""
        layers = self._layers(recipe)
        return replace(
            self.shape, context=recipe.model.context or self.shape.context, dropout=recipe.model.dropout,
            vocab_size=max(vocab_size, self.shape.vocab_size),
            n_layer=self.shape.n_layer if layers is None else len(layers),
        )  # fmt: skip

    def _layers(self, recipe: Recipe) -> tuple[int, ...] | None:
        """Which of its layers the recipe keeps; None: all. RecipeError for those that it has not."""
        wanted = recipe.model.keep_layers
        if wanted is None or self.own:
            return None
        if not isinstance(self.shape, GPTShape):
            raise RecipeError(f"model.keep_layers: {self.name} is an RNN; only a GPT's layers can be taken apart")
        n_layer = self.shape.n_layer
        layers = every_second(n_layer) if wanted == "every-second" else wanted
        if layers[-1] >= n_layer:
            raise RecipeError(
                f"model.keep_layers has layer {layers[-1]}; {self.name} has {n_layer}, numbered 0 to {n_layer - 1}"
            )
        return layers


@dataclass(frozen=True)
class Vocabulary:
    """What goes into the model and what comes out of it.

    size:        how many ids there are
    first_added: the first of those that the template added to the start's; None: it added none
    labels:      of a classifier, its classes; of a reward model, its one output
    """

    size: int
    first_added: int | None = None
    labels: tuple[str, ...] | None = None

    @property
    def task(self) -> Task:
        return task_of(self.labels)


def find_start(recipe: Recipe, existing: Run | None, runs: Path) -> tuple[Start | None, Recipe]:
    """The recipe's start (None where it has none), and the recipe with the context that it has.

    A run that continues has its own copy: a LoRA run its base, another its newest checkpoint; what it began with may be
    gone. RecipeError where the recipe's tokenizer or context does not fit the start; ModelError where there is none of
    that name.
    """
    if recipe.start is None:
        return None, recipe
    newest = _newest(existing) if existing else None
    kept = existing.base_folder if existing and recipe.lora else newest
    own = kept if kept and kept.exists() else None
    folder = own or find_model(recipe.start, runs=runs)
    plain = base_of(folder, runs) if is_adapter(folder) else folder
    shape = read_shape(plain, dropout=recipe.model.dropout)
    if recipe.lora and not isinstance(shape, GPTShape):
        raise RecipeError(f"lora: {recipe.start} is an RNN, and adapters are for GPTs; leave [lora] out")
    context = recipe.model.context or shape.context
    if context > shape.context and isinstance(shape, GPTShape):
        raise RecipeError(f"model.context = {context}: {recipe.start} has {shape.context}; it can only be shortened")
    tokenizer = read_tokenizer(newest or folder)
    if tokenizer is None and recipe.tokenizer is None:
        raise RecipeError(f'{recipe.start} has no tokenizer beside it: name its own, tokenizer.from = "gpt2" say')
    if tokenizer is not None and recipe.tokenizer is not None and existing is None:
        raise RecipeError(f"{recipe.start} has a tokenizer, and can be read with no other: leave [tokenizer] out")
    model = recipe.model.model_copy(update={"context": context})
    template = _template(recipe, newest or folder, tokenizer)
    labels = read_labels(newest or folder)
    if labels is not None and recipe.writes:
        kind, data = ("reward model", "preferences") if task_of(labels) == "reward" else ("classifier", "labels")
        raise RecipeError(f"{recipe.start} is a {kind} and cannot write; data.kind = {data} tunes it")
    start = Start(
        recipe.start, folder, shape, tokenizer, template, labels, continued=newest is not None, own=own is not None
    )
    return start, recipe.model_copy(update={"model": model})


def _template(recipe: Recipe, folder: Path, tokenizer: Tokenizer | None) -> Template | None:
    """The template in a folder; one that cannot be used matters only where the recipe names no other."""
    try:
        return read_template(folder, tokenizer)
    except TokenizerError:
        if recipe.data.kind in ("dialogues", "preferences") and recipe.data.template is None:
            raise
        return None


def _newest(run: Run) -> Path | None:
    """The newest whole checkpoint."""
    for step in reversed(run.steps()):
        with suppress(CheckpointError):
            return run.checkpoint(step)
    return None


def outline(recipe: Recipe, vocab: Vocabulary, start: Start | None) -> Model:
    """The model that is trained, adapted or not, with random weights: for its shapes (on the meta device, traced)."""
    model = new_model(start.tuned_shape(recipe, vocab.size)) if start else build_model(recipe.model, vocab.size)
    return _ready(model, recipe, vocab, lora=recipe.lora if start else None)


def _ready(model: Model, recipe: Recipe, vocab: Vocabulary, *, lora: LoraSettings | None) -> Model:
    """The model as it is trained: with the head of a classifier, adapted, frozen but for its head."""
    if vocab.labels is not None:
        model = as_classifier(model, vocab.labels)
    if lora is not None:
        assert isinstance(model, GPT)
        _adapt(model, lora, vocab)
    if recipe.training.parameters == "head":
        freeze_body(model)
    model.activation_checkpointing = recipe.training.activation_checkpointing
    return model


def make_model(
    recipe: Recipe, vocab: Vocabulary, start: Start | None, checkpoint: Path | None, base: Base | None, runs: Path
) -> Model:
    """The model that is trained, on the CPU: from the checkpoint that a run continues from, else the start's weights,
    else new ones (torch's global generator decides them). `base`: that of an adapted one (`make_base`)."""
    lora = None
    if base is not None and start and recipe.lora:
        shape = start.tuned_shape(recipe, vocab.size)
        model = load_model(base.folder, context=shape.context, dropout=shape.dropout)
        if checkpoint:
            check_base(checkpoint, base.folder, base.fingerprint)
            if vocab.labels is not None:
                model = as_classifier(model, vocab.labels)
            load_adapter(model, checkpoint)
        else:
            lora = recipe.lora
    elif checkpoint:
        model = load_model(checkpoint)
    elif start:
        model = start.load(recipe, vocab, runs)
    else:
        model = build_model(recipe.model, vocab.size)
    return _ready(model, recipe, vocab, lora=lora)


def _adapt(model: GPT, settings: LoraSettings, vocab: Vocabulary) -> None:
    add_lora(model, settings)
    if vocab.first_added is not None:
        train_new_rows(model, vocab.first_added)


def make_base(
    run: Run,
    recipe: Recipe,
    start: Start,
    vocab: Vocabulary,
    tokenizer: Tokenizer,
    template: Template | None,
    runs: Path,
) -> Base:
    """The base of a LoRA run, in its folder: the start's own files, or weights of its own where the start's are not
    those that are tuned (an adapter merged, a vocabulary extended, nanoGPT's file)."""
    folder = run.base_folder
    plain = (start.folder / "config.json").is_file() and not is_adapter(start.folder)
    same = plain and vocab.first_added is None and vocab.size <= start.shape.vocab_size and not recipe.model.keep_layers
    if not folder.exists():
        if same:
            keep_base(start.folder, folder)
        else:
            whole = recipe.model_copy(
                update={"model": recipe.model.model_copy(update={"context": start.shape.context})}
            )
            model = start.load(whole, vocab, runs)

            write_folder(
                folder, lambda temporary: save_parts(temporary, model, tokenizer, template),
                bytes_needed=sum(weight.nbytes for weight in model.parameters()),
            )  # fmt: skip
    # Of the hub's cache: models--OWNER--NAME/snapshots/COMMIT.
    from_hub = same and any(part.startswith("models--") for part in start.folder.parts)
    name = start.name if from_hub else str(folder.absolute())
    return Base(name, folder, weights_fingerprint(folder), recipe.model.context or start.shape.context)
