"""What a step of DPO takes: beside a step of fine-tuning on as many sequences, and beside TRL's DPOTrainer.

    step      GPT-2 124M, 4 pairs, each of two sequences of 512 tokens, the second half of them the answer: one step of
              AdamW. Ours: SFT of those 8 sequences, all in one micro-batch, and DPO of the 4 pairs, likewise; in
              float32 and bfloat16, by LoRA of rank 8, each with activation checkpointing too ("recomputed"). TRL's,
              which has it on: in float32 and bfloat16, with the reference's log-probabilities computed before, by LoRA,
              and with the activations kept
    medium    with --medium: GPT-2 medium's shape, 2 pairs of 1,024 tokens, by DPO in float32, against 14 GiB: one pair
              in a micro-batch; both with activation checkpointing; by LoRA of rank 16

Random weights and tokens, no dropout, a rate of 1e-6, beta 0.1. Memory is what the process grew by from when all was
imported to its peak; of --medium the whole process. What ours does before the first step, asking the reference, is in
that peak and not in the time of a step: `prepare_seconds` is its time, and TRL's where it does so too. `first_loss` is
that of the first step, of DPO always ln 2. Limits: 1.15 of the same step of SFT, 0.55 of TRL's at no less speed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from common import Case, Variant, in_our_environment, ours, parser, run
from dpo_steps import our_step, trl_step
from models import GPT2, TINY, Shape
from output import print_columns, write
from tuning import named

PAIRS, LENGTH = 4, 512
MEDIUM_PAIRS, MEDIUM_LENGTH = 2, 1024

FLOAT32, BF16, RECOMPUTED = {"precision": "float32"}, {"precision": "bfloat16"}, {"recomputed": True}
OURS: dict[str, dict[str, Any]] = {
    f"{words}{more}": {**settings, **recomputed}
    for words, settings in {"float32": FLOAT32, "bfloat16": BF16, "float32 LoRA": FLOAT32 | {"rank": 8}}.items()
    for more, recomputed in {"": {}, " recomputed": RECOMPUTED}.items()
}
TRL: dict[str, dict[str, Any]] = {
    "float32": FLOAT32,
    "bfloat16": BF16,
    "float32 precomputed": FLOAT32 | {"precomputed": True},
    "float32 LoRA": FLOAT32 | {"rank": 8},
    "float32 kept": FLOAT32 | {"recomputed": False},
}
MEDIUM: dict[str, dict[str, Any]] = {
    "by 1": {"micro_batch_size": 1},
    "recomputed": RECOMPUTED,
    "LoRA by 1": {"micro_batch_size": 1, "rank": 16},
}

OF_TUNING, OF_TRL, MEDIUM_GIB = 1.15, 0.55, 14


def step_variants(shape: Shape) -> list[Variant]:
    size = {"shape": shape, "pairs": PAIRS}
    peers = [Variant(f"TRL {name}", trl_step, size | more, needs=("trl", "peft")) for name, more in TRL.items()]
    again = [in_our_environment(peer) for peer in peers[:2]]
    own = [
        ours(f"{objective} {name}", our_step, size | {"objective": objective} | more)
        for name, more in OURS.items()
        for objective in ("SFT", "DPO")
    ]
    return [*peers, *again, *own]


def compare(variants: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each of our DPO's: its memory as a share of the same step of SFT, and of TRL's in the same precision; how many
    times as fast as the latter it is; whether the limits are kept. What was not measured, or not asked for, is left
    out. Of TRL's two environments the better one counts."""
    found = {}
    for name in OURS:
        own, tuned = variants.get(f"ours DPO {name}"), variants.get(f"ours SFT {name}")
        if own is None:
            continue
        theirs = f"TRL {name.removesuffix(' recomputed')}"
        peers = [each for peer, each in variants.items() if peer in (theirs, f"{theirs}, our environment")]
        row: dict[str, Any] = {"grown_megabytes": own["grown_megabytes"], "seconds": own["median"]}
        if tuned:
            row["of_tuning"] = own["grown_megabytes"] / tuned["grown_megabytes"]
            row["of_tuning_kept"] = row["of_tuning"] <= OF_TUNING
        if peers:
            row["of_trl"] = own["grown_megabytes"] / min(peer["grown_megabytes"] for peer in peers)
            row["times_as_fast"] = min(peer["median"] for peer in peers) / own["median"]
            if "LoRA" not in name:
                row["of_trl_kept"] = row["of_trl"] <= OF_TRL and row["times_as_fast"] >= 1
        found[name] = row
    return found


def print_comparison(found: Mapping[str, Mapping[str, Any]]) -> None:
    def shown(row: Mapping[str, Any], key: str) -> str:
        return f"{row[key]:.2f}" if key in row else ""

    def kept(row: Mapping[str, Any], key: str) -> str:
        return ("yes" if row[key] else "NO") if key in row else ""

    print("\nDPO beside SFT, and beside TRL's")
    head = ["", "MB", "s", "of SFT", f"≤ {OF_TUNING}", "of TRL", "times as fast", f"≤ {OF_TRL}, ≥ 1"]
    print_columns([head] + [
        [
            name, f"{row['grown_megabytes']:,.0f}", shown(row, "seconds"), shown(row, "of_tuning"),
            kept(row, "of_tuning_kept"), shown(row, "of_trl"), shown(row, "times_as_fast"), kept(row, "of_trl_kept"),
        ]
        for name, row in found.items()
    ])  # fmt: skip


def check_medium(variants: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What each process took of the GiB that a GPU of 16 GB leaves to it, printed."""
    found = {name: each["peak_megabytes"] * 1e6 / 2**30 for name, each in variants.items()}
    print("\nmedium: peak memory")
    for_all = f"of {MEDIUM_GIB}"
    print_columns([
        [name, f"{gib:.2f} GiB", for_all, "yes" if gib <= MEDIUM_GIB else "NO"] for name, gib in found.items()
    ])  # fmt: skip
    return {name: {"gib": gib, "limit": MEDIUM_GIB, "fits": gib <= MEDIUM_GIB} for name, gib in found.items()}


def judge(result: dict[str, Any]) -> None:
    """Adds to the result how it compares, and prints it."""
    cases = {name: case["variants"] for name, case in result["cases"].items() if case["variants"]}
    if found := compare(cases.get("step", {})):
        result["comparison"] = found
        print_comparison(found)
    if "medium" in cases:
        result["limits"] = check_medium(cases["medium"])
    for variants in cases.values():
        wrong = [
            name
            for name, each in variants.items()
            if "SFT" not in name and not math.isclose(each["first_loss"], math.log(2), abs_tol=0.03)
        ]
        if wrong:
            print(f"  their first loss is not ln 2: {', '.join(wrong)}")


def cases(shape: Shape, medium: Shape | None) -> Sequence[Case]:
    """`medium`: None where it was not asked for."""
    found = [Case("step", "s", step_variants(shape), (), rounds=3, alone=True)]
    if medium:
        size = {"shape": medium, "objective": "DPO", "pairs": MEDIUM_PAIRS}
        variants = [ours(f"medium {name}", our_step, size | more) for name, more in MEDIUM.items()]
        found.append(Case("medium", "s", variants, (), rounds=1, alone=True))
    return found


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--medium", action="store_true", help="the case medium too; 14 GiB must be free")
    options = made.parse_args()
    shape = TINY if options.quick else replace(GPT2, context=LENGTH)
    medium = TINY if options.quick else replace(named("gpt2-medium"), context=MEDIUM_LENGTH)
    words = f"a step of DPO, {shape}, {PAIRS} pairs of {shape.context} tokens"
    result = run(cases(shape, medium if options.medium else None), options, words)
    judge(result)
    write(result, options)


if __name__ == "__main__":
    main()
