"""A model by its path, its run or its name on the hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from gptlab.device import pick_device
from gptlab.errors import GptlabError, ModelError, TokenizerError, nearest
from gptlab.model.gpt import GPT
from gptlab.model.huggingface import load_model
from gptlab.run.checkpoint import MANIFEST, verify_folder
from gptlab.run.run import RECIPE, Run, run_names
from gptlab.text.tokenizer import Tokenizer
from gptlab.text.vocabulary import FILES, PAIRS, TOKENIZER_JSON

Which = Literal["best", "last"] | int | None

SAFE_FILES = ("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json", *FILES)
PICKLED_FILES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
"""What is fetched from the hub; the second only where a repository has no safetensors."""


@dataclass(frozen=True, eq=False)
class OpenModel:
    """A model ready to use.

    model:     in eval mode, on its device
    tokenizer: the folder's, None where it has none
    folder:    where it was read
    name:      what it was called by
    """

    model: GPT
    tokenizer: Tokenizer | None
    folder: Path
    name: str

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
) -> OpenModel:
    """Finds and loads a model (see `find_model`) and the tokenizer beside it.

    Raises ModelError where it is not found or not readable, RunError where the run lacks the checkpoint,
    CheckpointError where it is damaged, TokenizerError where the tokenizer has more tokens than the model.
    """
    at = device if isinstance(device, torch.device) else pick_device(device)
    folder = find_model(str(name), runs=Path(runs), checkpoint=checkpoint)
    tokenizer = Tokenizer.read(folder) if _has_tokenizer(folder) else None
    model = load_model(folder, device=at).eval()
    if tokenizer is not None and tokenizer.vocab_size > model.shape.vocab_size:
        raise TokenizerError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size:,} tokens, the model {model.shape.vocab_size:,}: "
            "they do not belong together"
        )
    return OpenModel(model, tokenizer, folder, str(name))


def find_model(name: str, *, runs: Path = Path("runs"), checkpoint: Which = None) -> Path:
    """The folder of a model: an existing path (checkpoint, Hugging Face folder or run), else a run under `runs`,
    else a repository on the hub, which is downloaded.

    `checkpoint` chooses one of a run's (see `Run.checkpoint`). ModelError says what was looked for where.
    """
    path = Path(name).expanduser()
    if (path / RECIPE).is_file():
        return Run.open(path).checkpoint(checkpoint)
    if not _is_model(path) and (runs / name / RECIPE).is_file():
        return Run.open(runs / name).checkpoint(checkpoint)
    if checkpoint is not None:
        raise ModelError(f"{name}: is no run here, so it has no checkpoint {checkpoint!r}{_near(name, runs)}")
    if not path.exists():
        return _from_hub(name, f"there is no folder {path} and no run {runs / name}{_near(name, runs)}")
    if not _is_model(path):
        raise ModelError(f"{path}: is no model: it has neither config.json (a model) nor {RECIPE} (a run)")
    if (path / MANIFEST).exists():
        verify_folder(path)
    return path


def _is_model(path: Path) -> bool:
    return (path / "config.json").is_file()


def _near(name: str, runs: Path) -> str:
    return nearest(name, run_names(runs))


def _from_hub(name: str, looked: str) -> Path:
    from gptlab.hub import download_files, is_hub_name

    if not is_hub_name(name):
        raise ModelError(f"{name}: {looked}, and it is no name on the hub (OWNER/NAME)")
    try:
        folder = download_files(name, SAFE_FILES)
        if not [*folder.glob("model*.safetensors")]:
            folder = download_files(name, (*SAFE_FILES, *PICKLED_FILES))
        return folder
    except GptlabError as error:
        raise ModelError(f"{name}: {looked}; the hub: {error}") from error


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (TOKENIZER_JSON, *(first for first, _ in PAIRS)))
