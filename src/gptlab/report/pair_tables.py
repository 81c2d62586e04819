"""The tables of a run on pairs: what a reward model, or DPO's policy, makes of them, and what the sources gave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from gptlab import words
from gptlab.report import comparison_tables, tuning_tables
from gptlab.report.class_tables import SETS
from gptlab.report.intervals import ends, interval, joined, percent, score, with_interval
from gptlab.report.table import Pairs, Table, left_out, make_table, put, step_name

LEFT_OUT = {
    "prompt_cut": "prompts cut",
    "answers_cut": "answers cut",
    "equal": "with equal answers",
    "cut_equal": "made equal by cutting",
    "duplicates": "duplicates",
    "overlapping": "whose prompt is also in validation or test",
}
"""Why pairs are not as they were, or left out (data/preference_counts.py), in the order of the words below them."""


class Loss(NamedTuple):
    """What is descended of a pair, whose it is, and what an answer's reward is (objectives/dpo.py, reward.py)."""

    formula: str
    paper: str
    reward: str


LAST_TOKEN = "what the head says at the answer's last token"
LOG_RATIO = "β · (ln π(answer) − ln reference(answer))"
LOSSES = {
    "reward": Loss("−ln σ(margin)", "Bradley and Terry 1952, Ouyang et al. 2022", LAST_TOKEN),
    "sigmoid": Loss("−ln σ(margin)", "Rafailov et al. 2023", LOG_RATIO),
    "ipo": Loss("(h − 1/(2β))²; h: the difference of log-ratios per token", "Azar et al. 2023", LOG_RATIO),
    "simpo": Loss("−ln σ(margin − γ)", "Meng, Xia and Chen 2024", "β · ln π(answer) / its tokens"),
}
SMOOTHED = Loss("−(1 − ε) · ln σ(margin) − ε · ln σ(−margin)", "Rafailov et al. 2023, Mitchell 2023", LOG_RATIO)


def key_figures(facts: Mapping[str, Any]) -> list[tuple[str, str | None, str]]:
    """(what, figure, remark): what the start was, where it was scored; accuracy beside what needs no model, and margin;
    of DPO how its answers compare with its start's."""
    found: list[tuple[str, str | None, str]] = list(tuning_tables.changes(facts))
    for split, row in (("validation", facts["best"]), ("test", facts["test"])):
        if row is None:
            continue
        longer = put(lambda share: f"guessing 50\u00a0%, the longer answer {percent(share)}", row["longer_accuracy"])
        found += [
            (f"{split} accuracy", put(percent, row.get("accuracy")), joined(longer, interval(row, "accuracy"))),
            (f"{split} margin", put(score, row.get("margin")), joined(interval(row, "margin"))),
        ]
    if shown := facts["preferences"]["shown"]:
        error = percent(shown["calibration"]["error"])
        found.append(("calibration error", error, f"of its confidence, on the {shown['on']} set"))
    return [*found, *comparison_tables.key_figures(facts)]


def verdicts(facts: Mapping[str, Any]) -> list[str]:
    """A sentence for each set on which the best model may be guessing, or may know no more than which answer is longer;
    and one where its answers are no better than its start's."""
    if not facts["preferences"]:
        return []
    rows = [row for row in (facts["best"], facts["test"]) if row and "accuracy" in row]
    sentences = [f"On {SETS[row['on']]} it {fault}." for row in rows for fault in _faults(row)]
    return [*sentences, *comparison_tables.verdicts(facts)]


def objective(facts: Mapping[str, Any]) -> Pairs:
    """What is descended, and what DPO was set to."""
    if not (preferences := facts["preferences"]):
        return []
    settings, reference = preferences["settings"], preferences["reference"]
    kind, smoothing = settings.get("loss"), settings.get("label_smoothing")
    loss = SMOOTHED if smoothing else LOSSES[kind or "reward"]
    found = [
        ("loss", kind),
        ("loss of a pair", f"{loss.formula} ({loss.paper})"),
        ("margin", "the chosen answer's reward − the rejected one's"),
        ("reward of an answer", loss.reward),
        ("β", put("{:g}".format, settings.get("beta"))),
        ("ε, label smoothing", put("{:g}".format, smoothing) if kind == "sigmoid" else None),
        ("γ, the margin wanted", put("{:g}".format, settings.get("gamma")) if kind == "simpo" else None),
        ("reference", "none" if kind == "simpo" else reference.get("name")),
        ("its weights", reference.get("fingerprint")),
    ]
    return [(what, value) for what, value in found if value]


def scores(facts: Mapping[str, Any]) -> Table:
    """One row for each model and set of pairs scored; no accuracy without that of who only looks at lengths."""
    return make_table(facts["scores"], [
        ("model", step_name),
        ("on", lambda row: row["on"]),
        ("pairs", lambda row: put(words.number, row.get("pairs", row.get("tokens")))),
        ("loss", lambda row: put("{:.4f}".format, row.get("loss"))),
        ("accuracy [95\u00a0%]", lambda row: with_interval(row, "accuracy")),
        ("always the longer", lambda row: put(percent, row["longer_accuracy"])),
        ("margin [95\u00a0%]", lambda row: with_interval(row, "margin")),
        ("calibration error", lambda row: put(lambda found: percent(found["error"]), row.get("calibration"))),
    ])  # fmt: skip


def answers(facts: Mapping[str, Any]) -> Table:
    """What each of DPO's models gives the two answers of a pair, in the mean. (A reward model's rewards say nothing but
    their difference.)"""
    sides = {
        "reward of the chosen": "chosen_reward",
        "reward of the rejected": "rejected_reward",
        "ln π of the chosen, a token": "chosen_log_prob",
        "ln π of the rejected, a token": "rejected_log_prob",
    }
    return make_table(facts["scores"] if _is_dpo(facts) else [], [
        ("model", step_name),
        ("on", lambda row: row["on"]),
        *((head, lambda row, key=key: put(score, row.get(key))) for head, key in sides.items()),
        ("KL estimate, a token", lambda row: put("{:.4f}".format, row.get("kl"))),
    ])  # fmt: skip


def calibration(facts: Mapping[str, Any]) -> Table:
    """How sure the shown model is of its preferences, and how often it is right."""
    shown = facts["preferences"] and facts["preferences"]["shown"]
    return make_table(shown["calibration"]["bins"] if shown else [], [
        ("confidence", lambda row: f"{100 * row['low']:g}–{100 * row['high']:g}\u00a0%"),
        ("pairs", lambda row: words.number(row["pairs"])),
        ("mean confidence", lambda row: percent(row["confidence"])),
        ("accuracy", lambda row: percent(row["accuracy"])),
    ])  # fmt: skip


def sources(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What each source of pairs gave. `percentiles` of the longer sequence of each pair: 50, 90, 99 and 100 %."""
    return make_table(rows, [
        ("source", lambda row: row.get("name")),
        ("split", lambda row: row.get("split")),
        ("pairs", lambda row: put(words.number, row.get("pairs"))),
        ("tokens", lambda row: put(words.number, row.get("tokens"))),
        (
            "tokens of the longer side: median, 90 %, 99 %, longest",
            lambda row: put(lambda lengths: " / ".join(map(words.number, lengths)), row.get("percentiles")),
        ),
        ("cut, left out", lambda row: left_out(row, LEFT_OUT)),
    ])  # fmt: skip


def reading(facts: Mapping[str, Any]) -> Pairs:
    """How pairs become rows, and how much longer each source's chosen answers are: that alone can be learned too."""
    if not (preferences := facts["preferences"]):
        return []
    found = [
        ("template", preferences["template"]),
        ("a row", "a pair: a prompt with its chosen and its rejected answer"),
        *(
            (f"lengths in {row['name']}, {row['split']}", _length_bias(row))
            for row in facts["sources"]
            if row.get("pairs")
        ),
    ]
    return [(what, value) for what, value in found if value]


def _is_dpo(facts: Mapping[str, Any]) -> bool:
    return bool(facts["preferences"]) and facts["preferences"]["objective"] == "dpo"


def _faults(row: Mapping[str, Any]) -> Iterator[str]:
    """What speaks against an accuracy, to stand after "it"."""
    accuracy, longer, found = row["accuracy"], row["longer_accuracy"], ends(row, "accuracy")
    span = " to ".join(found or ())
    guessing = found is not None and row["accuracy_low"] <= 0.5 <= row["accuracy_high"]
    if guessing:
        yield f"cannot be told apart from guessing: the interval of its accuracy, {span}\u00a0%, includes 50\u00a0%"
    elif found and accuracy < 0.5:
        yield f"is worse than guessing: it prefers the rejected answer in {percent(1 - accuracy)} of the pairs"
    if longer is None:
        return
    rule, share = ("longer", longer) if longer >= 0.5 else ("shorter", 1 - longer)
    by_length = f"always preferring the {rule} answer ({percent(share)})"
    if accuracy <= share:
        yield f"does not beat {by_length}"
    elif found and not guessing and row["accuracy_low"] <= share:
        yield f"may be no better than {by_length}, which lies in the interval of its accuracy, {span}\u00a0%"


def _length_bias(row: Mapping[str, Any]) -> str:
    longer, as_long, chosen, rejected = (
        row[key] / row["pairs"] for key in ("longer", "as_long", "chosen_tokens", "rejected_tokens")
    )
    equal = f", as long in {percent(as_long)}" if as_long else ""
    return (
        f"the chosen answer is longer in {percent(longer)} of the pairs{equal}; {chosen:.1f} against {rejected:.1f} "
        "tokens in the mean"
    )
