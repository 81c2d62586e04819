"""Predicted against real memory of training: the peak of the process over the first three steps.

Each configuration runs in a process of its own. The prediction is the one that a run makes before its first step
(gptlab.training.fit), of the whole process. `error` is (predicted − real) / real of the whole process, `grown_error`
the same of what the process grew by, without the libraries that are loaded before.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

from common import Case, Variant, ours, parser, run
from models import GPT2, TINY, Shape
from output import write
from worker import Work

MINI = Shape(n_layer=2, n_head=4, n_embd=128, context=128, tie_head=False)
SMALL = Shape(n_layer=4, n_head=4, n_embd=256, context=128, vocab_size=32_000)
MIDDLE = Shape(n_layer=8, n_head=8, n_embd=512, context=256, vocab_size=8_192)
WIDE = Shape(n_layer=4, n_head=16, n_embd=1024, context=128, tie_head=False, vocab_size=16_384)
DEEP = Shape(n_layer=16, n_head=8, n_embd=256, context=512, vocab_size=4_096)

BF16, FLOAT32 = {"precision": "bfloat16"}, {"precision": "float32"}
RECOMPUTED = {"activation_checkpointing": True}

CONFIGURATIONS: list[tuple[str, Shape, int, dict[str, Any]]] = [
    ("mini × 32", MINI, 32, BF16),
    ("mini × 32", MINI, 32, FLOAT32),
    ("mini × 128", MINI, 128, BF16),
    ("mini × 32, tied", replace(MINI, tie_head=True), 32, BF16),
    ("mini × 32, T 512", replace(MINI, context=512), 32, BF16),
    ("mini × 32 by 8, T 512", replace(MINI, context=512), 32, FLOAT32 | {"micro_batch_size": 8}),
    ("mini × 32, SGD", MINI, 32, BF16 | {"optimizer": "sgd"}),
    ("mini × 32, Adafactor", MINI, 32, FLOAT32 | {"optimizer": "adafactor"}),
    ("small × 32", SMALL, 32, BF16),
    ("small × 32", SMALL, 32, FLOAT32),
    ("small × 32, Muon", SMALL, 32, BF16 | {"optimizer": "muon"}),
    ("small × 32, Muon", SMALL, 32, FLOAT32 | {"optimizer": "muon"}),
    ("small × 64, recomputed", SMALL, 64, BF16 | RECOMPUTED),
    ("middle × 8", MIDDLE, 8, BF16),
    ("middle × 8", MIDDLE, 8, FLOAT32),
    ("middle × 16, recomputed", MIDDLE, 16, FLOAT32 | RECOMPUTED),
    ("middle × 16 by 4", MIDDLE, 16, BF16 | {"micro_batch_size": 4}),
    ("middle × 8, Nesterov", MIDDLE, 8, FLOAT32 | {"optimizer": "nesterov"}),
    ("wide × 8", WIDE, 8, BF16),
    ("wide × 8", WIDE, 8, FLOAT32),
    ("wide × 8, Muon", WIDE, 8, BF16 | {"optimizer": "muon"}),
    ("wide × 16, Adam, recomputed", WIDE, 16, BF16 | {"optimizer": "adam"} | RECOMPUTED),
    ("deep × 8", DEEP, 8, BF16),
    ("deep × 8", DEEP, 8, FLOAT32),
    ("deep × 16, recomputed", DEEP, 16, BF16 | RECOMPUTED),
    ("deep × 16 by 2", DEEP, 16, BF16 | {"micro_batch_size": 2}),
    ("GPT-2 124M × 8, T 128", replace(GPT2, context=128), 8, BF16),
    ("GPT-2 124M × 8, T 128", replace(GPT2, context=128), 8, FLOAT32),
    ("GPT-2 124M × 1", GPT2, 1, BF16),
    ("GPT-2 124M × 2, recomputed", GPT2, 2, BF16 | RECOMPUTED),
]  # fmt: skip

QUICK: list[tuple[str, Shape, int, dict[str, Any]]] = [
    ("tiny × 4", TINY, 4, BF16),
    ("tiny × 4, recomputed", TINY, 4, FLOAT32 | RECOMPUTED),
]


def first_steps(shape: Shape, rows: int, settings: dict[str, Any]) -> Work:
    """The first steps as a run makes them, with everything imported that a run imports."""
    import torch
    from lab import training

    import gptlab.training.assemble  # noqa: F401
    from gptlab.device import current_memory, peak_memory

    before = current_memory()
    step, fit = training(shape, rows, **settings)

    def errors() -> dict[str, float]:
        real = peak_memory(torch.device("cpu"))
        return {
            "predicted_megabytes": fit.peak_bytes / 1e6,
            "error": fit.peak_bytes / real - 1,
            "grown_error": (fit.peak_bytes - before) / (real - before) - 1,
        }

    return Work(step, facts=errors)


def main() -> None:
    options = parser(__doc__).parse_args()
    variants: list[Variant] = []
    for words, shape, rows, settings in QUICK if options.quick else CONFIGURATIONS:
        size: dict[str, Any] = {"shape": shape, "rows": rows, "settings": settings}
        variants.append(ours(f"{words}, {settings['precision']}", first_steps, size))
    case = Case("first steps", "ms", variants, (), rounds=1, alone=True)
    result = run([case], options, "predicted against real peak memory of the first steps of training, a process each")
    found = result["cases"]["first steps"]["variants"].values()
    for key in ("error", "grown_error") if found else ():
        sizes = [abs(each[key]) for each in found]
        result[key] = {"median": statistics.median(sizes), "worst": max(sizes), "configurations": len(sizes)}
        print(f"{key}: median {result[key]['median']:.1%}, worst {result[key]['worst']:.1%} of {len(sizes)}")
    write(result, options)


if __name__ == "__main__":
    main()
