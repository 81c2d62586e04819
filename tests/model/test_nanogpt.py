"""nanoGPT's ckpt.pt, as its train.py writes it, becomes the model that transformers has from the same weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gptlab.errors import ModelError
from gptlab.model.huggingface import CONV1D, load_model, read_shape, save_model
from gptlab.model.nanogpt import is_nanogpt

ARGUMENTS = {
    "n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 24, "bias": True, "vocab_size": 64, "dropout": 0.2,
}  # fmt: skip


def reference(activation: str = "gelu", *, bias: bool = True) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=64, n_positions=24, n_layer=2, n_head=4, n_embd=32, activation_function=activation,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
            if name.endswith(".bias") and not bias:
                parameter.zero_()
    return model


def stored_state(model: GPT2LMHeadModel, *, bias: bool = True, prefix: str = "") -> dict[str, torch.Tensor]:
    """As nanoGPT keeps it: linear weights (out, in), the head once more by its own name, and perhaps no biases."""
    return {
        prefix + name: tensor.t().contiguous() if name.endswith(CONV1D) else tensor
        for name, tensor in model.state_dict().items()
        if bias or not name.endswith(".bias")
    }


def write_checkpoint(file: Path, state: dict[str, torch.Tensor], arguments: dict[str, Any]) -> None:
    """With everything that train.py puts beside the weights."""
    torch.save(
        {
            "model": state,
            "optimizer": {
                "state": {n: {"step": torch.tensor(9.0), "exp_avg": t} for n, t in enumerate(state.values())},
                "param_groups": [{"lr": 6e-4, "betas": (0.9, 0.95), "fused": None, "params": [0, 1, 2]}],
            },
            "model_args": arguments,
            "iter_num": 2000,
            "best_val_loss": torch.tensor(1.47),
            "config": {"out_dir": "out", "learning_rate": 6e-4, "compile": True, "device": "cuda"},
        },
        file,
    )


@torch.no_grad()
def assert_same_logits(path: Path, theirs: GPT2LMHeadModel) -> None:
    tokens = torch.randint(64, (3, 24))
    model, expected = load_model(path).eval(), theirs(tokens).logits
    assert expected.abs().max() > 1
    torch.testing.assert_close(model.logits(model(tokens)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
@pytest.mark.parametrize("bias", [True, False])
def test_logits_are_those_of_transformers(tmp_path: Path, bias: bool, prefix: str) -> None:
    theirs = reference(bias=bias)
    write_checkpoint(tmp_path / "ckpt.pt", stored_state(theirs, bias=bias, prefix=prefix), ARGUMENTS | {"bias": bias})
    for path in (tmp_path, tmp_path / "ckpt.pt"):
        assert_same_logits(path, theirs)
    model = load_model(tmp_path)
    assert model.head_weight is model.wte.weight
    assert (model.shape.activation, model.shape.dropout, model.shape.context) == ("gelu", 0.2, 24)
    assert read_shape(tmp_path) == model.shape


def test_before_it_had_biases_to_choose_its_gelu_was_gpt2s(tmp_path: Path) -> None:
    """Such a file has no "bias", and the causal mask among its weights."""
    theirs = reference("gelu_new")
    masks = {f"transformer.h.{n}.attn.bias": torch.ones(24, 24).tril().view(1, 1, 24, 24) for n in range(2)}
    arguments = {name: value for name, value in ARGUMENTS.items() if name != "bias"}
    write_checkpoint(tmp_path / "ckpt.pt", stored_state(theirs) | masks, arguments)
    assert_same_logits(tmp_path, theirs)


def test_it_is_shortened_extended_and_saved_as_others_are(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "ckpt.pt", stored_state(reference()), ARGUMENTS)
    model = load_model(tmp_path, context=9, vocab_size=70, dropout=0.5)
    assert (model.shape.context, model.shape.vocab_size, model.shape.dropout) == (9, 70, 0.5)
    assert torch.equal(model.wte.weight[66], model.wte.weight[:64].double().mean(0).float())
    save_model(model, tmp_path / "saved")
    again = load_model(tmp_path / "saved")
    assert again.shape == model.shape
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_what_is_nanogpts(tmp_path: Path) -> None:
    file = tmp_path / "ckpt.pt"
    assert not is_nanogpt(tmp_path)
    assert not is_nanogpt(file)
    file.touch()
    assert is_nanogpt(tmp_path)
    assert is_nanogpt(file.rename(tmp_path / "other.pt"))
    assert not is_nanogpt(tmp_path)
    file.touch()
    (tmp_path / "config.json").touch()
    assert not is_nanogpt(tmp_path)
    assert not is_nanogpt(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ([1], r'is no checkpoint of nanoGPT: that is a dict with "model" and "model_args"'),
        ({"model": {}}, r'is no checkpoint of nanoGPT: that is a dict with "model" and "model_args"'),
        ({"model": {}, "model_args": {"block_size": 4}}, r"model_args: vocab_size = None: a whole number is wanted"),
        ({"model": {}, "model_args": ARGUMENTS | {"n_head": 5}}, r"model_args: n_embd = 32 is not divisible"),
        ({"model": {}, "model_args": ARGUMENTS}, r"the weights do not fit its model_args: missing h\.0\.attn"),
        ({"model": {"wte": 3}, "model_args": ARGUMENTS}, r"model: wte is int, wanted a state dict"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, checkpoint: Any, message: str) -> None:
    torch.save(checkpoint, tmp_path / "ckpt.pt")
    with pytest.raises(ModelError, match=rf"ckpt\.pt: {message}"):
        load_model(tmp_path)


class Evil:
    """Unpickled, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_code_beside_the_weights_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"model": {}, "model_args": ARGUMENTS, "optimizer": Evil(tmp_path / "ran")}, tmp_path / "ckpt.pt")
    with pytest.raises(ModelError, match=r"ckpt\.pt: is refused: it is a pickle that asks for posix\.mkdir"):
        load_model(tmp_path)
    assert not (tmp_path / "ran").exists()
