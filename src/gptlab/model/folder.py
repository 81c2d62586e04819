"""A model's folder, of whichever kind its config.json says: a GPT-2 in Hugging Face's format or nanoGPT's, an RNN in
the lab's own; a language model, a classifier or a reward model. Adapters have a reader of their own (adapter.py).
"""

from __future__ import annotations

from pathlib import Path

import torch

from gptlab.model import huggingface
from gptlab.model.adapter import adapter_labels, is_adapter
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.rnn import RNN, RNNShape
from gptlab.model.rnn_files import is_rnn, load_rnn, read_rnn_labels, read_rnn_shape, save_rnn

Model = GPT | RNN
Shape = GPTShape | RNNShape


def save_model(model: Model, folder: Path, *, eos_id: int | None = None, bos_id: int | None = None) -> None:
    """Writes the model into `folder`, without an adapter. `eos_id`: the token at which writing ends; `bos_id`: that a
    text begins with, by default the same. OSError where the disk does not take it."""
    if isinstance(model, RNN):
        save_rnn(model, folder, eos_id=eos_id, bos_id=bos_id)
    else:
        huggingface.save_model(model, folder, eos_id=eos_id, bos_id=bos_id)


def load_model(
    path: Path,
    *,
    device: torch.device | str = "cpu",
    context: int | None = None,
    vocab_size: int | None = None,
    dropout: float | None = None,
) -> Model:
    """The model there, in float32 on `device`, in training mode; a GPTClassifier or RNNClassifier where it is one.

    Where they are given, `context` and `dropout` take the place of its own (a GPT's context can only be shortened), and
    it has rows for `vocab_size` tokens, new ones at the mean of the others. ModelError where it cannot be read.
    """
    load = load_rnn if is_rnn(path) else huggingface.load_model
    return load(path, device=device, context=context, vocab_size=vocab_size, dropout=dropout)


def read_shape(path: Path, *, dropout: float | None = None) -> Shape:
    """The shape of the model that `load_model` would read there, without its weights."""
    return (read_rnn_shape if is_rnn(path) else huggingface.read_shape)(path, dropout=dropout)


def read_labels(path: Path) -> tuple[str, ...] | None:
    """The labels of the classifier there, or of the one that the adapter there makes, in the order of its logits; None
    for a language model."""
    if is_adapter(path):
        return adapter_labels(path)
    return (read_rnn_labels if is_rnn(path) else huggingface.read_labels)(path)
