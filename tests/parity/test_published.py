"""GPT-2's, distilgpt2's and DialoGPT's repositories as they are published, at a small size with random weights: each
opens, and its logits are those that transformers has from the same folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.huggingface import CONV1D, load_model, save_model

SMALL = {"vocab_size": 96, "n_positions": 24, "n_ctx": 24, "n_embd": 32, "n_layer": 2, "n_head": 4}

# What the published config.json hold, but for SMALL.

GPT2: dict[str, Any] = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
}
MEDIUM = GPT2 | {"n_special": 0, "predict_special_tokens": True}
XL = GPT2 | {"output_past": True}
DISTIL = GPT2 | {"_num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
DIALOGPT = GPT2 | {"task_specific_params": {"conversational": {"max_length": 1000}}}
NEWER = GPT2 | {  # as transformers 4 wrote it
    "_name_or_path": "gpt2",
    "gradient_checkpointing": False,
    "n_inner": None,
    "pad_token_id": 50256,
    "reorder_and_upcast_attn": False,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "torch_dtype": "float16",
    "transformers_version": "4.26.1",
    "use_cache": True,
}
OLDEST = {name: value for name, value in GPT2.items() if name != "activation_function"} | {  # as transformers 2 did
    "finetuning_task": None,
    "is_decoder": False,
    "num_labels": 1,
    "output_attentions": False,
    "output_hidden_states": False,
    "pruned_heads": {},
    "torchscript": False,
    "use_bfloat16": False,
}

# What they hold of tensors: names, the causal mask, the head.

State = dict[str, torch.Tensor]


def bare(state: State) -> State:
    """gpt2…gpt2-xl: of GPT2Model, so neither prefix nor head; with the mask."""
    names = {name.removeprefix("transformer."): t for name, t in state.items() if name != "lm_head.weight"}
    return names | {f"h.{n}.attn.bias": torch.ones(24, 24).tril().view(1, 1, 24, 24) for n in range(2)}


def whole(state: State) -> State:
    """distilgpt2: of GPT2LMHeadModel, the head being the embedding's own memory; with the mask."""
    masks = {f"transformer.{name}": t for name, t in bare(state).items() if name.endswith(".attn.bias")}
    return state | {name: t.bool() for name, t in masks.items()}


def halved(state: State) -> State:
    """DialoGPT: float16, each tensor by itself, so the head is stored again; the mask with the -1e4 behind it."""
    behind = {f"transformer.h.{n}.attn.masked_bias": torch.tensor(-1e4) for n in range(2)}
    return {name: t.half() for name, t in (whole(state) | behind).items()}


def headless(state: State) -> State:
    """distilgpt2's safetensors, which cannot store a tensor twice."""
    return {name: t for name, t in whole(state).items() if name != "lm_head.weight"}


# Into what files.


def one_safetensors(state: State, folder: Path) -> None:
    save_file({name: t.contiguous() for name, t in state.items()}, folder / "model.safetensors", {"format": "pt"})


def one_pickle(state: State, folder: Path) -> None:
    torch.save(state, folder / "pytorch_model.bin")


def one_old_pickle(state: State, folder: Path) -> None:
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def three_pickles(state: State, folder: Path) -> None:
    files = [f"pytorch_model-0000{n}-of-00003.bin" for n in (1, 2, 3)]
    weight_map = {name: files[place % 3] for place, name in enumerate(sorted(state))}
    for file in files:
        torch.save({name: t for name, t in state.items() if weight_map[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


Repository = tuple[dict[str, Any], Callable[[State], State], Callable[[State, Path], None]]
PUBLISHED: dict[str, Repository] = {
    "gpt2": (GPT2, bare, one_safetensors),
    "gpt2 in 2019": (OLDEST, bare, one_old_pickle),
    "gpt2-medium": (MEDIUM, bare, one_safetensors),
    "gpt2-large": (MEDIUM, bare, one_old_pickle),
    "gpt2-xl": (XL, bare, one_safetensors),
    "gpt2-xl in shards": (XL, bare, three_pickles),
    "distilgpt2": (DISTIL, headless, one_safetensors),
    "distilgpt2, pickled": (DISTIL, whole, one_pickle),
    "DialoGPT-small": (DIALOGPT, whole, one_old_pickle),
    "DialoGPT-medium": (DIALOGPT, halved, one_old_pickle),
    "DialoGPT-large": (DIALOGPT, halved, one_pickle),
    "one's own, tuned from gpt2": (NEWER, halved, three_pickles),
}


def random_model(**fields: Any) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**SMALL, bos_token_id=0, eos_token_id=0, **fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@torch.no_grad()
def assert_same_logits(model: GPT, theirs: GPT2LMHeadModel) -> None:
    tokens = torch.randint(96, (3, 24), generator=torch.Generator().manual_seed(1))
    expected = theirs.eval()(tokens).logits
    assert expected.abs().max() > 1
    torch.testing.assert_close(model.eval().logits(model(tokens)), expected, atol=1e-5, rtol=0)


def open_with_transformers(folder: Path) -> GPT2LMHeadModel:
    model, loading = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not loading["missing_keys"]
    return model


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_repository(tmp_path: Path, name: str) -> None:
    config, of_state, write = PUBLISHED[name]
    theirs = random_model()
    write(of_state(dict(theirs.state_dict())), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | SMALL))
    opened = open_with_transformers(tmp_path)
    model = load_model(tmp_path)
    assert model.shape == GPTShape(96, 24, 2, 4, 32, dropout=0.1)
    assert_same_logits(model, opened)
    if of_state is not halved:
        assert_same_logits(model, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard", ["50GB", "30KB"])
def test_what_transformers_saves(tmp_path: Path, dtype: torch.dtype, tied: bool, shard: str) -> None:
    random_model(tie_word_embeddings=tied).to(dtype).save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors").exists() == (shard == "50GB")
    model = load_model(tmp_path)
    assert model.wte.weight.dtype == torch.float32
    assert_same_logits(model, open_with_transformers(tmp_path))


def test_the_exact_gelu_both_ways(tmp_path: Path) -> None:
    """Logits and gradients; with GPT-2's own the same weights say something else."""
    theirs = random_model(activation_function="gelu")
    theirs.save_pretrained(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs").eval()
    assert model.shape.activation == "gelu"
    assert_same_logits(model, theirs)
    save_model(model, tmp_path / "ours")
    assert_same_logits(model, open_with_transformers(tmp_path / "ours"))

    tokens, targets = torch.randint(96, (2, 3, 24))
    for logits in (model.logits(model(tokens)), theirs(tokens).logits):
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    gradients = dict(theirs.transformer.named_parameters())
    for name, parameter in model.named_parameters():
        expected = gradients[name].grad.t() if name.endswith(CONV1D) else gradients[name].grad
        torch.testing.assert_close(parameter.grad, expected, atol=1e-5, rtol=0)

    with pytest.raises(AssertionError, match="not close"):
        assert_same_logits(model, open_as_gelu_new(tmp_path / "ours"))


def open_as_gelu_new(folder: Path) -> GPT2LMHeadModel:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"activation_function": "gelu_new"}))
    return open_with_transformers(folder)
