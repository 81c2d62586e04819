"""Checkpoints: whole or not there, whatever happens while they are written."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from gptlab.errors import CheckpointError
from gptlab.model.classifier import as_classifier, labels_of
from gptlab.model.folder import load_model
from gptlab.model.gpt import GPT
from gptlab.model.lora import LoraSettings, add_lora, freeze_body
from gptlab.model.rnn import RNN, RNNShape
from gptlab.run.checkpoint import (
    TrainingState,
    checkpoint_bytes,
    copy_folder,
    drop_optimizer,
    has_state,
    load_state,
    read_manifest,
    remove_folder,
    repair_folders,
    save_checkpoint,
    verify_folder,
    write_folder,
)
from gptlab.text.tokenizer import Tokenizer

StateAt = Callable[[int], TrainingState]
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and resource limits")


@pytest.fixture
def folder(tmp_path: Path, model: GPT, tokenizer: Tokenizer, state_at: StateAt) -> Path:
    save_checkpoint(tmp_path / "000005", model, tokenizer, state_at(5))
    return tmp_path / "000005"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def hidden(parent: Path) -> list[str]:
    return [path.name for path in parent.iterdir() if path.name.startswith(".")]


def test_everything_comes_back(tmp_path: Path, model: GPT, tokenizer: Tokenizer, state_at: StateAt) -> None:
    state = state_at(5)
    state.values.update(loss=math.nan, low=-math.inf, share=0.1)
    save_checkpoint(tmp_path / "c", model, tokenizer, state)
    verify_folder(tmp_path / "c")
    assert torch.equal(load_model(tmp_path / "c").wte.weight, model.wte.weight)
    assert Tokenizer.read(tmp_path / "c").fingerprint == tokenizer.fingerprint

    again = load_state(tmp_path / "c")
    assert again.step == 5
    assert math.isnan(again.values.pop("loss"))
    assert again.values == {"best": math.inf, "seen": 12, "low": -math.inf, "share": 0.1}
    for saved, loaded in ((state.optimizer, again.optimizer), (state.random, again.random)):
        assert saved.keys() == loaded.keys()
        assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    json.loads((tmp_path / "c/state.json").read_text(), parse_constant=pytest.fail)  # NaN is no JSON


def test_transformers_reads_a_checkpoint(folder: Path, model: GPT, tokenizer: Tokenizer) -> None:
    theirs, words = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    text = "the dog sat on a hat"
    ids = tokenizer.encode(text)
    assert words(text)["input_ids"] == ids
    assert theirs.config.eos_token_id == words.eos_token_id == tokenizer.eos_id
    with torch.no_grad():
        ours = model.eval().logits(model(torch.tensor([ids])))
        torch.testing.assert_close(theirs(torch.tensor([ids])).logits, ours, atol=1e-5, rtol=0)


def test_transformers_reads_a_classifier_s_checkpoint(tmp_path: Path, model: GPT, tokenizer: Tokenizer) -> None:
    """A batch too: the checkpoint says what it is padded with."""
    classifier = as_classifier(model, ("no", "yes")).eval()
    save_checkpoint(tmp_path / "c", classifier, tokenizer, None)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "c")
    assert theirs.config.pad_token_id == tokenizer.eos_id
    short, long = (tokenizer.encode(text) for text in ("the dog", "the dog sat on a hat"))
    rows = torch.tensor([short + [tokenizer.eos_id] * (len(long) - len(short)), long])
    last = torch.tensor([len(short), len(long)]) - 1
    with torch.no_grad():
        ours = classifier.classify(classifier(rows)[torch.arange(2), last])
        torch.testing.assert_close(theirs(rows).logits, ours, atol=1e-5, rtol=0)


@pytest.mark.parametrize("labels", [None, ("no", "yes")])
def test_an_rnn_s_checkpoint_comes_back(
    tmp_path: Path, tokenizer: Tokenizer, state_at: StateAt, labels: tuple[str, ...] | None
) -> None:
    model = RNN(RNNShape(tokenizer.vocab_size, context=16, n_layer=1, n_embd=16, n_hidden=16))
    model = model if labels is None else as_classifier(model, labels)
    save_checkpoint(tmp_path / "c", model, tokenizer, state_at(5))
    verify_folder(tmp_path / "c")
    again = load_model(tmp_path / "c")
    assert labels_of(again) == labels
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert load_state(tmp_path / "c").step == 5


def test_room_is_asked_for_what_is_written(model: GPT, tokenizer: Tokenizer) -> None:
    """Of an adapted model what is learned, of one whose head alone is learned everything."""
    rest = 100 * tokenizer.vocab_size + 100_000
    classifier = as_classifier(model, ("no", "yes"))
    whole = sum(parameter.nbytes for parameter in classifier.parameters())
    assert checkpoint_bytes(classifier, None) == whole + rest
    freeze_body(classifier)
    assert checkpoint_bytes(classifier, None) == whole + rest
    add_lora(classifier, LoraSettings(rank=1, targets=("attn.c_attn",)))
    assert checkpoint_bytes(classifier, None) == 4 * (16 + 48 + 2 * 16) + rest


def test_the_predicted_size_is_enough_and_not_far_off(folder: Path, model: GPT, state_at: StateAt) -> None:
    size = sum(len(content) for content in contents(folder).values())
    assert size <= checkpoint_bytes(model, state_at(5)) <= size + 200_000


def test_a_checkpoint_without_state_cannot_be_continued(tmp_path: Path, model: GPT, tokenizer: Tokenizer) -> None:
    save_checkpoint(tmp_path / "c", model, tokenizer, None)
    verify_folder(tmp_path / "c")
    assert not has_state(tmp_path / "c")
    with pytest.raises(CheckpointError, match="keeps no optimizer state, so training cannot continue from it"):
        load_state(tmp_path / "c")


# Damage


def test_a_truncated_file_is_named(folder: Path) -> None:
    whole = (folder / "model.safetensors").stat().st_size
    os.truncate(folder / "model.safetensors", whole - 1)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: has {whole - 1:,} bytes, {whole:,} were written"):
        verify_folder(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "tokenizer.json"])
def test_a_flipped_bit_is_named(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 4
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name}: is not what was written"):
        verify_folder(folder)


def test_any_bit_flipped_in_the_manifest_is_seen_or_harms_nothing(folder: Path) -> None:
    whole = (folder / "manifest.json").read_bytes()
    right = read_manifest(folder)
    seen = 0
    for place in range(0, len(whole), 7):
        content = bytearray(whole)
        content[place] ^= 1 << (place % 8)
        (folder / "manifest.json").write_bytes(content)
        try:
            verify_folder(folder)
            assert read_manifest(folder) == right
        except CheckpointError:
            seen += 1
    assert seen > 0.7 * len(whole) / 7  # the rest is white space


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "manifest.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name}: is missing|has no {name}, so it is no checkpoint"):
        verify_folder(folder)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    for text in ("", "[]", "{}", '{"files": {"a": 1}}', '{"files": 3}', "\xff"):
        (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(CheckpointError, match=r"manifest\.json: is damaged"):
            verify_folder(tmp_path)


# Replacing, removing, copying


def test_writing_again_replaces(folder: Path, model: GPT, tokenizer: Tokenizer, state_at: StateAt) -> None:
    (folder / "stray").write_text("what the old one had")
    save_checkpoint(folder, model, tokenizer, state_at(6))
    verify_folder(folder)
    assert load_state(folder).step == 6
    assert not (folder / "stray").exists()
    assert hidden(folder.parent) == []


def test_a_writer_that_fails_leaves_the_old_one(folder: Path) -> None:
    before = contents(folder)

    def write(temporary: Path) -> None:
        (temporary / "half").write_text("…")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(folder, write)
    assert contents(folder) == before
    assert hidden(folder.parent) == []


def test_what_kills_leave_is_cleared_away(tmp_path: Path) -> None:
    for name in (".000001.writing", ".000002.removing", ".000003.replaced", "000003", ".000004.replaced", ".other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "from").write_text(name)
    repair_folders(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other", "000003", "000004"]
    assert (tmp_path / "000003/from").read_text() == "000003"
    assert (tmp_path / "000004/from").read_text() == ".000004.replaced"  # its replacement never came


def test_dropping_the_optimizer_keeps_a_valid_checkpoint(folder: Path) -> None:
    drop_optimizer(folder)
    verify_folder(folder)
    assert not has_state(folder)
    assert not (folder / "optimizer.safetensors").exists()
    load_model(folder)
    drop_optimizer(folder)
    verify_folder(folder)


@posix
def test_a_kill_while_the_optimizer_is_dropped_leaves_it_valid(folder: Path) -> None:
    def killed_before_the_files_go() -> None:
        Path.unlink = lambda *_, **__: os._exit(9)  # type: ignore[method-assign,assignment]
        drop_optimizer(folder)

    child = multiprocessing.get_context("fork").Process(target=killed_before_the_files_go)
    child.start()
    child.join()
    assert child.exitcode == 9
    assert (folder / "optimizer.safetensors").exists()
    verify_folder(folder)
    assert not has_state(folder)
    drop_optimizer(folder)
    assert not (folder / "optimizer.safetensors").exists()


def test_copies_are_checked_and_quick_when_there(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "mirror" / "000005"
    copy_folder(folder, copy)
    assert contents(copy) == contents(folder)
    written = (copy / "model.safetensors").stat().st_mtime_ns
    drop_optimizer(folder)
    copy_folder(folder, copy)
    assert contents(copy) == contents(folder)
    assert (copy / "model.safetensors").stat().st_mtime_ns == written  # only the optimizer's files went


def test_a_damaged_folder_is_not_copied(folder: Path, tmp_path: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="the copy is not what was to be copied"):
        copy_folder(folder, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_removing_removes(folder: Path) -> None:
    remove_folder(folder)
    remove_folder(folder)
    assert list(folder.parent.iterdir()) == []
