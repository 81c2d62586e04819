"""The tables of a run that tunes a model: what it began as, its dialogues, what a reward model says of its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gptlab import words
from gptlab.report.table import Pairs, Table, label, left_out, make_table, put

LEFT_OUT = {
    "cut": "cut",
    "too_long": "too long",
    "unanswered": "unanswered",
    "duplicates": "duplicates",
    "overlapping": "also in validation or test",
}
"""Why rows and turns are not as they were (data/dialogue_counts.py), in the order of the words below the table."""


def tuning(facts: Mapping[str, Any]) -> Pairs:
    """What the run began as, and what of it is trained."""
    if not (tuning := facts["tuning"]):
        return []
    lora = tuning["lora"] or {}
    found = [
        ("tuned from", tuning["start"]),
        ("method", "LoRA" if lora else "the head alone" if tuning["head_alone"] else "all weights"),
        ("layers kept", put(_layers, tuning["keep_layers"])),
        ("rank", put(str, lora.get("rank"))),
        ("alpha", put("{:g}".format, lora.get("alpha"))),
        ("scaling", "rsLoRA: alpha / √rank" if lora.get("rslora") else None),
        ("dropout of the adapters", put("{:g}".format, lora.get("dropout") or None)),
        ("adapters on", ", ".join(lora.get("targets", ()))),
        ("trained beside them", ", ".join(map(label, lora.get("also_train", ())))),
        ("parameters trained", put(_trainable, tuning["trainable"])),
        ("tokens added", put(words.number, tuning["added_tokens"] or None)),
    ]
    return [(what, value) for what, value in found if value]


def trained_in_words(facts: Mapping[str, Any]) -> str | None:
    """`"15,104 of them trained (3.97 %)"`; None where all are, or it is not known."""
    counts = facts["tuning"] and facts["tuning"]["trainable"]
    return f"{words.large(counts['trainable'])} of them trained ({_percent(counts)})" if counts else None


def changes(facts: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(what, before → after, remark) of the scores that the start has too."""
    best, start, rewards = facts["best"], facts["start"], facts["rewards"]
    found = []
    if best and start:
        figure = f"{start['nats']:.3f} → {best['nats']:.3f}"
        what = "cross-entropy" if facts["distillation"] else "loss"
        found.append((f"validation {what} per {facts['unit']}", figure, _span(best["step"])))
    if rewards:
        first, shown = rewards["rows"][0], rewards["shown"]
        begun = [first["mean"]] if first["step"] == 0 < shown["step"] else []
        figure = " → ".join(f"{mean:.3f}" for mean in [*begun, shown["mean"]])
        found.append(("mean reward of its answers", figure, _span(shown["step"]) if begun else ""))
    return found


def reading(dialogues: Mapping[str, Any] | None) -> Pairs:
    """How dialogues become rows."""
    if not dialogues:
        return []
    history, pack = dialogues["history"], dialogues["pack"]
    row = "a window of all dialogues, joined" if pack else "a whole dialogue"
    found = [
        ("template", dialogues["template"]),
        ("learned", "the answers, with what closes each" if dialogues["learn"] == "answers" else "every token"),
        ("a row", f"an answer with at most {history} turns before it" if history else row),
    ]
    return [(what, value) for what, value in found if value]


def dialogue_sources(sources: Sequence[Mapping[str, Any]]) -> Table:
    """What each source of dialogues gave. `percentiles` of the rows' length: 50, 90, 99 and 100 %."""
    apart = any(row.get("dialogues") != row.get("rows") for row in sources)
    counts = {**({"dialogues": "dialogues"} if apart else {}), "rows": "rows", "tokens": "tokens", "learned": "learned"}
    return make_table(sources, [
        ("source", lambda row: row.get("name")),
        ("split", lambda row: row.get("split")),
        *((head, lambda row, key=key: put(words.number, row.get(key))) for key, head in counts.items()),
        ("tokens a row: median, 90 %, 99 %, longest", lambda row: " / ".join(map(words.number, row["percentiles"]))),
        ("cut, left out", lambda row: left_out(row, LEFT_OUT)),
    ])  # fmt: skip


def rewards(facts: Mapping[str, Any]) -> Table:
    """What a reward model said of the answers, and how they are, from first to last."""
    return make_table(facts["rewards"]["rows"] if facts["rewards"] else [], [
        ("model", lambda row: f"{row['name']}, step {words.number(row['step'])}"),
        ("mean reward", lambda row: f"{row['mean']:.3f}"),
        ("95 % interval", lambda row: f"{row['low']:.3f}\u00a0to\u00a0{row['high']:.3f}"),
        ("best, worst answer", lambda row: f"{row['best']['score']:.2f}, {row['worst']['score']:.2f}"),
        ("distinct 1, 2", lambda row: f"{row['distinct_1']:.3f}, {row['distinct_2']:.3f}"),
        ("repetition", lambda row: f"{row['repetition']:.3f}"),
        ("tokens, mean, median", lambda row: f"{row['answer_tokens']:.1f}, {row['answer_tokens_median']:g}"),
        ("ended", lambda row: words.share(row["ended"])),
    ])  # fmt: skip


def _trainable(counts: Mapping[str, int]) -> str:
    parts = [f"{label(key)} {words.number(n)}" for key, n in counts.items() if n and key not in ("trainable", "all")]
    whole = f"{words.number(counts['trainable'])} of {words.number(counts['all'])} ({_percent(counts)})"
    return ": ".join(filter(None, [whole, ", ".join(parts)]))


def _layers(kept: str | Sequence[int]) -> str:
    return "every second" if kept == "every-second" else ", ".join(map(str, kept))


def _percent(counts: Mapping[str, int]) -> str:
    return f"{100 * counts['trainable'] / counts['all']:.2f} %"


def _span(step: int) -> str:
    return f"from the start to step {words.number(step)}"
