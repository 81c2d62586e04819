"""A trained model becomes a folder for others: Hugging Face's, PEFT's or llama.cpp's, with a model card.

Before the folder takes its name it has been read again and found to be the model; what fails leaves nothing behind.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from gptlab.errors import GptlabError, ModelError, UserError, nearest
from gptlab.export.card import Kind, write_card
from gptlab.export.checks import check_with_gptlab, check_with_llama_cpp, check_with_transformers
from gptlab.export.copies import Answers, ask, compare, own_reader, prompts
from gptlab.export.gguf import GGUF_FILE, gguf_fields, require_gguf, verify_gguf, write_gguf
from gptlab.export.source import Source, find_source
from gptlab.hub import check_upload, is_hub_name, upload_folder
from gptlab.model.adapter import is_adapter
from gptlab.model.classifier import KINDS
from gptlab.model.gpt import GPT
from gptlab.model.lora import merge_lora
from gptlab.run.checkpoint import save_parts
from gptlab.run.files import flush_folder
from gptlab.run.open import PICKLED_FILES, SAFE_FILES, Which
from gptlab.run.run import Say

Format = Literal["huggingface", "gguf"]


@dataclass(frozen=True)
class Exported:
    """What was written.

    files:   the names of the files in `folder`
    checks:  what was compared with the model before the folder took its name, a sentence each
    address: where it is on the hub; None where it was not pushed
    """

    folder: Path
    files: tuple[str, ...]
    checks: tuple[str, ...]
    address: str | None = None


def export_model(
    model: str | Path,
    to: str | Path,
    *,
    format: Format = "huggingface",
    merge: bool = False,
    push: str | None = None,
    runs: str | Path = "runs",
    checkpoint: Which = None,
    say: Say = lambda doing: None,
) -> Exported:
    """Writes a model (see `find_model`) for others, in float32, and reads it again before it says so.

    to:     a new folder, or an empty one
    format: "huggingface", a folder that transformers' AutoModelForCausalLM (of a classifier or a reward model
            AutoModelForSequenceClassification) and AutoTokenizer load, an adapter a folder that PEFT loads; or "gguf",
            a folder with a file that llama.cpp loads, of which an adapter is always merged
    merge:  an adapter and its base become one model, once their logits have been compared
    push:   OWNER/NAME on the hub, where the folder is put too; made, and private, where there is none
    say:    is told what is being done

    UserError and its kin for what cannot be done, the errors of `find_model`, and GptlabError where what was written
    turns out not to be the model: then `to` is not there. Where only the hub refuses, the same errors, and it is.
    """
    if format not in get_args(Format):
        raise UserError(f"format {format!r}: wanted huggingface or gguf{nearest(format, list(get_args(Format)))}")
    to, runs = Path(to).expanduser().absolute(), Path(runs)
    _require_new(to)
    if push is not None:
        check_upload(push)
    if format == "gguf":
        require_gguf()
    say(f"finding {model}")
    source = find_source(str(model), runs=runs, checkpoint=checkpoint)
    if format == "gguf" and source.task != "language":
        raise ModelError(
            f"{model}: is {KINDS[source.task]}, and llama.cpp's GPT-2 can only write; export it as huggingface"
        )
    if merge and source.base is None:
        raise UserError(f"{model} is a whole model, no adapter: there is nothing to merge")
    merge = source.base is not None and (merge or format == "gguf")
    if push is not None and not merge and source.base_name and not is_hub_name(source.base_name):
        raise UserError(
            f"{push}: nobody could read this adapter from the hub, for its base is {source.base_name}; push the two as "
            "one model (--merge)"
        )
    write = _write_gguf if format == "gguf" else _write_huggingface
    with _new_folder(to) as folder:
        checks = write(source, folder, merge=merge, say=say)
        kind: Kind = "gguf" if format == "gguf" else "adapter" if is_adapter(folder) else "model"
        write_card(folder, source, kind, place=push or to.name)
    address = None
    if push is not None:
        say(f"uploading to {push}")
        address = _upload(to, push, replaces=() if format == "gguf" else (*SAFE_FILES, *PICKLED_FILES))
    return Exported(to, tuple(sorted(path.name for path in to.iterdir())), tuple(checks), address)


def _write_huggingface(source: Source, folder: Path, *, merge: bool, say: Say) -> list[str]:
    """Writes the files that transformers or PEFT read; what was compared."""
    model, answers, checks = _load(source, merge=merge, say=say)
    say("writing the weights")
    save_parts(folder, model, source.tokenizer, source.template, base_name=None if merge else source.base_name)
    del model  # the memory is the copy's, which is read next
    say("reading it again")
    checks.append(check_with_gptlab(folder, source, answers))
    say("reading it again with transformers")
    by_transformers = check_with_transformers(folder, source, answers)
    return [*checks, by_transformers or "transformers is not installed here: not read by it"]


def _write_gguf(source: Source, folder: Path, *, merge: bool, say: Say) -> list[str]:
    """Writes the file that llama.cpp reads; what was compared."""
    model, answers, checks = _load(source, merge=merge, say=say)
    say("writing the weights")
    file, fields = folder / GGUF_FILE, gguf_fields(model, source.tokenizer, source.template, name=source.name)
    write_gguf(file, model, fields)
    say("reading it again")
    checks.append(verify_gguf(file, model, fields))
    by_llama_cpp = check_with_llama_cpp(file, source, answers, model.shape.context)
    return [*checks, by_llama_cpp or "llama-cpp-python is not installed here: not read by llama.cpp"]


def _load(source: Source, *, merge: bool, say: Say) -> tuple[GPT, Answers, list[str]]:
    """The model that is to be written, what it answers, and how near merging it came."""
    say("loading the weights")
    model = source.load()
    reader, context = own_reader(model, source.end_id), model.shape.context
    answers = ask(reader, prompts(source.tokenizer, source.template, context), context)
    if not merge:
        return model, answers, []
    say("merging")
    merge_lora(model)
    try:
        return model, answers, [compare(answers, reader, "merged into its base")]
    except GptlabError as error:
        raise GptlabError(f"{error}; export the adapter as it is, without merging") from error


def _upload(folder: Path, repo: str, *, replaces: Sequence[str]) -> str:
    try:
        return upload_folder(folder, repo, replaces=replaces)
    except GptlabError as error:
        said = f"{error}; the export itself is in {folder}, to upload it: hf upload {repo} {folder}"
        raise type(error)(said) from error


def _require_new(to: Path) -> None:
    if to.exists() and not (to.is_dir() and not any(to.iterdir())):
        raise UserError(f"{to}: is there already; export to a new folder, or remove that one")


@contextmanager
def _new_folder(to: Path) -> Iterator[Path]:
    """A folder beside `to`, to be filled; when that went well it takes the name, else it goes."""
    temporary = to.with_name(f".{to.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)  # what a kill has left
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in temporary.iterdir():
            with path.open("r+b") as file:
                os.fsync(file.fileno())
        flush_folder(temporary)
        if to.exists():
            to.rmdir()  # an empty one
        os.rename(temporary, to)
        flush_folder(to.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
