"""What a run trains: a new model, or a start (a model that exists), perhaps adapted by LoRA."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from gptlab.errors import CheckpointError, RecipeError
from gptlab.hub import is_hub_name
from gptlab.model.adapter import is_adapter, load_adapter
from gptlab.model.build import build_model
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.huggingface import load_model, read_shape, save_model
from gptlab.model.lora import LoraSettings, add_lora, train_new_rows
from gptlab.run.base import find_base, link_base, weights_fingerprint
from gptlab.run.checkpoint import Base, write_folder
from gptlab.run.open import find_model, load_weights, read_template, read_tokenizer
from gptlab.run.run import Run
from gptlab.text.dialogue import Template
from gptlab.text.tokenizer import Tokenizer
from gptlab.training.recipe import Recipe


@dataclass(frozen=True)
class Start:
    """A model to be tuned. Finding one loads no weights.

    name:       what the recipe calls it
    folder:     where it is (of nanoGPT's: the file)
    shape:      as it is there
    vocab_size: as it was published; rows of tokens added since are new
    """

    name: str
    folder: Path
    shape: GPTShape
    vocab_size: int
    tokenizer: Tokenizer | None
    template: Template | None

    def load(self, recipe: Recipe, vocab_size: int, runs: Path) -> GPT:
        """Its weights in the shape in which it is tuned."""
        shape = self.tuned_shape(recipe, vocab_size)
        return load_weights(
            self.folder, runs=runs, context=shape.context, vocab_size=shape.vocab_size, dropout=shape.dropout
        )

    def tuned_shape(self, recipe: Recipe, vocab_size: int) -> GPTShape:
        """Its shape with the recipe's context and dropout, and a vocabulary that is no smaller than `vocab_size`."""
        return replace(
            self.shape, context=recipe.model.context or self.shape.context, dropout=recipe.model.dropout,
            vocab_size=max(vocab_size, self.shape.vocab_size),
        )  # fmt: skip


def find_start(recipe: Recipe, existing: Run | None, runs: Path) -> tuple[Start | None, Recipe]:
    """The recipe's start (None where it has none), and the recipe with the context that it has.

    A run that continues has its own copy: a LoRA run its base, another its newest checkpoint; what it began with may be
    gone. RecipeError where the recipe's tokenizer or context does not fit the start; ModelError where there is none of
    that name.
    """
    if recipe.start is None:
        return None, recipe
    kept = None if existing is None else existing.base_folder if recipe.lora else _newest(existing)
    folder = kept if kept and kept.exists() else find_model(recipe.start, runs=runs)
    plain = find_base(folder, lambda name: find_model(name, runs=runs)) if is_adapter(folder) else folder
    shape = read_shape(plain, dropout=recipe.model.dropout)
    context = recipe.model.context or shape.context
    if context > shape.context:
        raise RecipeError(f"model.context = {context}: {recipe.start} has {shape.context}; it can only be shortened")
    tokenizer = read_tokenizer(folder)
    if tokenizer is None and recipe.tokenizer is None:
        raise RecipeError(f'{recipe.start} has no tokenizer beside it: name its own, tokenizer.from = "gpt2" say')
    if tokenizer is not None and recipe.tokenizer is not None and kept is None:
        raise RecipeError(f"{recipe.start} has a tokenizer, and can be read with no other: leave [tokenizer] out")
    model = recipe.model.model_copy(update={"context": context})
    published = existing.origin["start"]["vocab_size"] if existing else shape.vocab_size
    start = Start(recipe.start, folder, shape, published, tokenizer, read_template(folder, tokenizer))
    return start, recipe.model_copy(update={"model": model})


def _newest(run: Run) -> Path | None:
    """The newest whole checkpoint."""
    for step in reversed(run.steps()):
        with suppress(CheckpointError):
            return run.checkpoint(step)
    return None


def outline(recipe: Recipe, vocab_size: int, start: Start | None) -> GPT:
    """The model that is trained, adapted or not, with random weights: for its shapes (on the meta device, traced)."""
    model = GPT(start.tuned_shape(recipe, vocab_size)) if start else build_model(recipe.model, vocab_size)
    if start and recipe.lora:
        _adapt(model, recipe.lora, start)
    model.activation_checkpointing = recipe.training.activation_checkpointing
    return model


def make_model(
    recipe: Recipe, tokenizer: Tokenizer, start: Start | None, run: Run, checkpoint: Path | None, runs: Path
) -> tuple[GPT, Base | None]:
    """The model that is trained, on the CPU: from the checkpoint that a run continues from, else the start's weights,
    else new ones (torch's global generator decides them); and the base of an adapted one."""
    base = None
    if start and recipe.lora:
        model = start.load(recipe, tokenizer.vocab_size, runs)
        base = _ensure_base(run, start, model, tokenizer)
        if checkpoint:
            load_adapter(model, checkpoint)
        else:
            _adapt(model, recipe.lora, start)
    elif checkpoint:
        model = load_model(checkpoint)
    elif start:
        model = start.load(recipe, tokenizer.vocab_size, runs)
    else:
        model = build_model(recipe.model, tokenizer.vocab_size)
    model.activation_checkpointing = recipe.training.activation_checkpointing
    return model, base


def _adapt(model: GPT, settings: LoraSettings, start: Start) -> None:
    add_lora(model, settings)
    if model.shape.vocab_size > start.vocab_size:
        train_new_rows(model, start.vocab_size)


def _ensure_base(run: Run, start: Start, model: GPT, tokenizer: Tokenizer) -> Base:
    """The base of a LoRA run, in its folder: a link to the start, or weights of its own where the start's are not those
    that are tuned (an adapter merged, a vocabulary extended, nanoGPT's file). `model`: the base, not yet adapted."""
    folder = run.base_folder
    if not folder.exists():
        plain = (start.folder / "config.json").is_file() and not is_adapter(start.folder)
        if plain and model.shape.vocab_size == start.shape.vocab_size:
            link_base(start.folder, folder)
        else:
            write_folder(folder, lambda temporary: _save(model, tokenizer, temporary))
    from_hub = folder.is_symlink() and is_hub_name(start.name) and not Path(start.name).exists()
    return Base(start.name if from_hub else str(folder.absolute()), folder, weights_fingerprint(folder))


def _save(model: GPT, tokenizer: Tokenizer, folder: Path) -> None:
    save_model(model, folder, eos_id=tokenizer.eos_id)
    tokenizer.save(folder, context=model.shape.context)
