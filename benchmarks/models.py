"""The same GPT-2 by this lab and by its peers, and what they read."""

from __future__ import annotations

import atexit
import importlib.util
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from gptlab.data.token_file import TokenFile
    from gptlab.model.gpt import GPT, GPTShape

VOCABULARY = 50_257


@dataclass(frozen=True)
class Shape:
    """A GPT-2 without dropout: the peers and ours differ in where they put it, and the figures should not."""

    n_layer: int
    n_head: int
    n_embd: int
    context: int
    tie_head: bool = True
    vocab_size: int = VOCABULARY

    def ours(self) -> GPTShape:
        from gptlab.model.gpt import GPTShape

        return GPTShape(
            vocab_size=self.vocab_size, context=self.context, n_layer=self.n_layer, n_head=self.n_head,
            n_embd=self.n_embd, dropout=0.0, tie_head=self.tie_head,
        )  # fmt: skip


GPT2 = Shape(n_layer=12, n_head=12, n_embd=768, context=1024)
"""GPT-2's smallest, 124 million parameters."""

TINY = Shape(n_layer=2, n_head=2, n_embd=32, context=64, vocab_size=512)
"""For --quick."""


def our_gpt(shape: Shape) -> GPT:
    """This lab's model, with random weights."""
    import torch

    from gptlab.model.gpt import GPT

    torch.manual_seed(0)
    return GPT(shape.ours())


def nanogpt(shape: Shape, folder: str) -> Any:
    """nanoGPT's model from a checkout in `folder`, biases as GPT-2 has them.

    It ties its head always; where the shape does not, the head is given a weight of its own.
    """
    from torch import nn

    spec = importlib.util.spec_from_file_location("nanogpt_model", Path(folder) / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.GPT(module.GPTConfig(
        block_size=shape.context, vocab_size=shape.vocab_size, n_layer=shape.n_layer, n_head=shape.n_head,
        n_embd=shape.n_embd, dropout=0.0, bias=True,
    ))  # fmt: skip
    if not shape.tie_head:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    return model


def transformers_gpt2(shape: Shape) -> Any:
    """transformers' GPT-2 with random weights; no cache of keys and values, as its Trainer has it."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(
        vocab_size=shape.vocab_size, n_positions=shape.context, n_layer=shape.n_layer, n_head=shape.n_head,
        n_embd=shape.n_embd, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
        tie_word_embeddings=shape.tie_head, bos_token_id=shape.vocab_size - 1, eos_token_id=shape.vocab_size - 1,
    ))  # fmt: skip


def own_folder() -> Path:
    """A new folder that is removed when this process ends."""
    folder = tempfile.mkdtemp(prefix="gptlab-benchmark-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def random_ids(count: int, vocab_size: int) -> np.ndarray:
    """(count,) uint16, the same ones each time: what a step costs does not depend on them."""
    import numpy as np

    return np.random.default_rng(0).integers(0, vocab_size, count).astype(np.uint16)


def token_file(path: Path, ids: np.ndarray, vocab_size: int, *, eos_id: int = 0, text: str = "") -> TokenFile:
    """One document of these ids, which stand for `text`, as a file that training and scoring read."""
    from gptlab.data.token_file import TokenFile
    from gptlab.data.token_writer import TokenFileWriter

    writer = TokenFileWriter(path, vocab_size, eos_id)
    writer.append([ids])
    writer.finish({
        "tokenizer": "", "vocab_size": vocab_size, "eos_id": eos_id, "sources": [],
        "text_bytes": len(text.encode()), "words": len(text.split()),
    })  # fmt: skip
    return TokenFile.open(path)


def write_vocabulary(folder: Path, vocab_size: int = VOCABULARY) -> None:
    """A byte-level BPE of this size without any text to learn it from: the 256 bytes, pairs of bytes, an EOS."""
    from gptlab.text.vocabulary import BYTE_OF_CHARACTER, EOS

    characters = list(BYTE_OF_CHARACTER)
    pairs = [(a, b) for a in characters for b in characters][: vocab_size - 257]
    tokens = [*characters, *(a + b for a, b in pairs), EOS]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, pairs)) + "\n", encoding="utf-8")
