"""What was written is read again, by this lab and by the programs it is for, and has to be the model it came from."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from gptlab.errors import GptlabError
from gptlab.export.copies import (
    TEXTS,
    Answers,
    LlamaCppReader,
    Reader,
    TransformersClassifier,
    TransformersReader,
    compare,
    own_reader,
)
from gptlab.export.source import Source
from gptlab.model.adapter import is_adapter
from gptlab.model.gpt import GPT
from gptlab.run.open import open_model
from gptlab.text.dialogue import Message

LLAMA_CPP_TOLERANCE = 5e-3
"""Of the largest logit. llama.cpp looks GELU up in a table of half precision: of twelve layers came 6e-4."""


def check_with_gptlab(folder: Path, source: Source, answers: Answers) -> str:
    """Reads a copy as `open_model` does, an adapter merged; says how near it is. GptlabError where it is another."""
    copy = open_model(folder, device="cpu", runs=source.runs)
    if copy.require_tokenizer().fingerprint != source.tokenizer.fingerprint or copy.template != source.template:
        raise GptlabError("read by gptlab: tokenizer or chat template are not the model's")
    if not isinstance(copy.model, GPT) or copy.labels != source.labels:
        raise GptlabError(f"read by gptlab: its classes are {copy.labels}, the model's {source.labels}")
    return compare(answers, own_reader(copy.model, source.end_id), "read by gptlab")


def check_with_transformers(folder: Path, source: Source, answers: Answers) -> str | None:
    """Reads a copy with transformers, an adapter with PEFT; None where they are not installed. Errors as above."""
    adapter = is_adapter(folder)
    name = "read by transformers" + (" and PEFT" if adapter else "")
    if not _installed("transformers", *(["peft"] if adapter else [])):
        return None
    with _reading(name), _quiet_transformers():
        from transformers import AutoTokenizer

        reader = _transformers_reader(folder, source, source.base if adapter else None)
        _compare_tokenizers(AutoTokenizer.from_pretrained(folder), source, name)
        return compare(answers, reader, name)


def _transformers_reader(folder: Path, source: Source, base: Path | None) -> Reader:
    """`base`: that of an adapter, None of a whole model."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForCausalLM if source.task == "language" else AutoModelForSequenceClassification
    classes = dict(enumerate(source.labels or ()))
    if base is None:
        model: Any = kind.from_pretrained(folder)
    else:  # PEFT has no place for classes: who reads an adapter says what they are
        from peft import PeftModel

        bare = kind.from_pretrained(base, **({"id2label": classes} if classes else {}))
        model = PeftModel.from_pretrained(bare, folder)
    if not classes:
        return TransformersReader(model)
    if model.config.id2label != classes:
        raise GptlabError(f"read by transformers: its classes are {model.config.id2label}, the model's {classes}")
    return TransformersClassifier(model)


def check_with_llama_cpp(file: Path, source: Source, answers: Answers, context: int) -> str | None:
    """Reads a GGUF file with llama.cpp; None where llama-cpp-python is not installed. Errors as above."""
    if not _installed("llama_cpp"):
        return None
    name = "read by llama.cpp"
    with _reading(name), closing(LlamaCppReader(file, context)) as reader:
        for text in TEXTS:
            if reader.encode(text) != source.tokenizer.encode(text):
                raise GptlabError(f"{name}: it encodes {text!r} otherwise")
        largest = max(float(logits.abs().max()) for logits in answers.logits)
        return compare(answers, reader, name, tolerance=LLAMA_CPP_TOLERANCE * largest)


def _compare_tokenizers(found: Any, source: Source, name: str) -> None:
    """GptlabError where transformers' tokenizer gives other ids or writes a dialogue otherwise."""
    for text in TEXTS:
        if found(text)["input_ids"] != source.tokenizer.encode(text):
            raise GptlabError(f"{name}: it encodes {text!r} otherwise")
    if source.template is not None:
        asked = [{"role": "user", "content": TEXTS[0]}]
        written = found.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        if written != source.template.render([Message("user", TEXTS[0])], prompt=True):
            raise GptlabError(f"{name}: its chat template writes {written!r}")


def _installed(*packages: str) -> bool:
    try:
        for package in packages:
            import_module(package)
    except ImportError:
        return False
    return True


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """What another program raises becomes one message."""
    try:
        yield
    except GptlabError:
        raise
    except Exception as error:
        raise GptlabError(f"{name}: it fails: {error}") from error


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without its progress bars, and its advice on a model that is only looked at."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
