"""What a run trains: a new model, or a start (a model that exists), perhaps adapted by LoRA."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from gptlab.errors import CheckpointError, RecipeError, TokenizerError
from gptlab.model.adapter import is_adapter, load_adapter
from gptlab.model.build import build_model
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.huggingface import load_model, read_shape
from gptlab.model.lora import LoraSettings, add_lora, train_new_rows
from gptlab.model.weights import extend_vocabulary
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
    """

    name: str
    folder: Path
    shape: GPTShape
    tokenizer: Tokenizer | None
    template: Template | None
    continued: bool = False

    def load(self, recipe: Recipe, vocab: Vocabulary, runs: Path) -> GPT:
        """Its weights in the shape in which it is tuned, rows of added tokens at the mean of the others."""
        shape = self.tuned_shape(recipe, vocab.size)
        model = load_weights(
            self.folder, runs=runs, context=shape.context, vocab_size=shape.vocab_size, dropout=shape.dropout
        )
        if vocab.first_added is not None:
            extend_vocabulary(model, vocab.size, known=vocab.first_added)
        return model

    def tuned_shape(self, recipe: Recipe, vocab_size: int) -> GPTShape:
        """Its shape with the recipe's context and dropout, and a vocabulary that is no smaller than `vocab_size`."""
        return replace(
            self.shape, context=recipe.model.context or self.shape.context, dropout=recipe.model.dropout,
            vocab_size=max(vocab_size, self.shape.vocab_size),
        )  # fmt: skip


@dataclass(frozen=True)
class Vocabulary:
    """How many ids there are, and the first of those that the template added to the start's; None: it added none."""

    size: int
    first_added: int | None = None


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
    folder = kept if kept and kept.exists() else find_model(recipe.start, runs=runs)
    plain = base_of(folder, runs) if is_adapter(folder) else folder
    shape = read_shape(plain, dropout=recipe.model.dropout)
    context = recipe.model.context or shape.context
    if context > shape.context:
        raise RecipeError(f"model.context = {context}: {recipe.start} has {shape.context}; it can only be shortened")
    tokenizer = read_tokenizer(newest or folder)
    if tokenizer is None and recipe.tokenizer is None:
        raise RecipeError(f'{recipe.start} has no tokenizer beside it: name its own, tokenizer.from = "gpt2" say')
    if tokenizer is not None and recipe.tokenizer is not None and existing is None:
        raise RecipeError(f"{recipe.start} has a tokenizer, and can be read with no other: leave [tokenizer] out")
    model = recipe.model.model_copy(update={"context": context})
    template = _template(recipe, newest or folder, tokenizer)
    start = Start(recipe.start, folder, shape, tokenizer, template, continued=newest is not None)
    return start, recipe.model_copy(update={"model": model})


def _template(recipe: Recipe, folder: Path, tokenizer: Tokenizer | None) -> Template | None:
    """The template in a folder; one that cannot be used matters only where the recipe names no other."""
    try:
        return read_template(folder, tokenizer)
    except TokenizerError:
        if getattr(recipe.data, "template", None) is None and recipe.data.kind == "dialogues":
            raise
        return None


def _newest(run: Run) -> Path | None:
    """The newest whole checkpoint."""
    for step in reversed(run.steps()):
        with suppress(CheckpointError):
            return run.checkpoint(step)
    return None


def outline(recipe: Recipe, vocab: Vocabulary, start: Start | None) -> GPT:
    """The model that is trained, adapted or not, with random weights: for its shapes (on the meta device, traced)."""
    model = GPT(start.tuned_shape(recipe, vocab.size)) if start else build_model(recipe.model, vocab.size)
    if start and recipe.lora:
        _adapt(model, recipe.lora, vocab)
    model.activation_checkpointing = recipe.training.activation_checkpointing
    return model


def make_model(
    recipe: Recipe, vocab: Vocabulary, start: Start | None, checkpoint: Path | None, base: Base | None, runs: Path
) -> GPT:
    """The model that is trained, on the CPU: from the checkpoint that a run continues from, else the start's weights,
    else new ones (torch's global generator decides them). `base`: that of an adapted one (`make_base`)."""
    if base is not None and start and recipe.lora:
        shape = start.tuned_shape(recipe, vocab.size)
        model = load_model(base.folder, context=shape.context, dropout=shape.dropout)
        if checkpoint:
            check_base(checkpoint, base.folder, base.fingerprint)
            load_adapter(model, checkpoint)
        else:
            _adapt(model, recipe.lora, vocab)
    elif checkpoint:
        model = load_model(checkpoint)
    elif start:
        model = start.load(recipe, vocab, runs)
    else:
        model = build_model(recipe.model, vocab.size)
    model.activation_checkpointing = recipe.training.activation_checkpointing
    return model


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
    same = plain and vocab.first_added is None and vocab.size <= start.shape.vocab_size
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
