"""What the benchmarks share: variants beside each other, interleaved, in one run; the table and the JSON.

    round 1: A B C    round 2: A B C    …

Each variant has a process of its own (worker.py). One works while the others wait at their pipes; before each turn
it is seen to that they use no processor. So a disturbance of the machine meets all alike, and a ratio to a baseline
is the median of the ratios of the rounds.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any

from output import machine, print_table, write
from worker import Failed, Reading, Work, Worker

WARM_UP_STEPS = 2
SPARE_SHARE = 0.2
"""So much of the memory must be free before another variant starts beside others."""

QUIET_SECONDS = 0.2
"""Linux counts processor time in hundredths of a second, so a share is known to 5 % after so long."""


@dataclass(frozen=True)
class Variant:
    """One of those that are compared.

    make:        a module's function that gives its Work; called with `arguments`, in the variant's own process
    needs:       modules without which it is left out
    environment: set before its process starts
    left_out:    why it cannot be had here, where that is known
    """

    name: str
    make: Callable[..., Work]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    left_out: str = ""

    def missing(self) -> str:
        """Why it is left out, in words; "" where nothing is missing."""
        names = [name for name in self.needs if find_spec(name) is None]
        return self.left_out or (f"not installed: {', '.join(names)}" if names else "")


@dataclass(frozen=True)
class Case:
    """Variants that do the same work, and how they are read.

    unit:      "tokens/s" and the like, amount by time; or "ms" or "s", time by amount
    baselines: patterns of names; of those that match one, the fastest is a baseline
    steps:     steps a round
    alone:     each variant has come and gone before the next one starts, for want of memory
    """

    name: str
    unit: str
    variants: Sequence[Variant]
    baselines: tuple[str, ...]
    rounds: int = 9
    steps: int = 1
    alone: bool = False


def ours(name: str, make: Callable[..., Work], arguments: Mapping[str, Any], **environment: str) -> Variant:
    """A variant of this lab's, which runs as from its command line."""
    return Variant(f"ours {name}".strip(), make, arguments, environment={**our_environment(), **environment})


def in_our_environment(peer: Variant) -> Variant:
    """The peer with the same variables: what of a ratio is theirs, and not the programs'."""
    return replace(peer, name=f"{peer.name}, our environment", environment=our_environment())


def our_environment() -> dict[str, str]:
    """What gptlab's command line sets before torch is imported; what is set already stays."""
    from gptlab.environment import BEFORE_TORCH

    return {key: os.environ.get(key, value) for key, value in BEFORE_TORCH.items()}


def parser(words: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has; `words` is its docstring."""
    made = argparse.ArgumentParser(description=words, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="small and short: whether the benchmark works, not a figure")
    made.add_argument("--out", help="where the JSON goes (default: results/NAME.json beside this file; --quick: none)")
    made.add_argument("--only", nargs="+", metavar="WORD", help="only variants whose name contains one of these words")
    made.add_argument("--cases", nargs="+", metavar="WORD", help="only cases whose name contains one of these words")
    made.add_argument("--rounds", type=int, help="rounds of each variant (default: 9, a few benchmarks fewer)")
    made.add_argument("--threads", type=int, help="cores and threads of each variant (default: all this process has)")
    return made


def run(cases: Sequence[Case], options: argparse.Namespace, what: str) -> dict[str, Any]:
    """Measures the cases one after the other, prints a table for each, and writes the JSON after each.

    `options` are of `parser`. Returns what was written.
    """
    result = {"what": what, "quick": options.quick, **machine(options.threads), "cases": {}}
    for case in cases:
        if options.cases and not any(word in case.name for word in options.cases):
            continue
        chosen = [v for v in case.variants if not options.only or any(word in v.name for word in options.only)]
        rounds = options.rounds or (min(2, case.rounds) if options.quick else case.rounds)
        print(f"{case.name}: {len(chosen)} variants, {rounds} rounds", file=sys.stderr)
        measured = Measured()
        for variants in [[v] for v in chosen] if case.alone else [chosen]:
            measure(variants, measured, rounds, case.steps, result["machine"]["threads"])
        result["cases"][case.name] = summary = summarise(case, chosen, measured)
        print_table(case.name, summary)
        write(result, options)
    return result


@dataclass
class Measured:
    """Readings of each round, peak memory and facts of each variant; why others have none; how still the rest was."""

    readings: dict[str, list[Reading]] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    waiting_core_share: float = 0.0


def measure(variants: Sequence[Variant], result: Measured, rounds: int, steps: int, threads: int) -> None:
    """Starts the variants one after the other, then lets them work in turns; one that fails is left out, and said.

    What is measured is added to `result`.
    """
    workers: dict[str, Worker] = {}

    def ask(name: str, *request: Any) -> Any:
        """The answer, or None where the variant failed."""
        try:
            return workers[name].ask(*request)
        except Failed as failure:
            print(f"{name}: {failure}", file=sys.stderr)
            result.left_out[name] = str(failure).strip().splitlines()[-1]
            result.readings.pop(name, None)
            workers.pop(name).stop()
            return None

    try:
        for variant in variants:
            if missing := variant.missing() or crowded(len(workers)):
                result.left_out[variant.name] = missing
                continue
            print(f"  starting {variant.name}", file=sys.stderr)
            workers[variant.name] = Worker(variant.make, variant.arguments, variant.environment, threads)
            ask(variant.name, "warm_up", WARM_UP_STEPS)
        for number in range(rounds):
            print(f"  round {number + 1} of {rounds}", file=sys.stderr)
            for name in list(workers):
                result.waiting_core_share = max(result.waiting_core_share, settle(list(workers.values())))
                if reading := ask(name, "round", steps):
                    result.readings.setdefault(name, []).append(reading)
        for name in list(workers):
            if figures := ask(name, "figures"):
                result.peak_bytes[name], result.facts[name] = figures
    finally:
        for worker in workers.values():
            worker.stop()


def crowded(working: int) -> str:
    """Why another variant beside so many might be killed for want of memory; "" where it would not."""
    import torch
    from psutil import virtual_memory

    from gptlab.device import available_memory

    left = available_memory(torch.device("cpu")) / virtual_memory().total
    return f"the others leave {left:.0%} of the memory; --only takes fewer" if working and left < SPARE_SHARE else ""


def settle(workers: Sequence[Worker], patience_seconds: float = 5.0) -> float:
    """Waits until no worker uses the processor (threads of OpenMP spin for a while); the share of a core still used."""
    deadline = time.perf_counter() + patience_seconds
    while True:
        before = sum(worker.cpu_seconds() for worker in workers)
        time.sleep(QUIET_SECONDS)
        share = (sum(worker.cpu_seconds() for worker in workers) - before) / QUIET_SECONDS
        if share < 0.01 or time.perf_counter() > deadline:
            return round(max(share, 0.0), 3)


def summarise(case: Case, variants: Sequence[Variant], measured: Measured) -> dict[str, Any]:
    """The case as JSON: of each variant the median, the spread, the peak memory and the ratios to the baselines."""
    rates = {name: [r.amount / r.seconds for r in readings] for name, readings in measured.readings.items()}
    baselines = find_baselines(case.baselines, rates)
    second = {"ms": 1000, "s": 1}.get(case.unit)
    values = {name: [second / rate for rate in each] if second else each for name, each in rates.items()}
    return {
        "unit": case.unit,
        "steps_a_round": case.steps,
        "warm_up_steps": WARM_UP_STEPS,
        "baselines": baselines,
        "waiting_core_share": measured.waiting_core_share,
        "left_out": measured.left_out,
        "variants": {
            v.name: {
                "median": statistics.median(values[v.name]),
                "least": min(values[v.name]),
                "most": max(values[v.name]),
                "peak_megabytes": measured.peak_bytes[v.name] / 1e6,
                "times_as_fast": {
                    other: statistics.median(a / b for a, b in zip(rates[v.name], rates[other], strict=True))
                    for other in baselines
                },
                **measured.facts[v.name],
                "environment": dict(v.environment),
                "readings": values[v.name],
                "amount_a_round": measured.readings[v.name][0].amount,
                "cpu_seconds": [r.cpu_seconds for r in measured.readings[v.name]],
            }
            for v in variants
            if v.name in values
        },
    }


def find_baselines(patterns: Sequence[str], rates: Mapping[str, Sequence[float]]) -> list[str]:
    """Of each pattern the fastest variant that matches it; the first variant of all where none of them does."""
    found: list[str] = []
    for pattern in patterns:
        matching = fnmatch.filter(rates, pattern)
        if matching:
            found.append(max(matching, key=lambda name: statistics.median(rates[name])))
    return list(dict.fromkeys(found)) or (list(rates)[:1] if patterns else [])
