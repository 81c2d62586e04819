"""What tuning takes: the loss, the peak memory and the seconds a step of five optimizers and of LoRA's ranks.

    optimizers   AdamW, Adam, SGD with Nesterov's momentum, with momentum, without; all weights are learned
    ranks        LoRA of rank 1, 2, 8 and 16 on every linear layer of the blocks, and all weights, by AdamW
    large        with --large: DialoGPT-large's shape (774 million), by AdamW with an 8-bit state and by LoRA of rank 8,
                 both with activation checkpointing, against 14 GiB; and reading a folder of that shape, against 12

Random weights of a named shape, one row of 256 tokens of Python's own documentation a step, a learning rate of 1e-4,
a momentum of 0.9, no dropout. Memory is the whole process's, on CUDA what torch allocates; the loss is that of a text
held out, after all steps (2, and 10 a round). Beside the memory stands what report B measured for GPT-2 medium on a
P100, and whether the order is the same: "=" is within 2 %, ">" by more than 5 %.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import Case, Variant, ours, parser, run
from generation import write_model
from models import TINY, Shape, own_folder, token_file
from output import print_columns, write
from worker import Work

RATE, MOMENTUM, TIME = 1e-4, 0.9, 256

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "AdamW": {"kind": "adamw", "weight_decay": 0.01},
    "Adam": {"kind": "adam"},
    "SGD Nesterov": {"kind": "nesterov", "momentum": MOMENTUM},
    "SGD momentum": {"kind": "sgd", "momentum": MOMENTUM},
    "SGD": {"kind": "sgd", "momentum": 0.0},
}
RANKS = {"rank 1": 1, "rank 2": 2, "rank 8": 8, "rank 16": 16, "full": 0}

REPORTED = {
    "optimizers": {"AdamW": 13.52, "Adam": 13.52, "SGD Nesterov": 11.23, "SGD momentum": 11.23, "SGD": 8.41},
    "ranks": {"rank 1": 8.0245, "rank 2": 8.0323, "rank 8": 8.0675, "rank 16": 8.1554, "full": 11.7745},
}
"""Report B's memory, in GB."""

ORDER = {
    "optimizers": (
        ("AdamW", "=", "Adam"), ("Adam", ">", "SGD momentum"), ("SGD momentum", "=", "SGD Nesterov"),
        ("SGD Nesterov", ">", "SGD"),
    ),
    "ranks": (
        ("rank 1", "=", "rank 2"), ("rank 2", "=", "rank 8"), ("rank 8", "=", "rank 16"), ("full", ">", "rank 16"),
    ),
}  # fmt: skip

LIMITS = {"full, 8-bit state": 14, "LoRA rank 8": 14, "reading": 12}
"""GiB that the large model may take, by variant."""

TEXT_BYTES = 1_000_000
HELD_OUT_ROWS = 8


def tuning(
    shape: Shape, text: str, device: str, optimizer: dict[str, Any], rank: int = 0, recomputed: bool = False
) -> Work:
    """Steps of the lab's own loop. `text`: the folder that `write_text` filled; rank 0: all weights are learned."""
    import numpy as np
    import torch
    from lab import as_in_a_run

    from gptlab.data.batch import rows_of_step
    from gptlab.data.token_file import TokenFile
    from gptlab.data.windows import ScoredWindows, TrainingWindows
    from gptlab.device import pick_precision
    from gptlab.evaluation.scores import Scorer
    from gptlab.model.gpt import GPT
    from gptlab.model.lora import LoraSettings, add_lora
    from gptlab.objectives.language import LanguageObjective
    from gptlab.training.loop import Engine, descend, gradients
    from gptlab.training.optimizer import Optimizer, OptimizerSettings

    as_in_a_run(device)
    place, objective, time = torch.device(device), LanguageObjective(), min(TIME, shape.context)
    torch.manual_seed(0)
    model = GPT(shape.ours())
    model.activation_checkpointing = recomputed
    if rank:
        add_lora(model, LoraSettings(rank=rank))
    model.to(place).train()
    settings = OptimizerSettings(**{"learning_rate": RATE, "weight_decay": 0.0} | optimizer)
    precision = pick_precision("auto", place)
    engine = Engine(model, objective, Optimizer(model, settings), place, precision, 1, settings.gradient_clip)
    windows = TrainingWindows(TokenFile.open(Path(text) / "train.tokens"), time, seed=0)
    held_out = ScoredWindows(TokenFile.open(Path(text) / "held_out.tokens"), time)
    done = 0

    def step() -> None:
        nonlocal done
        epoch, numbers = rows_of_step(len(windows), 1, 0, done)
        gradients(engine, windows.batch(numbers, epoch))
        descend(engine)
        done += 1

    def facts() -> dict[str, Any]:
        scorer = Scorer(objective, place, precision, micro_batch_size=1)
        return {
            "loss": scorer.rows(model, held_out, np.arange(min(HELD_OUT_ROWS, len(held_out))))["loss"],
            "steps": done,
            "trainable": sum(parameter.numel() for parameter in engine.optimizer.parameters),
            "precision": precision.name,
        }

    return Work(step, facts=facts, cuda=place.type == "cuda")


def reading(folder: str) -> Work:
    """A model from its folder, again and again."""
    from gptlab.model.huggingface import load_model

    def step() -> None:
        load_model(Path(folder))

    return Work(step)


def write_text(folder: Path, vocab_size: int) -> None:
    """The first megabyte of Python's documentation as two token files, every tenth document held out."""
    import numpy as np

    from gptlab.data.python_docs import python_docs
    from gptlab.text.tokenizer import Tokenizer

    texts: list[str] = []
    size = 0
    for _, text in python_docs():
        texts.append(text)
        size += len(text)
        if size > TEXT_BYTES:
            break
    tokenizer = Tokenizer.train(texts, min(4096, vocab_size))
    held_out = texts[::10]
    train = [text for number, text in enumerate(texts) if number % 10]
    for name, documents in (("train", train), ("held_out", held_out)):
        ids = np.concatenate(tokenizer.encode_documents(documents))
        token_file(folder / f"{name}.tokens", ids, tokenizer.vocab_size, eos_id=tokenizer.eos_id)


def write_large(shape: Shape, folder: Path) -> None:
    """In a process of its own, for the memory of this one."""
    process = multiprocessing.get_context("spawn").Process(target=write_model, args=(shape, folder))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"writing {shape} ended with {process.exitcode}")


def large_variants(common: dict[str, Any], folder: Path) -> list[Variant]:
    eight_bit = common | {"optimizer": OPTIMIZERS["AdamW"] | {"state": "8bit"}, "recomputed": True}
    lora = common | {"optimizer": OPTIMIZERS["AdamW"], "rank": 8, "recomputed": True}
    return [
        replace(ours("full, 8-bit state", tuning, eight_bit), needs=("bitsandbytes",)),
        ours("LoRA rank 8", tuning, lora),
        ours("reading", reading, {"folder": str(folder)}),
    ]


def named(size: str) -> Shape:
    """One of the lab's named shapes, with GPT-2's vocabulary."""
    from gptlab.model.build import SIZES

    numbers: dict[str, Any] = {**SIZES[size]}
    return Shape(**numbers)


def peaks(case: Mapping[str, Any]) -> dict[str, float]:
    """Variant → peak MB, by the names above."""
    return {name.removeprefix("ours "): each["peak_megabytes"] for name, each in case["variants"].items()}


def compare(name: str, measured: Mapping[str, float]) -> dict[str, bool]:
    """Each relation of the order whose both sides were measured, and whether it came out."""
    return {
        f"{one} {sign} {other}": abs(ratio - 1) <= 0.02 if sign == "=" else ratio > 1.05
        for one, sign, other in ORDER[name]
        if one in measured and other in measured
        for ratio in [measured[one] / measured[other]]
    }


def print_order(name: str, measured: Mapping[str, float], order: Mapping[str, bool]) -> None:
    reported = REPORTED[name]
    most, reported_most = max(measured.values()), max(reported.values())
    print(f"\n{name}: memory beside report B's")
    print_columns([["", "GB", "of the most", "reported GB", "of the most"]] + [
        [key, f"{mb / 1000:.2f}", f"{mb / most:.0%}", f"{reported[key]:.2f}", f"{reported[key] / reported_most:.0%}"]
        for key, mb in measured.items()
    ])  # fmt: skip
    print_columns([[relation, "yes" if came_out else "NO"] for relation, came_out in order.items()])


def check_limits(measured: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """What each took of the large model's GiB, printed."""
    found = {name: mb * 1e6 / 2**30 for name, mb in measured.items()}
    print("\nlarge: peak memory")
    print_columns([
        [name, f"{gib:.2f} GiB", f"of {LIMITS[name]}", "yes" if gib <= LIMITS[name] else "NO"]
        for name, gib in found.items()
    ])  # fmt: skip
    return {name: {"gib": gib, "limit": LIMITS[name], "fits": gib <= LIMITS[name]} for name, gib in found.items()}


def judge(result: dict[str, Any]) -> None:
    """Adds to the result whether the orders came out and the limits were kept, and prints it."""
    for name, case in result["cases"].items():
        measured = peaks(case)
        if measured and name == "large":
            result["limits"] = check_limits(measured)
        elif measured:
            result.setdefault("order", {})[name] = order = compare(name, measured)
            print_order(name, measured, order)


def main() -> None:
    from gptlab.model.build import SIZES

    made = parser(__doc__)
    made.add_argument("--shape", choices=SIZES, default="gpt2", help="whose shape the weights have (default: gpt2)")
    made.add_argument("--large", action="store_true", help="the case large too; 14 GiB must be free, and 3 on the disk")
    made.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = made.parse_args()
    shape, large = (TINY, TINY) if options.quick else (named(options.shape), named("gpt2-large"))
    folder = own_folder()
    write_text(folder, shape.vocab_size)
    common = {"shape": shape, "text": str(folder), "device": options.device}
    adamw = OPTIMIZERS["AdamW"]
    by_optimizer = [ours(name, tuning, common | {"optimizer": settings}) for name, settings in OPTIMIZERS.items()]
    by_rank = [ours(name, tuning, common | {"optimizer": adamw, "rank": rank}) for name, rank in RANKS.items()]
    cases = [
        Case("optimizers", "s", by_optimizer, (), rounds=5, steps=10, alone=True),
        Case("ranks", "s", by_rank, (), rounds=5, steps=10, alone=True),
    ]
    if options.large:
        write_large(large, folder / "large")
        variants = large_variants(common | {"shape": large}, folder / "large")
        cases.append(Case("large", "s", variants, (), rounds=1, alone=True))
    result = run(cases, options, f"tuning {shape}, one row of {min(TIME, shape.context)} tokens a step")
    judge(result)
    write(result, options)


if __name__ == "__main__":
    main()
