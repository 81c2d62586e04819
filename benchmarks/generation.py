"""Writing with GPT-2 124M: a prompt of 32 tokens, 256 new ones, greedily, one row and eight; tokens a second and peak
memory.

All but nanoGPT load the same random weights. nanoGPT has no cache, so that a token costs more the more there are
before it: it writes 32 tokens in the middle of the others' 256, one row only. CTranslate2 converts the weights first.
`--nanogpt DIR` is a checkout of nanoGPT; without one it is left out. The other peers run twice, as their users run them
and ", our environment", with the variables that gptlab's command line sets; a ratio is to the better of the two.

`--model RUN_OR_FOLDER --text FILE` shows beside the speed what precision costs: the perplexity of a trained model on a
text by the products of each precision, as the C++ step takes them (rounded weights, float32 activations) and as torch
does where there is no C++ (activations rounded to bfloat16, too).
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import Case, Variant, in_our_environment, ours, parser, run
from models import GPT2, TINY, Shape, nanogpt, our_gpt, own_folder, random_ids, token_file, write_vocabulary
from output import print_columns, write
from worker import Work

if TYPE_CHECKING:
    from gptlab.data.windows import ScoredWindows
    from gptlab.kernels.decode import Precision
    from gptlab.model.gpt import GPT

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "int8")

Sizes = dict[str, Any]
"""rows, tokens of a prompt, new tokens of each row: what every maker below takes."""


def prompts(rows: int, length: int, vocab_size: int) -> list[list[int]]:
    """Random ids, without the last, which ends a text."""
    return random_ids(rows * length, vocab_size - 1).reshape(rows, length).tolist()


def our_generation(folder: str, rows: int, prompt: int, new: int, precision: Precision) -> Work:
    """The weights are prepared once, as the peers' are when they are loaded."""
    from gptlab.generation.decoder import Decoder
    from gptlab.generation.engine import generate
    from gptlab.generation.sampling import Sampling
    from gptlab.model.huggingface import load_model

    decoder = Decoder(load_model(Path(folder)).eval(), precision)
    read = prompts(rows, prompt, decoder.model.shape.vocab_size)

    def step() -> None:
        generate(decoder, read, Sampling(greedy=True), max_new_tokens=new)

    return Work(step, rows * new)


def transformers_generation(folder: str, rows: int, prompt: int, new: int, precision: str) -> Work:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, precision)).eval()
    model.generation_config.eos_token_id = None  # so that it writes to the end
    read = torch.tensor(prompts(rows, prompt, model.config.vocab_size))
    mask = torch.ones_like(read)

    def step() -> None:
        with torch.inference_mode():
            model.generate(read, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0)

    return Work(step, rows * new)


CONVERT = """
import sys
from ctranslate2.converters import TransformersConverter
folder, to, precision = sys.argv[1:]
TransformersConverter(folder).convert(to, quantization=precision)
"""


def ctranslate2_generation(folder: str, rows: int, prompt: int, new: int, precision: str) -> Work:
    import ctranslate2  # type: ignore[import-untyped]

    converted = str(own_folder() / "converted")
    # In a process of its own: what converting takes is no part of generating's memory.
    subprocess.run([sys.executable, "-c", CONVERT, folder, converted, precision], check=True)
    threads = int(os.environ["OMP_NUM_THREADS"])
    generator = ctranslate2.Generator(converted, device="cpu", compute_type=precision, intra_threads=threads)
    words = {number: word for word, number in json.loads((Path(folder) / "vocab.json").read_text("utf-8")).items()}
    read = [[words[id] for id in ids] for ids in prompts(rows, prompt, len(words))]

    def step() -> None:
        generator.generate_batch(read, max_length=new, min_length=new, sampling_topk=1, include_prompt_in_result=False)

    return Work(step, rows * new)


def nanogpt_generation(shape: Shape, folder: str, prompt: int, new: int) -> Work:
    import torch

    model = nanogpt(shape, folder).eval()
    read = torch.tensor(prompts(1, prompt, shape.vocab_size))

    def step() -> None:
        model.generate(read, new, top_k=1)

    return Work(step, new)


def variants(shape: Shape, folder: str, nanogpt_folder: str | None, size: Sizes) -> list[Variant]:
    model = {"folder": folder, **size}
    few = max(1, size["new"] // 8)
    middle = {"prompt": size["prompt"] + (size["new"] - few) // 2, "new": few}
    no_cache = Variant(
        "nanoGPT", nanogpt_generation, {"shape": shape, "folder": nanogpt_folder, **middle},
        left_out="" if nanogpt_folder else "no --nanogpt DIR",
    )  # fmt: skip
    loading = (
        ("transformers", transformers_generation, ("float32", "bfloat16"), ("transformers",)),
        ("CTranslate2", ctranslate2_generation, ("float32", "int8"), ("ctranslate2", "transformers")),
    )
    peers = [
        Variant(f"{name} {precision}", make, model | {"precision": precision}, needs)
        for name, make, precisions, needs in loading
        for precision in precisions
    ]
    return [
        *([no_cache] if size["rows"] == 1 else []),
        *peers,
        *map(in_our_environment, peers),
        *(
            ours(f"{kernels} {precision}", our_generation, model | {"precision": precision}, **environment)
            for kernels, environment in (("torch", {"GPTLAB_KERNELS": "torch"}), ("C++", {}))
            for precision in PRECISIONS
        ),
    ]


def write_model(shape: Shape, folder: Path) -> None:
    """Random weights and a tokenizer, in Hugging Face's format."""
    from gptlab.model.huggingface import save_model

    save_model(our_gpt(shape), folder)
    write_vocabulary(folder, shape.vocab_size)


def quality(name: str, text_file: Path) -> dict[str, Any]:
    """The perplexity of the model on the text in each precision, and how far it is from float32's."""
    import numpy as np

    from gptlab.data.windows import ScoredWindows
    from gptlab.generation.precision import dequantised, with_rounded_products
    from gptlab.run.open import open_model

    opened = open_model(name, device="cpu")
    tokenizer, text = opened.require_tokenizer(), text_file.read_text(encoding="utf-8")
    ids = np.asarray(tokenizer.encode(text))
    file = token_file(own_folder() / "text.tokens", ids, tokenizer.vocab_size, eos_id=tokenizer.eos_id, text=text)
    scored = ScoredWindows(file, opened.model.shape.context)
    exact = perplexity(opened.model, scored)
    found = {
        made: {p: perplexity(model_of(opened.model, p), scored) if p != "float32" else exact for p in PRECISIONS}
        for made, model_of in (("C++", dequantised), ("torch", with_rounded_products))
    }
    change = {made: {p: value / exact - 1 for p, value in each.items()} for made, each in found.items()}
    print(f"\nperplexity of {name} on {text_file}, {scored.scored:,} tokens")
    rows = [[p, *(cell for m in found for cell in (f"{found[m][p]:.3f}", f"{change[m][p]:+.3%}"))] for p in PRECISIONS]
    print_columns([["", *(cell for made in found for cell in (made, ""))], *rows])
    return {
        "model": name, "text": str(text_file), "tokens": scored.scored, "context": scored.context,
        "perplexity": found, "change": change,
    }  # fmt: skip


def perplexity(model: GPT, text: ScoredWindows) -> float:
    """By the model's own output layer, whose products may be rounded; four rows at a time."""
    import numpy as np
    import torch
    import torch.nn.functional as F

    from gptlab.data.batch import IGNORE

    total = 0.0
    with torch.inference_mode():
        for rows in np.array_split(np.arange(len(text)), -(-len(text) // 4)):
            batch = text.batch(rows)
            logits = model.lm_head(model(batch.tokens)).flatten(0, 1)
            total += F.cross_entropy(logits, batch.targets.flatten(), ignore_index=IGNORE, reduction="sum").item()
    return math.exp(total / text.scored)


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--nanogpt", metavar="DIR", help="a checkout of nanoGPT")
    made.add_argument("--model", metavar="RUN_OR_FOLDER", help="a trained model, for the perplexity of each precision")
    made.add_argument("--text", type=Path, metavar="FILE", help="the text that it is scored on")
    options = made.parse_args()
    if bool(options.model) != bool(options.text):
        made.error("--model and --text go together")
    shape, prompt, new = (TINY, 8, 16) if options.quick else (GPT2, 32, 256)
    folder = own_folder()
    write_model(shape, folder)
    baselines = ("transformers float32*", "transformers bfloat16*", "CTranslate2 int8*")
    cases = [
        Case(
            f"batch {rows}", "tokens/s",
            variants(shape, str(folder), options.nanogpt, {"rows": rows, "prompt": prompt, "new": new}),
            baselines, rounds=5,
        )
        for rows in (1, 8)
    ]  # fmt: skip
    result = run(cases, options, f"greedy generation, prompt {prompt}, {new} new tokens a row; tokens a second")
    if options.model:
        result["quality"] = quality(options.model, options.text)
        write(result, options)


if __name__ == "__main__":
    main()
