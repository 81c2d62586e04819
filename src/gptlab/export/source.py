"""What is exported: found and described; its weights are loaded when they are wanted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gptlab.errors import ModelError, TokenizerError
from gptlab.hub import is_hub_name
from gptlab.model.adapter import adapter_base, is_adapter
from gptlab.model.classifier import Task, task_of
from gptlab.model.folder import read_labels
from gptlab.model.gpt import GPT
from gptlab.model.rnn_files import is_rnn
from gptlab.run.open import Which, base_of, find_model, load_weights, read_template, read_tokenizer
from gptlab.run.run import CHECKPOINTS, RECIPE, Run
from gptlab.text.dialogue import Template
from gptlab.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Source:
    """A model with all that belongs to it.

    name:     the run's, else what it was called by, without what stands before it
    folder:   where it is
    template: how it is talked to; None for a base model
    labels:   of a classifier, in the order of its logits, of a reward model its one; None for a language model
    base:     of an adapter, the folder of the model that it adds to; None for a whole model
    run:      the run that it is a checkpoint of; None where it is no run's
    runs:     where runs are
    """

    name: str
    folder: Path
    tokenizer: Tokenizer
    template: Template | None
    labels: tuple[str, ...] | None
    base: Path | None
    run: Run | None
    runs: Path

    @property
    def task(self) -> Task:
        """What it is for."""
        return task_of(self.labels)

    @property
    def end_id(self) -> int:
        """The token at which writing stops."""
        return self.template.end_id(self.tokenizer) if self.template else self.tokenizer.eos_id

    @property
    def base_name(self) -> str | None:
        """The base as others are to find it: a name on the hub, else a folder."""
        if self.base is None:
            return None
        name = adapter_base(self.folder)
        here = Path(name).exists() or (self.runs / name).exists()
        return name if is_hub_name(name) and not here else str(self.base.resolve())

    def load(self) -> GPT:
        """The weights, on the CPU, ready to write; an adapter with its base, not merged."""
        model = load_weights(self.folder, runs=self.runs, merged=False).eval()
        assert isinstance(model, GPT)  # `find_source` let no other through
        return model


def find_source(name: str, *, runs: Path, checkpoint: Which) -> Source:
    """A model by its path, its run or its name on the hub. Errors as `open_model`; TokenizerError where it has no
    tokenizer, ModelError for an RNN."""
    folder = find_model(name, runs=runs, checkpoint=checkpoint)
    if is_rnn(folder):
        raise ModelError(
            f"{name}: is an RNN, and neither transformers nor llama.cpp has such a model; gptlab reads it where it is, "
            f"in {folder}"
        )
    tokenizer = read_tokenizer(folder)
    if tokenizer is None:
        raise TokenizerError(
            f"{folder}: has no tokenizer, without which nobody could use what is exported: put its tokenizer.json there"
        )
    base = base_of(folder, runs) if is_adapter(folder) else None
    run = _run_of(folder)
    title = run.name if run else Path(name).absolute().name
    template, labels = read_template(folder, tokenizer), read_labels(folder)
    return Source(title, folder, tokenizer, template, labels, base, run, runs)


def _run_of(checkpoint: Path) -> Run | None:
    """The run that a folder is a checkpoint of."""
    home = checkpoint.absolute().parent.parent
    is_one = checkpoint.absolute().parent.name == CHECKPOINTS and (home / RECIPE).is_file()
    return Run.open(home) if is_one else None
