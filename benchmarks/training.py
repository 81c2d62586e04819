"""A whole optimizer step of training, tokens a second and peak memory, beside nanoGPT and transformers.

A step is: gather a batch, forward, loss, backward, clip the gradient's norm to 1, AdamW, forget the gradients.
Without dropout, over random tokens (the work does not depend on them), each peer with its own optimizer: nanoGPT's
configure_optimizers (fused on CUDA only), the default of transformers' Trainer (fused AdamW). Compilation is done
before the first round. The mini models' heads are not tied (nanoGPT's is given a weight of its own), GPT-2's are.
`--nanogpt DIR` is a checkout of nanoGPT; without one it is left out.

On a CPU each peer runs twice, as its users run it and ", our environment", with the variables that gptlab's command
line sets: a ratio to be told is the one to the better of the two.

On CUDA (`--device cuda`) rows are more, and each variant is also given as a fraction of the GPU's bf16 peak (mfu).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from common import Case, Variant, in_our_environment, ours, parser, run
from lab import BATCHES, training
from models import GPT2, TINY, Shape, nanogpt, random_ids, transformers_gpt2
from output import print_columns, write
from worker import Work

RATE, DECAY, CLIP = 3e-4, 0.1, 1.0

BASELINES = ("nanoGPT float32", "nanoGPT float32, our environment", "nanoGPT*")
"""The last is the fastest of all."""

MINI = Shape(n_layer=2, n_head=4, n_embd=128, context=128, tie_head=False)


def shapes(device: str, quick: bool) -> dict[str, tuple[Shape, int]]:
    """Case → the model's shape, whose context is a row's length, and the rows of a step."""
    if quick:
        return {"tiny": (TINY, 4)}
    mini, short, long = (256, 64, 16) if device == "cuda" else (32, 8, 1)
    return {
        f"mini d=128, T 128 × {mini}": (MINI, mini),
        f"mini d=256, T 128 × {mini}": (replace(MINI, n_embd=256), mini),
        f"GPT-2 124M, T 128 × {short}": (replace(GPT2, context=128), short),
        f"GPT-2 124M, T 1024 × {long}": (GPT2, long),
    }


def nanogpt_step(shape: Shape, rows: int, precision: str, compiled: bool, folder: str, device: str) -> Work:
    """As nanoGPT's train.py; TF32 on CUDA is what it sets."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = True
    model = nanogpt(shape, folder).to(device)
    optimizer = model.configure_optimizers(DECAY, RATE, (0.9, 0.95), device)
    called = torch.compile(model) if compiled else model
    return peer_step(
        model, optimizer, lambda tokens, targets: called(tokens, targets)[1], shape, rows, precision, device
    )


def transformers_step(shape: Shape, rows: int, precision: str, device: str) -> Work:
    """As its Trainer: the labels are the tokens, which the model shifts itself."""
    import torch

    model = transformers_gpt2(shape).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY, fused=True)
    loss = lambda tokens, _: model(input_ids=tokens, labels=tokens).loss  # noqa: E731
    return peer_step(model, optimizer, loss, shape, rows, precision, device)


def peer_step(
    model: Any, optimizer: Any, loss: Callable[..., Any], shape: Shape, rows: int, precision: str, device: str
) -> Work:
    """A step with `loss(tokens, targets)`, each (rows, time)."""
    import numpy as np
    import torch

    torch.manual_seed(0)
    ids = random_ids(BATCHES * rows * shape.context + 1, shape.vocab_size)
    inside = np.arange(shape.context + 1)
    model.train()

    def step() -> None:
        starts = torch.randint(len(ids) - shape.context, (rows,)).numpy()
        window = torch.from_numpy(ids[starts[:, None] + inside].astype(np.int64)).to(device)
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            value = loss(window[:, :-1].contiguous(), window[:, 1:].contiguous())
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Work(step, rows * shape.context, cuda=device == "cuda")


def our_step(shape: Shape, rows: int, precision: str, device: str) -> Work:
    """A step of the lab's own loop."""
    name = "bfloat16" if precision == "bf16" else "float32"
    return Work(training(shape, rows, precision=name, device=device).step, rows * shape.context, cuda=device == "cuda")


def peers(shape: Shape, rows: int, device: str, folder: str | None, quick: bool) -> list[Variant]:
    size = {"shape": shape, "rows": rows, "device": device}
    without = "" if folder else "no --nanogpt DIR"
    return [
        *(
            Variant(
                f"nanoGPT {precision}{' compiled' if compiled else ''}", nanogpt_step,
                size | {"precision": precision, "compiled": compiled, "folder": folder}, left_out=without,
            )
            for precision in ("float32", "bf16")
            for compiled in (False, True)
            if not (quick and compiled and precision == "float32")  # compiling takes longer than all the rest
        ),
        *(
            Variant(f"transformers {name}", transformers_step, size | {"precision": name}, needs=("transformers",))
            for name in ("float32", "bf16")
        ),
    ]  # fmt: skip


def cases(sizes: dict[str, tuple[Shape, int]], device: str, folder: str | None, quick: bool) -> list[Case]:
    """Each peer twice on a CPU: as its users run it, and in our environment. For GPT-2 that is a case of its own, as
    all at once need more memory than a machine of 24 GB has."""
    made = []
    for name, (shape, rows) in sizes.items():
        theirs = peers(shape, rows, device, folder, quick)
        again = [in_our_environment(peer) for peer in theirs if device == "cpu"]
        size = {"shape": shape, "rows": rows, "device": device}
        own = [ours(precision, our_step, size | {"precision": precision}) for precision in ("float32", "bf16")]
        large = shape.n_layer == GPT2.n_layer
        groups = {name: theirs, f"{name}, our environment": again} if large else {name: [*theirs, *again]}
        made += [
            Case(title, "tokens/s", [*group, *own], BASELINES, steps=1 if large else 3)
            for title, group in groups.items()
            if group
        ]
    return made


def add_mfu(result: dict[str, Any], sizes: dict[str, tuple[Shape, int]]) -> None:
    """Each variant's share of the GPU's bf16 peak: the model's operations a token × tokens a second ÷ the peak."""
    import torch

    from gptlab.device import measure_peak_flops
    from gptlab.model.build import flops_per_token
    from gptlab.model.gpt import GPT
    from gptlab.model.meta import without_memory

    result["peak_flops"] = peak = measure_peak_flops(torch.device("cuda"), torch.bfloat16)
    for name, case in result["cases"].items():
        with without_memory():
            work = flops_per_token(GPT(sizes[name][0].ours()))
        for each in case["variants"].values():
            each["mfu"] = each["median"] * work / peak
        print(f"\n{name}, mfu")
        print_columns([[name, f"{each['mfu']:.1%}"] for name, each in case["variants"].items()])


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--nanogpt", metavar="DIR", help="a checkout of nanoGPT")
    made.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = made.parse_args()
    sizes = shapes(options.device, options.quick)
    result = run(
        cases(sizes, options.device, options.nanogpt, options.quick), options,
        "a whole optimizer step of training, without dropout; tokens a second",
    )  # fmt: skip
    if options.device == "cuda":
        add_mfu(result, sizes)
        write(result, options)


if __name__ == "__main__":
    main()
