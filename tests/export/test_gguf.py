"""The GGUF file, read by gguf's reader and by llama.cpp itself (xllamacpp), which writes the same text from it."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader

from gptlab.errors import GptlabError, ModelError
from gptlab.export.export import export_model
from gptlab.export.gguf import gguf_fields, verify_gguf, write_gguf
from gptlab.generation.engine import generate
from gptlab.generation.sampling import Sampling
from gptlab.model.huggingface import load_model
from gptlab.run.open import OpenModel, open_model
from gptlab.text.dialogue import Message
from gptlab.text.tokenizer import Tokenizer

PROMPT = "Once upon a time there was a mill"
KINDS = [{"tie_head": True}, {"tie_head": False, "padding": 5}, {"template": "chatml"}]


class LlamaCpp:
    """llama.cpp with a file; keys and values in float32."""

    def __init__(self, file: Path) -> None:
        import xllamacpp

        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(file)
        parameters.n_ctx, parameters.n_parallel = 64, 1
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
        parameters.warmup, parameters.fit_params, parameters.verbosity = False, False, -1
        parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        self.server = xllamacpp.Server(parameters)

    def write(self, prompt: str, count: int) -> str:
        return self.server.handle_completions({"prompt": prompt, **self._greedy(count)})["choices"][0]["text"]

    def answer(self, question: str, count: int) -> str:
        asked = {"messages": [{"role": "user", "content": question}], **self._greedy(count)}
        return self.server.handle_chat_completions(asked)["choices"][0]["message"]["content"]

    def _greedy(self, count: int) -> dict[str, Any]:
        return {"temperature": 0, "top_k": 1, "max_tokens": count}


def greedy(opened: OpenModel, prompt: list[int], count: int) -> str:
    tokenizer = opened.require_tokenizer()
    end = opened.template.end_id(tokenizer) if opened.template else tokenizer.eos_id
    (text,) = generate(opened.model, [prompt], Sampling(greedy=True), max_new_tokens=count, eos_id=end)
    assert len(text.ids) > 10
    return tokenizer.decode(text.ids)


@pytest.mark.parametrize("kind", KINDS[:2], ids=str)
def test_llama_cpp_writes_the_same_text(make_model: Callable[..., Path], kind: dict[str, Any]) -> None:
    model = make_model(taught=True, **kind)
    done = export_model(model, "out", format="gguf")
    assert done.files == ("README.md", "model.gguf")
    opened, llama_cpp = open_model(model, device="cpu"), LlamaCpp(done.folder / "model.gguf")
    for prompt in (PROMPT, "é: 東京, she\n\tsaid"):
        assert llama_cpp.write(prompt, 20) == greedy(opened, opened.require_tokenizer().encode(prompt), 20)


def test_llama_cpp_answers_by_the_template_in_the_file(make_model: Callable[..., Path]) -> None:
    model = make_model(taught=True, template="chatml")
    done = export_model(model, "out", format="gguf")
    opened = open_model(model, device="cpu")
    assert opened.template is not None
    asked = opened.template.prompt_ids([Message("user", "Hello")], opened.require_tokenizer())
    assert LlamaCpp(done.folder / "model.gguf").answer("Hello", 30) == greedy(opened, asked, 30)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_file_says_what_the_model_is(make_model: Callable[..., Path], kind: dict[str, Any]) -> None:
    model = make_model(**kind, layer_norm_epsilon=3e-5)
    reader = GGUFReader(export_model(model, "out", format="gguf").folder / "model.gguf")
    opened = open_model(model, device="cpu")
    tokenizer, shape = opened.require_tokenizer(), opened.model.shape
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "gpt2"
    assert fields["general.name"] == "plain"
    assert [fields[f"gpt2.{name}"] for name in ("context_length", "embedding_length", "feed_forward_length")] == [
        64, 32, 128
    ]  # fmt: skip
    assert [fields[f"gpt2.{name}"] for name in ("block_count", "attention.head_count")] == [2, 2]
    assert fields["gpt2.attention.layer_norm_epsilon"] == pytest.approx(3e-5)
    assert fields["tokenizer.ggml.bos_token_id"] == tokenizer.eos_id
    tokens = fields["tokenizer.ggml.tokens"]
    assert len(tokens) == len(fields["tokenizer.ggml.token_type"]) == shape.vocab_size
    for special, number in tokenizer.special_tokens.items():
        assert (tokens[number], fields["tokenizer.ggml.token_type"][number]) == (special, 3)
    end = opened.template.end if opened.template else tokenizer.eos
    assert fields["tokenizer.ggml.eos_token_id"] == tokenizer.special_tokens[end]
    assert fields.get("tokenizer.chat_template") == (opened.template and opened.template.source)
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    assert ("output.weight" in tensors) != shape.tie_head
    block = opened.model.h[1]
    np.testing.assert_array_equal(tensors["blk.1.attn_qkv.weight"], block.attn.c_attn.weight.detach().numpy())
    np.testing.assert_array_equal(tensors["blk.1.ffn_down.bias"], block.mlp.c_proj.bias.detach().numpy())
    np.testing.assert_array_equal(tensors["position_embd.weight"], opened.model.wpe.weight.detach().numpy())


def test_an_adapter_is_merged_into_the_file(make_adapter: Callable[..., Path]) -> None:
    adapter = make_adapter(scale=0.01, taught=True)
    done = export_model(adapter, "out", format="gguf")
    assert done.checks[0].startswith("merged into its base: ")
    opened = open_model(adapter, device="cpu")
    wanted = greedy(opened, opened.require_tokenizer().encode(PROMPT), 20)
    assert LlamaCpp(done.folder / "model.gguf").write(PROMPT, 20) == wanted


def test_it_is_said_what_read_the_file(make_model: Callable[..., Path]) -> None:
    by_gguf, by_llama_cpp = export_model(make_model(), "out", format="gguf").checks
    assert by_gguf == "read by gguf: all 28 tensors and 16 fields are equal"
    installed = "read by llama.cpp: logits differ by at most "
    missing = "llama-cpp-python is not installed here: not read by llama.cpp"
    assert by_llama_cpp.startswith(installed if find_spec("llama_cpp") else missing)


def test_what_llama_cpp_cannot_do_is_refused(make_model: Callable[..., Path]) -> None:
    model = make_model(activation="gelu")
    with pytest.raises(ModelError, match=r"activation = 'gelu': llama\.cpp's GPT-2 can only do 'gelu_new'"):
        export_model(model, "out", format="gguf")
    bytes_alone = Tokenizer.train(["abc"], 257)
    plain = load_model(make_model())
    with pytest.raises(ModelError, match="bytes and no merges"):
        gguf_fields(plain, bytes_alone, None, name="x")
    assert not Path("out").exists()


def test_a_file_that_is_not_what_was_written_is_noticed(make_model: Callable[..., Path], tokenizer: Tokenizer) -> None:
    model = load_model(make_model())
    fields = gguf_fields(model, tokenizer, None, name="x")
    write_gguf(Path("model.gguf"), model, fields)
    assert "28 tensors" in verify_gguf(Path("model.gguf"), model, fields)
    with pytest.raises(GptlabError, match=r"general\.name reads as 'x'; 'y' was written"):
        verify_gguf(Path("model.gguf"), model, {**fields, "general.name": "y"})
    with torch.no_grad():
        model.h[0].ln_2.bias[3] += 1
    with pytest.raises(GptlabError, match=r"the tensor blk\.0\.ffn_norm\.bias is not what was written"):
        verify_gguf(Path("model.gguf"), model, fields)
