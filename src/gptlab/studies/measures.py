"""What the numbers of runs are called, and how each is written."""

from __future__ import annotations

from gptlab import words
from gptlab.report.intervals import SHARES, percent
from gptlab.report.table import label

NAMES = {
    "f1": "macro F1",
    "kl": "KL from its start",
    "last_training_loss": "last training loss",
    "matthews": "Matthews' correlation",
    "memory_bytes": "peak memory",
    "reward": "mean reward",
    "seconds": "training time",
    "tokens_per_second": "tokens a second",
    "trainable": "parameters trained",
    "training_loss": "mean training loss",
    "win_rate": "win rate",
}

COUNTS = ("best_step", "steps", "tokens", "parameters", "trainable", "tokens_per_second")


def name_of(measure: str) -> str:
    """`"memory_bytes"` → `"peak memory"`."""
    return NAMES.get(measure, label(measure))


def text_of(measure: str, value: float) -> str:
    """A value in the words that fit its measure: `"890 MB"`, `"74.1 %"`, `"160.61"`."""
    if measure in SHARES:
        return percent(value)
    if measure.endswith("bytes"):
        return words.size(value)
    if measure == "seconds":
        return words.duration(value)
    if measure in COUNTS:
        return words.number(round(value))
    return f"{value:.4f}" if abs(value) < 10 and not measure.startswith("perplexity") else words.perplexity(value)


def difference_of(measure: str, value: float) -> str:
    """A difference, with its sign; of shares in points of a per cent."""
    sign = "-" if value < 0 else "+"
    return f"{sign}{100 * abs(value):.1f} points" if measure in SHARES else f"{sign}{text_of(measure, abs(value))}"


def spread_of(measure: str, value: float) -> str:
    """A standard deviation; of shares in points of a per cent."""
    return difference_of(measure, value).lstrip("+")


def span_of(measure: str, low: float, high: float) -> str:
    """The ends of an interval: `"71.4 to 76.7 %"`."""
    if measure in SHARES:
        return join_ends(f"{100 * low:.1f}", percent(high))
    return join_ends(text_of(measure, low), text_of(measure, high))


def join_ends(low: str, high: str) -> str:
    """`"71.4 to 76.7"`, which no line breaks."""
    return f"{low} to {high}".replace(" ", "\u00a0")


def count_of(number: int, what: str) -> str:
    """`"1 seed"`, `"3 seeds"`."""
    return f"{words.number(number)} {what}{'' if number == 1 else 's'}"
