"""Files of weights: a pickle's code is never run, damage is said in the lab's words, and what is copied is freed."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gptlab.errors import ModelError
from gptlab.model.cache import KeyValueCache
from gptlab.model.classifier import GPTClassifier
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.weights import (
    drain,
    every_second,
    extend_vocabulary,
    keep_layers,
    read_folder,
    read_pickle,
    start_at_mean,
)


class Evil:
    """Unpickled, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def as_tar(file: Path, evil: Evil) -> None:
    """The form of before torch 0.1.10, which torch still knows."""
    with tarfile.open(file, "w") as archive:
        for name in ("pickle", "storages", "tensors"):
            member = tarfile.TarInfo(name)
            member.size = len(pickle.dumps(evil, 2))
            archive.addfile(member, io.BytesIO(pickle.dumps(evil, 2)))


MALICIOUS: dict[str, Callable[[Path, Evil], object]] = {
    "state dict": lambda file, evil: torch.save({"wte.weight": torch.zeros(3), "h": evil}, file),
    "old state dict": lambda file, evil: torch.save({"h": evil}, file, _use_new_zipfile_serialization=False),
    "bare pickle": lambda file, evil: file.write_bytes(pickle.dumps(evil, 2)),
    "bare text pickle": lambda file, evil: file.write_bytes(pickle.dumps(evil, 0)),
    "tar": as_tar,
}


@pytest.mark.parametrize("form", MALICIOUS)
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, form: str) -> None:
    file, ran = tmp_path / "pytorch_model.bin", tmp_path / "ran"
    MALICIOUS[form](file, Evil(ran))
    with pytest.raises(ModelError, match=r"pytorch_model\.bin: ") as caught:
        dict(read_folder(tmp_path))
    assert not ran.exists()
    message = str(caught.value)
    assert "Re-running" not in message  # torch's advice, to run it
    if form != "tar":
        assert "is refused: it is a pickle that asks for posix.system, and weights need no code" in message
    if form == "bare pickle":  # the file is no harmless one by accident
        pickle.loads(file.read_bytes())
        assert ran.exists()


def test_a_whole_module_is_refused_by_name(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"asks for torch\.nn\.modules\.linear\.Linear"):
        dict(read_folder(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(2)], r"pytorch_model\.bin: is list, wanted a state dict"),
        ({"state_dict": {"wte.weight": torch.zeros(2)}}, r"state_dict is dict, wanted a state dict"),
    ],
)
def test_what_is_no_state_dict_is_named(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=message):
        dict(read_folder(tmp_path))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_pickle_is_an_error_of_ours(tmp_path: Path, zipped: bool) -> None:
    """Cut anywhere, or with bytes changed: read, or a ModelError; nothing else comes out."""
    file = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.arange(20.0), "b": torch.zeros(3, 4)}, file, _use_new_zipfile_serialization=zipped)
    whole, rng = file.read_bytes(), random.Random(0)
    refusals = []
    for _ in range(60):
        broken = bytearray(whole[: rng.randrange(len(whole))] if rng.random() < 0.5 else whole)
        for _ in range(rng.randrange(4)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        file.write_bytes(broken)
        try:
            dict(read_folder(tmp_path))
        except ModelError as error:
            refusals.append(str(error))
    assert len(refusals) > 20
    assert not any("Re-running" in message for message in refusals)


def test_new_pickles_are_mapped_and_old_ones_freed_as_they_are_taken(tmp_path: Path) -> None:
    tensors = {name: torch.randn(4) for name in "abc"}
    torch.save(tensors, tmp_path / "new.bin")
    torch.save(tensors, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    assert zipfile.is_zipfile(tmp_path / "new.bin")
    assert not zipfile.is_zipfile(tmp_path / "old.bin")
    for file in ("new.bin", "old.bin"):
        state = read_pickle(tmp_path / file)
        taken = {}
        for left, (name, tensor) in enumerate(drain(state, "x")):
            taken[name] = tensor
            assert len(state) == 2 - left
        assert all(torch.equal(tensor, taken[name]) for name, tensor in tensors.items())


def test_an_index_without_a_map_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}}))
    with pytest.raises(ModelError, match=r"index\.json: has no weight_map"):
        dict(read_folder(tmp_path))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_new_rows_are_the_mean_of_the_old(dtype: torch.dtype) -> None:
    """Of more rows than are added at a time; old rows stay as they are."""
    torch.manual_seed(0)
    table = (torch.randn(3000, 8) + 5).to(dtype)
    before = table.clone()
    start_at_mean(table, 2997)
    assert torch.equal(table[:2997], before[:2997])
    assert torch.equal(table[2997:], before[:2997].double().mean(0).to(dtype).expand(3, 8))
    again = table.clone()
    start_at_mean(table, 3000)
    assert torch.equal(table, again)


DEEP = GPTShape(vocab_size=61, context=16, n_layer=5, n_head=2, n_embd=16)


@torch.no_grad()
@pytest.mark.parametrize("tie_head", [True, False])
def test_a_shallower_model_has_copies_of_the_layers_that_are_kept(tie_head: bool) -> None:
    torch.manual_seed(0)
    deep = GPT(dataclasses.replace(DEEP, tie_head=tie_head)).double()
    shallow = keep_layers(deep, [1, 4])
    assert shallow.shape == dataclasses.replace(deep.shape, n_layer=2)
    assert (shallow.head_weight is shallow.wte.weight) == tie_head
    wanted = GPT(shallow.shape).double()
    assert wanted.state_dict().keys() == shallow.state_dict().keys()
    wanted.load_state_dict({
        name.replace("h.4.", "h.1.") if "h.4." in name else name.replace("h.1.", "h.0."): tensor
        for name, tensor in deep.state_dict().items()
        if not name.startswith(("h.0.", "h.2.", "h.3."))
    })  # fmt: skip
    tokens = torch.arange(32).reshape(2, 16)
    assert torch.equal(shallow.logits(shallow(tokens)), wanted.logits(wanted(tokens)))
    cache = KeyValueCache(shallow.shape, 2, device=torch.device("cpu"), dtype=torch.float64)  # has room for two layers
    torch.testing.assert_close(shallow(tokens, cache), wanted(tokens))
    before = deep.wte.weight.clone()
    for parameter in shallow.parameters():
        parameter.add_(1)
    assert torch.equal(deep.wte.weight, before)
    assert deep.shape.n_layer == len(deep.h) == 5
    assert [block.attn.layer for block in deep.h] == [0, 1, 2, 3, 4]


def test_a_classifier_keeps_its_head() -> None:
    torch.manual_seed(0)
    deep = GPTClassifier(DEEP, ("a", "b"))
    shallow = keep_layers(deep, every_second(5))
    assert isinstance(shallow, GPTClassifier)
    assert shallow.labels == ("a", "b")
    assert torch.equal(shallow.score.weight, deep.score.weight)
    assert len(shallow.h) == 3


@pytest.mark.parametrize("layers", [(), (5,), (-1, 2), (2, 1), (1, 1)])
def test_layers_that_there_are_not_are_named(layers: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"layers \[.*\]: the model has 5 layers; wanted are some of 0 to 4, asc"):
        keep_layers(GPT(DEEP), layers)


def test_every_second_layer_is_one_of_two() -> None:
    assert every_second(12) == (0, 2, 4, 6, 8, 10)
    assert every_second(1) == (0,)


@torch.no_grad()
@pytest.mark.parametrize("tie_head", [True, False])
def test_the_vocabulary_of_a_classifier_is_extended_too(tie_head: bool) -> None:
    torch.manual_seed(0)
    model = GPTClassifier(dataclasses.replace(DEEP, tie_head=tie_head), ("a", "b")).eval()
    before, hidden = model.wte.weight.clone(), model(torch.arange(16)[None])
    extend_vocabulary(model, 64)
    assert model.shape.vocab_size == model.wte.num_embeddings == 64
    torch.testing.assert_close(model.wte.weight, torch.cat([before, before.mean(0).expand(3, 16)]))
    assert torch.equal(model(torch.arange(16)[None]), hidden)
