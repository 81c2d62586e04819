"""GGUF, the one file that llama.cpp reads: weights, tokenizer and chat template, as its architecture "gpt2" has them.

Weights are float32, so the file holds what the model is; llama.cpp's own llama-quantize makes it smaller. Matrices are
(out, in), as here; a tied head is left out, and llama.cpp then takes the token embedding. Keys and tensor names:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, and the gguf package's table for this architecture.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from gptlab.errors import GptlabError, ModelError, UserError
from gptlab.model.gpt import GPT
from gptlab.text.dialogue import Template
from gptlab.text.tokenizer import Tokenizer
from gptlab.text.vocabulary import Vocabulary, read_vocabulary

GGUF_FILE = "model.gguf"

ARCHITECTURE = "gpt2"
NORMAL, CONTROL, UNUSED = 1, 3, 5
"""What kind of token each is, in llama.cpp's numbers."""

Fields = Mapping[str, Any]
"""What the file says besides the tensors: key → value."""


def require_gguf() -> None:
    """UserError where the gguf package is missing."""
    if find_spec("gguf") is None:
        raise UserError("a GGUF file is written and read again by: pip install 'gptlab[gguf]'")


def gguf_fields(model: GPT, tokenizer: Tokenizer, template: Template | None, *, name: str) -> Fields:
    """The fields of this model's file, in their order; `name` is what it is called there.

    ModelError where llama.cpp's GPT-2 could not be this model.
    """
    shape, vocabulary = model.shape, _vocabulary(tokenizer)
    if shape.activation != "gelu_new":
        raise ModelError(
            f"activation = {shape.activation!r}: llama.cpp's GPT-2 can only do 'gelu_new'; export it as huggingface"
        )
    if not vocabulary.merges:
        raise ModelError(
            "the tokenizer has bytes and no merges, which llama.cpp does not read; export it as huggingface"
        )
    tokens, kinds = _tokens(vocabulary, shape.vocab_size)
    return {
        "general.name": name,
        "general.file_type": 0,  # all weights are float32
        f"{ARCHITECTURE}.context_length": shape.context,
        f"{ARCHITECTURE}.embedding_length": shape.n_embd,
        f"{ARCHITECTURE}.feed_forward_length": 4 * shape.n_embd,
        f"{ARCHITECTURE}.block_count": shape.n_layer,
        f"{ARCHITECTURE}.attention.head_count": shape.n_head,
        f"{ARCHITECTURE}.attention.layer_norm_epsilon": float(np.float32(shape.layer_norm_epsilon)),
        "tokenizer.ggml.model": "gpt2",  # byte-level BPE
        "tokenizer.ggml.pre": "gpt-2",  # and how GPT-2 splits text before it
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in vocabulary.merges],
        "tokenizer.ggml.bos_token_id": tokenizer.eos_id,
        "tokenizer.ggml.eos_token_id": template.end_id(tokenizer) if template else tokenizer.eos_id,
        "tokenizer.ggml.add_bos_token": False,
        **({"tokenizer.chat_template": template.source} if template else {}),
    }


def write_gguf(file: Path, model: GPT, fields: Fields) -> None:
    """Writes the model as one file. OSError where the disk does not take it."""
    from gguf import GGUFValueType, GGUFWriter

    writer = GGUFWriter(file, ARCHITECTURE)
    for key, value in fields.items():
        kind = GGUFValueType.get_type(value)  # llama.cpp wants sizes and ids unsigned
        writer.add_key_value(key, value, GGUFValueType.UINT32 if kind is GGUFValueType.INT32 else kind)
    for name, values in _tensors(model):
        writer.add_tensor(name, values)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def verify_gguf(file: Path, model: GPT, fields: Fields) -> str:
    """Reads the file with gguf's own reader and says what was compared; GptlabError names what differs."""
    from gguf import GGUFReader

    reader = GGUFReader(file)
    for key, value in fields.items():
        field = reader.get_field(key)
        if (found := field and field.contents()) != value:
            raise GptlabError(f"{file}: {key} reads as {found!r:.80}; {value!r:.80} was written")
    found, wanted = {tensor.name: tensor.data for tensor in reader.tensors}, dict(_tensors(model))
    for name in sorted(found.keys() | wanted.keys()):
        if name not in found or name not in wanted or not np.array_equal(found[name], wanted[name]):
            raise GptlabError(f"{file}: the tensor {name} is not what was written")
    return f"read by gguf: all {len(wanted)} tensors and {len(fields)} fields are equal"


def _tokens(vocabulary: Vocabulary, vocab_size: int) -> tuple[list[str], list[int]]:
    """The text and the kind of each id; an id that no token has, as in a padded vocabulary, is unused."""
    known = {number: (token, NORMAL) for token, number in vocabulary.tokens.items()}
    known |= {number: (token, CONTROL) for token, number in vocabulary.special_tokens.items()}
    pairs = [known.get(number, (f"[PAD{number}]", UNUSED)) for number in range(vocab_size)]
    return [token for token, _ in pairs], [kind for _, kind in pairs]


def _tensors(model: GPT) -> Iterator[tuple[str, np.ndarray]]:
    """llama.cpp's name and the values of each parameter, a tied head once; nothing is copied."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    names = get_tensor_name_map(MODEL_ARCH.GPT2, model.shape.n_layer)
    for ours, parameter in model.named_parameters():
        stored = ours if ours.startswith("lm_head.") else f"transformer.{ours}"
        name = names.get_name(stored, try_suffixes=(".weight", ".bias"))
        assert name is not None, stored
        yield name, parameter.detach().numpy()


def _vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """The tokenizer as plain data, by way of its file."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        return read_vocabulary(Path(folder))
