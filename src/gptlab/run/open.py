"""A model by its path, its run or its name on the hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from gptlab.device import pick_device
from gptlab.errors import GptlabError, ModelError, TokenizerError, UserError, nearest
from gptlab.model.adapter import LABELS, adapter_labels, adapter_vocab_size, is_adapter, load_adapter
from gptlab.model.classifier import KINDS, Task, as_classifier, labels_of, task_of
from gptlab.model.folder import Model, load_model, read_labels
from gptlab.model.lora import merge_lora
from gptlab.model.nanogpt import is_nanogpt
from gptlab.model.weights import extend_vocabulary
from gptlab.run.base import find_base, trained_context
from gptlab.run.checkpoint import MANIFEST, verify_folder
from gptlab.run.run import RECIPE, Run, run_folder, run_names
from gptlab.text.dialogue import Template
from gptlab.text.tokenizer import Tokenizer
from gptlab.text.vocabulary import FILES, PAIRS, TOKENIZER_JSON

Which = Literal["best", "last"] | int | None

SAFE_FILES = (
    "config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json",
    "adapter_config.json", "adapter_model.safetensors", LABELS, "chat_template.jinja", *FILES,
)  # fmt: skip
PICKLED_FILES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
"""What is fetched from the hub; the second only where a repository has no safetensors."""

KIND_FILES = ("config.json", "adapter_config.json", LABELS)
"""What says of which kind a model is."""


@dataclass(frozen=True, eq=False)
class OpenModel:
    """A model ready to use: a GPT or an RNN, a language model, a classifier or a reward model.

    model:     in eval mode, on its device; an adapter is merged into its base
    tokenizer: the folder's, None where it has none
    template:  how it is talked to; None for a base model, which writes on from text, and where it cannot be used
    template_fault: why it cannot be used, else ""
    folder:    where it was read
    name:      what it was called by
    """

    model: Model
    tokenizer: Tokenizer | None
    template: Template | None
    folder: Path
    name: str
    template_fault: str = ""

    @property
    def labels(self) -> tuple[str, ...] | None:
        """A classifier's classes, in the order of its logits, a reward model's one label; None for a language model."""
        return labels_of(self.model)

    @property
    def task(self) -> Task:
        """What it is for."""
        return task_of(self.labels)

    def require_tokenizer(self) -> Tokenizer:
        """The tokenizer; TokenizerError where the folder has none."""
        if self.tokenizer is None:
            pairs = ", or ".join(" and ".join(pair) for pair in PAIRS)
            raise TokenizerError(
                f"{self.folder}: has a model but no tokenizer: put its {TOKENIZER_JSON} there, or {pairs}"
            )
        return self.tokenizer


def open_model(
    name: str | Path,
    *,
    device: torch.device | str = "auto",
    runs: str | Path = "runs",
    checkpoint: Which = None,
    task: Task | None = None,
) -> OpenModel:
    """Finds and loads a model (see `find_model`) and the tokenizer beside it.

    `task`: what it is wanted for; UserError, before its weights are read, where it is a model of another kind.

    Raises ModelError where it is not found or not readable, RunError where the run lacks the checkpoint,
    CheckpointError where it is damaged, TokenizerError where the tokenizer has more tokens than the model.
    """
    at = device if isinstance(device, torch.device) else pick_device(device)
    folder = find_model(str(name), runs=Path(runs), checkpoint=checkpoint)
    if task is not None:
        require_task(task, str(name), read_labels(folder))
    tokenizer = read_tokenizer(folder)
    model = load_weights(folder, device=at, runs=Path(runs)).eval()
    if tokenizer is not None and tokenizer.vocab_size > model.shape.vocab_size:
        raise TokenizerError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size:,} tokens, the model {model.shape.vocab_size:,}: "
            "they do not belong together"
        )
    template, fault = None, ""
    try:
        template = read_template(folder, tokenizer)
    except TokenizerError as error:  # a model with a strange template still writes text
        fault = str(error)
    return OpenModel(model, tokenizer, template, folder, str(name), fault)


def load_weights(
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    runs: Path = Path("runs"),
    context: int | None = None,
    vocab_size: int | None = None,
    dropout: float | None = None,
    merged: bool = True,
) -> Model:
    """The model in a folder, as `load_model` reads it; an adapter with its base, merged into it or as it is trained.

    Draws no random numbers.
    """
    if not is_adapter(folder):
        return load_model(folder, device=device, context=context, vocab_size=vocab_size, dropout=dropout)
    model = load_model(
        base_of(folder, runs), device=device, context=context or trained_context(folder),
        vocab_size=adapter_vocab_size(folder), dropout=dropout,
    )  # fmt: skip
    if (labels := adapter_labels(folder)) is not None:
        with torch.random.fork_rng(devices=[]):  # the adapter has the head's weights
            model = as_classifier(model, labels)
    load_adapter(model, folder)
    if merged:
        merge_lora(model)
        if vocab_size is not None:
            extend_vocabulary(model, vocab_size)
    return model


def base_of(adapter: Path, runs: Path) -> Path:
    """The folder of the model that an adapter adds to; errors as `find_base`."""
    return find_base(adapter, lambda name: find_model(name, runs=runs))


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer in a model's folder, None where it has none."""
    return Tokenizer.read(folder) if folder.is_dir() and _has_tokenizer(folder) else None


def read_template(folder: Path, tokenizer: Tokenizer | None) -> Template | None:
    """The chat template in a model's folder, None where it has none."""
    return Template.read(folder, tokenizer.eos) if tokenizer is not None else None


def find_model(name: str, *, runs: Path = Path("runs"), checkpoint: Which = None, kind_only: bool = False) -> Path:
    """The folder of a model: an existing path (checkpoint, Hugging Face or PEFT folder, run, nanoGPT's ckpt.pt), else
    a run under `runs`, else a repository on the hub, which is downloaded; with `kind_only` just KIND_FILES of it.

    `checkpoint` chooses one of a run's (see `Run.checkpoint`). ModelError says what was looked for where.
    """
    path = Path(name).expanduser()
    if (path / RECIPE).is_file():
        return Run.open(path).checkpoint(checkpoint)
    if not _is_model(path) and (folder := run_folder(name, runs)):
        return Run.open(folder).checkpoint(checkpoint)
    if checkpoint is not None:
        raise ModelError(f"{name}: is no run here, so it has no checkpoint {checkpoint!r}{_near(name, runs)}")
    if not path.exists():
        looked = f"there is no folder {path} and no run {runs / name}{_near(name, runs)}"
        return _from_hub(name, looked, kind_only=kind_only)
    if not _is_model(path):
        raise ModelError(
            f"{path}: is no model: it has neither config.json (a model), adapter_config.json (an adapter), ckpt.pt "
            f"(nanoGPT's) nor {RECIPE} (a run)"
        )
    if (path / MANIFEST).exists():
        verify_folder(path)
    return path


def parse_checkpoint(which: str | None) -> Which:
    """What a person wrote after --checkpoint; UserError where it is neither best, last nor a number."""
    if which is None or which == "best" or which == "last":
        return which  # type: ignore[return-value]
    if which.isdecimal():
        return int(which)
    raise UserError(f"--checkpoint {which}: wanted best, last or the number of a step")


LACKING: dict[Task, str] = {
    "language": "writes no text", "classification": "has no classes", "reward": "gives no rewards"
}  # fmt: skip
"""What a model of another kind does not do."""

VERBS: dict[Task, str] = {
    "language": "gptlab generate {0} PROMPT writes with it",
    "classification": "gptlab classify {0} TEXT asks it",
    "reward": "gptlab evaluate {0} --on preferences:FILE asks it about pairs of answers, and --reward {0} (in a recipe "
    "samples.reward) about what another model answers",
}
"""What asks a model of each kind."""

TRAINED: dict[Task, str] = {
    "classification": 'a classifier of it (start = MODEL, data.kind = "labels")',
    "reward": 'a reward model of it (start = MODEL, data.kind = "preferences", objective.kind = "reward")',
}
"""What gptlab train makes of a language model."""


def require_task(task: Task, name: str, labels: tuple[str, ...] | None) -> None:
    """UserError where a model with these labels is not for this task; it names the verb that the model is for."""
    found = task_of(labels)
    if found == task:
        return
    kind = KINDS[found] + (f" of {len(labels or ())} classes" if found == "classification" else "")
    made = f", and gptlab train makes {TRAINED[task]}" if found == "language" else ""
    raise UserError(f"{name}: is {kind} and {LACKING[task]}; {VERBS[found].format(name)}{made}")


def _is_model(path: Path) -> bool:
    return (path / "config.json").is_file() or is_adapter(path) or is_nanogpt(path)


def _near(name: str, runs: Path) -> str:
    return nearest(name, run_names(runs))


def _from_hub(name: str, looked: str, *, kind_only: bool) -> Path:
    from gptlab.hub import download_files, is_hub_name

    if not is_hub_name(name):
        raise ModelError(f"{name}: {looked}, and it is no name on the hub (OWNER/NAME)")
    try:
        folder = download_files(name, KIND_FILES if kind_only else SAFE_FILES)
        if not kind_only and not [*folder.glob("*model*.safetensors")]:
            folder = download_files(name, (*SAFE_FILES, *PICKLED_FILES))
        return folder
    except GptlabError as error:
        raise ModelError(f"{name}: {looked}; the hub: {error}") from error


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (TOKENIZER_JSON, *(first for first, _ in PAIRS)))
