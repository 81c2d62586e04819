"""Files of weights, read a tensor at a time, and a model that is filled from them; its tables and layers changed.

.safetensors files are mapped into memory, and so is what torch.save has written since torch 1.6, a zip archive. Older
pickles (GPT-2's and DialoGPT's first ones) are read whole and freed tensor by tensor. Pickles are read with torch's
`weights_only`: what a file asks to run beyond making tensors is refused, and never run.
"""

from __future__ import annotations

import copy
import json
import mmap
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.types import Storage

from gptlab.errors import ModelError
from gptlab.model.classifier import is_classifier, new_model
from gptlab.model.gpt import GPT, Block, GPTShape
from gptlab.model.meta import without_memory
from gptlab.model.rnn import RNN, RNNShape

MASK_BUFFERS = (".attn.bias", ".attn.masked_bias")
"""The causal mask, which old files hold among the weights."""

FEW_ROWS = 1024
"""Of a table of embeddings, where a copy of all its rows would be too large."""


S = TypeVar("S", GPTShape, RNNShape)


@dataclass(frozen=True)
class Stored(Generic[S]):
    """A model as it lies on disk.

    path:       where
    settings:   what there gives its shape, for messages
    shape:      of all that is stored
    tensors:    by the file's names, with or without "transformer."; read when asked for, once
    layout:     turns the tensor of a name from the file's layout into the model's, and back
    labels:     of a classifier, in the order of their ids; None for a language model
    """

    path: Path
    settings: str
    shape: S
    tensors: Iterator[tuple[str, Tensor]]
    layout: Callable[[str, Tensor], Tensor]
    labels: tuple[str, ...] | None = None


def load_stored(stored: Stored, shape: GPTShape | RNNShape, device: torch.device | str) -> GPT | RNN:
    """The stored model on `device` with this shape, which may have fewer positions and more tokens: the new rows begin
    at the mean of the others. It is made without storage and filled tensor by tensor, so its weights are in memory
    once. Errors as `fill`."""
    with without_memory():
        model = new_model(shape, stored.labels)
    model.to_empty(device=device)
    if tied(model):
        model.lm_head.weight = model.wte.weight  # to_empty gives each its own storage
    fill(model, stored)
    for table in token_tables(model).values():
        start_at_mean(table.weight, stored.shape.vocab_size)
    return model


@torch.no_grad()
def fill(model: GPT | RNN, stored: Stored) -> None:
    """Copies the stored tensors into the model's parameters, whatever their floating-point type.

    Where the model has fewer positions or more tokens, the rows that both have. ModelError names everything that is
    missing, unexpected or wrongly shaped.
    """
    with without_memory():
        expected = dict(new_model(stored.shape, stored.labels).named_parameters())
    parameters = dict(model.named_parameters())
    missing, wrong = set(expected), []
    tied_head = None
    for stored_name, tensor in stored.tensors:
        name = stored_name.removeprefix("transformer.")
        if name.endswith(MASK_BUFFERS):
            continue
        if name == "lm_head.weight" and tied(model):
            tied_head = tensor
            continue
        missing.discard(name)
        if name not in expected:
            wrong.append(f"unexpected {stored_name}")
            continue
        wanted = stored.layout(name, expected[name])
        if tensor.shape != wanted.shape or not tensor.is_floating_point():
            wrong.append(f"{stored_name} is {_kind(tensor)}, wanted {_kind(wanted)}")
        else:
            _copy_rows(stored.layout(name, tensor), parameters[name])
    complete = not missing and not wrong
    if complete and tied_head is not None and not _same(tied_head, model.wte.weight[: stored.shape.vocab_size]):
        wrong.append(f"lm_head.weight is not wte.weight, though {stored.settings} ties them (tie_word_embeddings)")
    wrong = [f"missing {name}" for name in sorted(missing)] + wrong
    if wrong:
        more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise ModelError(f"{stored.path}: the weights do not fit {stored.settings}: {'; '.join(wrong[:8])}{more}")


@torch.no_grad()
def start_at_mean(table: Tensor, old_rows: int) -> None:
    """Sets the rows of (rows, n_embd) from `old_rows` on to the mean of those before, so that a new token begins as an
    average one: a random row can have the largest logit of all (Hewitt, "Initializing New Word Embeddings", 2021)."""
    if old_rows < len(table):
        # In float64 and on the CPU: a GPU of Apple's has none. A few rows at a time: sum would convert a copy of all.
        sums = [rows.cpu().sum(0, dtype=torch.float64) for rows in table[:old_rows].split(FEW_ROWS)]
        table[old_rows:] = (torch.stack(sums).sum(0) / old_rows).to(table.dtype)


@torch.no_grad()
def extend_vocabulary(model: GPT | RNN, vocab_size: int, known: int | None = None) -> None:
    """Gives the model rows for ids up to `vocab_size`, if it has fewer, and sets those from `known` (by default what it
    has) to the mean of the rows before: published tables are often longer than their tokenizer."""
    known = model.shape.vocab_size if known is None else known
    for table in token_tables(model).values():
        weight = table.weight
        if vocab_size > len(weight):
            grown = weight.new_empty(vocab_size, weight.shape[1])
            grown[: len(weight)] = weight
            table.weight = nn.Parameter(grown)
        start_at_mean(table.weight.data, known)
    rows = len(model.wte.weight)
    model.wte.num_embeddings = rows
    if not is_classifier(model):
        model.lm_head.out_features = rows
    if tied(model):
        model.lm_head.weight = model.wte.weight
    model.shape = replace(model.shape, vocab_size=rows)


def token_tables(model: GPT | RNN) -> dict[str, nn.Embedding | nn.Linear]:
    """The modules with a row of their own for each token, by name: wte, and an lm_head that is not tied to it."""
    return {"wte": model.wte} if tied(model) or is_classifier(model) else {"wte": model.wte, "lm_head": model.lm_head}


def tied(model: GPT | RNN) -> bool:
    """Whether the model has an output layer over the vocabulary whose weights are the embedding's."""
    return model.shape.tie_head and not is_classifier(model)


def keep_layers(model: GPT, layers: Sequence[int]) -> GPT:
    """A copy of the model with these of its layers alone, numbered from 0 in ascending order, as DistilGPT2 begins from
    GPT-2. ModelError where it has not these layers.

    Sanh et al., "DistilBERT, a distilled version of BERT" (2019), section 3, by which one layer out of two is kept.
    """
    n_layer = model.shape.n_layer
    if not layers or list(layers) != sorted(set(layers).intersection(range(n_layer))):
        raise ModelError(
            f"layers {list(layers)}: the model has {n_layer} layers; wanted are some of 0 to {n_layer - 1}, ascending"
        )
    dropped = [block for number, block in enumerate(model.h) if number not in layers]
    shallow = copy.deepcopy(model, {id(block): block for block in dropped})  # which are not copied
    shallow.h = nn.ModuleList(shallow.h[layer] for layer in layers)
    for number, block in enumerate(shallow.h):
        assert isinstance(block, Block)
        block.attn.layer = number  # its place in a cache
    shallow.shape = replace(model.shape, n_layer=len(layers))
    return shallow


def every_second(n_layer: int) -> tuple[int, ...]:
    """0, 2, 4, …: the layers that "every-second" keeps of so many."""
    return tuple(range(0, n_layer, 2))


def _copy_rows(source: Tensor, target: Tensor) -> None:
    rows = min(len(source), len(target))
    target[:rows].copy_(source[:rows])


def _same(one: Tensor, table: Tensor) -> bool:
    """Whether the one, in the table's precision and place, is the table."""
    pairs = zip(one.split(FEW_ROWS), table.split(FEW_ROWS), strict=False)
    return one.shape == table.shape and all(torch.equal(rows.to(same), same) for rows, same in pairs)


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def read_folder(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of model.safetensors or pytorch_model.bin, whole or in shards, by name, on the CPU.

    ModelError names the file that is missing, damaged, or a pickle with code in it.
    """
    for file in _weight_files(folder):
        if not file.is_file():
            raise ModelError(f"{file}: is missing, though the index of its shards names it")
        yield from _read_safetensors(file) if file.suffix == ".safetensors" else drain(read_pickle(file), str(file))


def read_pickle(file: Path) -> Any:
    """What torch.save put into a file, its tensors on the CPU, mapped where torch can.

    ModelError where it is damaged, and where it asks to run anything: that is not run.
    """
    mapped = zipfile.is_zipfile(file)
    try:
        return torch.load(file, "cpu" if mapped else _in_own_pages, weights_only=True, mmap=mapped)
    except Exception as error:  # of a damaged pickle any operation can fail, in any way
        if asked := re.search(r"GLOBAL (\S+)", str(error)):
            raise ModelError(
                f"{file}: is refused: it is a pickle that asks for {asked[1]}, and weights need no code; nothing of it "
                "was run. Look for the same model as .safetensors"
            ) from None
        raise _unreadable(file, error) from error


def _in_own_pages(storage: Storage, location: str) -> Any:
    """Memory for a large tensor that the system has back when it is freed; malloc would keep it."""
    if storage.nbytes() < 2**20:
        return storage
    return torch.frombuffer(mmap.mmap(-1, storage.nbytes()), dtype=torch.uint8).untyped_storage()


def drain(tree: Any, where: str) -> Iterator[tuple[str, Tensor]]:
    """Takes the tensors out of a state dict one by one, so that what was copied can be freed.

    ModelError, naming `where`, if it is none.
    """
    if not isinstance(tree, dict):
        raise ModelError(f"{where}: is {type(tree).__name__}, wanted a state dict (names → tensors)")
    while tree:
        name, tensor = tree.popitem()
        if not isinstance(tensor, Tensor):
            raise ModelError(f"{where}: {name} is {type(tensor).__name__}, wanted a state dict (names → tensors)")
        yield str(name), tensor


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file of a model's folder; ModelError where there is none."""
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror}); a model folder has a config.json") from error
    except ValueError as error:
        raise ModelError(f"{file}: is not JSON: {error}") from error
    if not isinstance(tree, dict):
        raise ModelError(f"{file}: is not a JSON object")
    return tree


def _read_safetensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(file, framework="pt", device="cpu") as stored:
            for name in stored.keys():  # noqa: SIM118 (it is no mapping)
                yield name, stored.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> ModelError:
    # Of torch's words only the first sentence: then it recommends to switch `weights_only` off.
    reason = re.split(r"\.\s", str(error))[0] or type(error).__name__
    return ModelError(f"{file}: cannot be read, it is damaged or no file of weights: {reason}")


def _weight_files(folder: Path) -> list[Path]:
    names = ("model.safetensors", "pytorch_model.bin")
    for name in names:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict):
                raise ModelError(f"{index}: has no weight_map (names → files)")
            return [folder / part for part in sorted(set(weight_map.values()))]
    raise ModelError(f"{folder}: has no weights: wanted {' or '.join(names)} (or the index of its shards)")
