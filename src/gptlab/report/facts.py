"""What the files of a run say, as plain values; what they do not say is None or empty."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gptlab.report import class_facts, pair_facts
from gptlab.run.run import Run
from gptlab.settings import to_toml

SHOWN_SAMPLES = 8
"""Of each prompt at most so many texts, evenly over the run; samples.jsonl has all."""

SETS = {"validation": "validation", "validation_sampled": "validation, a sample"}
"""What the lines of metrics.jsonl scored."""

SAID_ELSEWHERE = ("command", "data", "labels", "reference", "teacher", "trainable")
"""What of origin.json has a place of its own."""

Facts = dict[str, Any]
Record = dict[str, Any]


def gather(run: Run) -> Facts:
    """The facts of a run, finished or not, for the templates and tables to say (docs/formats.md has its files)."""
    recipe, origin, state, metrics = run.recipe, run.origin, run.state, run.metrics()
    data, samples = origin.get("data", {}), recipe.get("samples", {})
    steps = [line for line in metrics if line["event"] == "step"]
    best_step = (state.get("best") or {}).get("step")
    classes = class_facts.classes(recipe, origin, _last(steps, "epoch"))
    preferences = pair_facts.preferences(recipe, origin, run.evaluation)
    scores = _scores(run.evaluation, metrics, best_step, class_facts.teacher_scores(origin))
    if classes:
        scores = class_facts.add_baseline(classes, scores)
    if preferences:
        scores = pair_facts.add_baselines(preferences, scores, data.get("table", []))
    best = _row(scores, "best", "validation")
    dialogues = _dialogues(recipe.get("data", {}), data)
    return {
        "name": run.name,
        "status": state.get("status"),
        "step": state.get("step") or _last(steps, "step"),
        "total_steps": state.get("total_steps"),
        "model": {**recipe.get("model", {}), **origin.get("shape", {})},
        "parameters": origin.get("parameters"),
        "tuning": _tuning(recipe, origin),
        "dialogues": dialogues,
        "classes": classes,
        "preferences": preferences,
        "distillation": class_facts.distillation(recipe, origin),
        "unit": _unit(dialogues, classes, preferences),
        "scores": scores,
        "best_step": best_step,
        "best": best,
        "best_by": _best_by(recipe.get("validation", {}), metrics),
        "start": _row(scores, "start", best["on"]) if best else None,
        "test": _row(scores, "best", "test"),
        "unigram_perplexity": best and best.get("unigram_perplexity"),
        "rewards": _rewards(samples.get("reward"), metrics, best_step),
        "cost": _cost(steps, state, metrics),
        "samples": list(_samples(run.samples())),
        "sampling": {key: value for key, value in samples.items() if key != "prompts"},
        "sources": data.get("table", []),
        "tokenizer": data.get("tokenizer", {}),
        "fingerprints": data.get("fingerprints", {}),
        "notes": [line for line in metrics if line["event"] == "note"],
        "recipe": to_toml(recipe),
        "command": _last([line for line in metrics if line["event"] == "start"], "command") or origin.get("command"),
        "device": origin.get("device"),
        "origin": {key: value for key, value in origin.items() if key not in SAID_ELSEWHERE},
    }


def _tuning(recipe: Mapping[str, Any], origin: Mapping[str, Any]) -> Facts | None:
    """What the run began as and what of it is trained; None for a new model."""
    start = origin.get("start", {})
    name = start.get("name") or recipe.get("start")
    if name is None:
        return None
    before = start.get("vocab_size")
    after = origin.get("data", {}).get("tokenizer", {}).get("vocab_size")
    return {
        "start": name,
        "lora": recipe.get("lora"),
        "head_alone": recipe.get("training", {}).get("parameters") == "head",
        "keep_layers": recipe.get("model", {}).get("keep_layers"),
        "trainable": origin.get("trainable"),
        "added_tokens": max(0, after - before) if before and after else 0,  # a start may have more rows than tokens
    }


def _dialogues(settings: Mapping[str, Any], data: Mapping[str, Any]) -> Facts | None:
    """How dialogues are read; None for running text."""
    if settings.get("kind") != "dialogues":
        return None
    return {"template": data.get("template"), **{key: settings.get(key) for key in ("learn", "pack", "history")}}


def _unit(dialogues: Facts | None, classes: Facts | None, preferences: Facts | None) -> str:
    """What a loss is over."""
    if preferences:
        return "pair"
    return "text" if classes else "answer token" if dialogues and dialogues["learn"] == "answers" else "token"


def _scores(
    evaluation: Mapping[str, Any], metrics: Sequence[Record], best_step: int | None, teacher: Sequence[Record]
) -> list[Record]:
    """The sets of scores there are. `nats` of each is what models with and without a teacher are compared by."""
    found = [*teacher, *(list(_scored(evaluation)) or _validated(metrics, best_step))]
    return [{**row, "nats": row.get("cross_entropy", row["loss"])} for row in found]


def _scored(tree: Mapping[str, Any], path: tuple[str, ...] = (), outer: Record | None = None) -> Iterator[Record]:
    """The sets of scores in evaluation.json ("best" → "validation" → {...}), each with what is said further out."""
    known = {**(outer or {}), **{key: value for key, value in tree.items() if not isinstance(value, Mapping)}}
    if "loss" in tree:
        yield {**known, **tree, "model": path[0], "on": path[-1]}
        return
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _scored(value, (*path, key), known)


def _validated(metrics: Sequence[Record], best_step: int | None) -> list[Record]:
    """The start, the best and the last validation of a run that has not been evaluated; the two by the whole set, or by
    the sample where only that saw the best step."""
    lines = [
        {**line, "on": SETS[line["event"]]} for line in metrics if line["event"] in SETS and math.isfinite(line["loss"])
    ]
    start = [line for line in lines if line["step"] == 0]
    whole, sampled = ([line for line in lines if line["on"] == on and line["step"] > 0] for on in SETS.values())
    later = sampled if best_step in _steps(sampled) and best_step not in _steps(whole) else whole or sampled
    best = [line for line in later if line["step"] == best_step] or sorted(later, key=lambda line: line["loss"])
    last = [line for line in later[-1:] if line["step"] != best[0]["step"]]
    named = {"start": start[:1], "best": best[:1], "last": last}
    return [{**line, "model": name} for name, found in named.items() for line in found]


def _steps(lines: Sequence[Record]) -> list[int]:
    return [line["step"] for line in lines]


def _row(scores: Sequence[Record], model: str, on: str) -> Record | None:
    return next((row for row in scores if row["model"] == model and row["on"].startswith(on)), None)


def _best_by(validation: Mapping[str, Any], metrics: Sequence[Record]) -> str | None:
    """What `best` follows; a set that is not larger than the sample is always scored whole."""
    by = validation.get("best_by")
    whole = not any(line["event"] == "validation_sampled" for line in metrics)
    return "validation" if by == "validation_sampled" and whole else by


def _rewards(model: str | None, metrics: Sequence[Record], best_step: int | None) -> Facts | None:
    """What a reward model said of the answers: `rows`, the evaluations to be shown, each with its `name`; `shown`, the
    one whose best and worst answers are: the best checkpoint's, else the last."""
    lines = {line["step"]: line for line in metrics if line["event"] == "reward"}
    if not lines:
        return None
    first, last = min(lines), max(lines)
    highest = max(lines, key=lambda step: lines[step]["mean"])
    names = {last: "last", highest: "highest", best_step: "best", first: "first" if first else "start"}
    rows = [{**lines[step], "name": names[step]} for step in sorted(lines) if step in names]
    shown = best_step if best_step in lines else last
    return {"model": model, "rows": rows, "shown": next(row for row in rows if row["step"] == shown)}


def _cost(steps: Sequence[Record], state: Mapping[str, Any], metrics: Sequence[Record]) -> Facts:
    seconds = state.get("elapsed_seconds") or _last(steps, "seconds")
    tokens = _last(steps, "tokens")
    started = [line for line in metrics if line["event"] == "start"]
    shares = [line["peak_share"] for line in steps if line.get("peak_share")]
    return {
        "seconds": seconds,
        "sessions": len(started),
        "tokens": tokens,
        "epochs": _last(steps, "epoch"),
        "tokens_per_second": tokens / seconds if tokens and seconds else None,
        "step_seconds": _step_seconds(steps),
        "memory_bytes": max((line["memory_bytes"] for line in steps if line.get("memory_bytes")), default=None),
        "peak_share": sum(shares) / len(shares) if shares else None,
        "precision": _last(started, "precision"),
        "micro_batch_size": _last(started, "micro_batch_size"),
    }


def _step_seconds(steps: Sequence[Record]) -> float | None:
    """The mean of the steps alone, without validating, sampling and saving: a line's rate is over its steps."""
    if not steps or not all(line.get("tokens_per_second") and line.get("tokens") for line in steps):
        return None
    before = [0, *(line["tokens"] for line in steps)]
    spent = ((line["tokens"] - seen) / line["tokens_per_second"] for line, seen in zip(steps, before, strict=False))
    return float(sum(spent) / steps[-1]["step"])


def _samples(samples: Sequence[Record]) -> Iterator[Facts]:
    """Prompt by prompt the texts that were written, the latest first."""
    for prompt in dict.fromkeys(sample["prompt"] for sample in samples):
        texts = [sample for sample in samples if sample["prompt"] == prompt]
        last, shown = len(texts) - 1, min(SHOWN_SAMPLES, len(texts))
        places = sorted({round(last * n / max(1, shown - 1)) for n in range(shown)} | {last}, reverse=True)
        yield {"prompt": prompt, "texts": [texts[place] for place in places]}


def _last(lines: Sequence[Record], key: str) -> Any:
    return next((line[key] for line in reversed(lines) if line.get(key) is not None), None)
