"""What a run says of itself while it runs: nothing, plain lines, or a bar where there is a terminal or a notebook."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from html import escape
from typing import Any, TextIO

from gptlab.evaluation.samples import TextCompletion
from gptlab.words import aligned, duration, perplexity, share, size

LINE_SECONDS = 10
"""Where there is no terminal a line of a training step is printed at most so often."""


class Progress:
    """Says nothing. Its subclasses print; the library itself never does."""

    def say(self, text: str) -> None:
        """One sentence a person should read."""

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A small table; columns beyond the first are numbers where they look like it."""

    def busy(self, what: str) -> AbstractContextManager[Callable[[str], None]]:
        """While something of unknown length happens; what is yielded takes a word on how far it is."""
        return nullcontext(lambda text: None)

    def length(self, step: int, total: int | None, seconds: float) -> None:
        """The run's length is known, or known better."""

    def step(self, record: dict[str, Any], total: int | None) -> None:
        """A line of the metrics."""

    def evaluating(self, done: int, total: int) -> None:
        """`done` of `total` rows have been scored."""

    def evaluated(self, event: str, step: int, scores: dict[str, float]) -> None:
        """A validation is finished."""

    def judged(self, step: int, scores: Mapping[str, Any]) -> None:
        """A reward model has scored answers."""

    def sampled(self, step: int, completions: Sequence[TextCompletion]) -> None:
        """Samples were written."""

    def end(self) -> None:
        """No more steps come."""


class LineProgress(Progress):
    """Plain lines, for logs and pipes."""

    def __init__(self, file: TextIO | None = None) -> None:
        self.file = file or sys.stdout
        self._last_line = 0.0

    def say(self, text: str) -> None:
        print(text, file=self.file, flush=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self.say(_plain_table(title, columns, rows))

    @contextmanager
    def busy(self, what: str) -> Iterator[Callable[[str], None]]:
        started = time.monotonic()
        last = started

        def tell(text: str) -> None:
            nonlocal last
            if time.monotonic() - last > LINE_SECONDS:
                self.say(f"{what}: {text}")
                last = time.monotonic()

        yield tell

    def length(self, step: int, total: int | None, seconds: float) -> None:
        if total and step:
            self.say(f"step {step:,}: {total:,} steps in all, about {duration(seconds / step * (total - step))} to go")

    def step(self, record: dict[str, Any], total: int | None) -> None:
        if time.monotonic() - self._last_line > LINE_SECONDS:
            self._last_line = time.monotonic()
            self.say(_step_line(record, total))

    def evaluated(self, event: str, step: int, scores: dict[str, float]) -> None:
        self.say(_scores_line(event, step, scores))

    def judged(self, step: int, scores: Mapping[str, Any]) -> None:
        self.say(
            f"step {step:,} · reward of the answers: mean {scores['mean']:.3f} (95 %: {scores['low']:.3f} to "
            f"{scores['high']:.3f}), best {scores['best']['score']:.2f}, worst {scores['worst']['score']:.2f}; "
            f"{scores['ended']:.0%} ended by themselves"
        )

    def sampled(self, step: int, completions: Sequence[TextCompletion]) -> None:
        text = completions[0].whole.replace("\n", " ")
        self.say(f"step {step:,} · it writes: {text[:200]}")


class TerminalProgress(LineProgress):
    """A bar with loss, validation loss, items a second, share of the machine's peak, memory and time left."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console

        self.console = Console()
        self._bar: Any = None
        self._task: Any = None
        self._validation = ""

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        from rich.table import Table

        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for i, column in enumerate(columns):
            table.add_column(column, justify="right" if _numeric(rows, i) else "left")
        for row in rows:
            table.add_row(*row)
        self.console.print(table, markup=False, highlight=False)

    @contextmanager
    def busy(self, what: str) -> Iterator[Callable[[str], None]]:
        if self._bar is not None:  # two live displays do not go together
            self._bar.update(self._task, doing=what)
            yield lambda text: self._bar.update(self._task, doing=f"{what}: {text}")
            self._bar.update(self._task, doing="")
            return
        with self.console.status(what) as status:
            yield lambda text: status.update(f"{what}: {text}")

    def step(self, record: dict[str, Any], total: int | None) -> None:
        if self._bar is None:
            self._start(record["step"], total)
        self._bar.update(self._task, completed=record["step"], total=total, words=_bar_words(record) + self._validation)

    def _start(self, step: int, total: int | None) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            BarColumn(20), TextColumn("{task.completed:,.0f}/{task.total:,.0f}" if total else "{task.completed:,.0f}"),
            TextColumn("{task.fields[words]}"), TimeRemainingColumn(compact=True), TextColumn("{task.fields[doing]}"),
            console=self.console, transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=total, completed=step, words="", doing="")
        self._bar.start()

    def length(self, step: int, total: int | None, seconds: float) -> None:
        self.end()
        super().length(step, total, seconds)

    def evaluating(self, done: int, total: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, doing=f"validating {done:,}/{total:,}" if done < total else "")

    def evaluated(self, event: str, step: int, scores: dict[str, float]) -> None:
        self._validation = f" · validation {scores['loss']:.3f}{_accuracy(scores, ', ')}"
        super().evaluated(event, step, scores)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class NotebookProgress(LineProgress):
    """Plain lines, and before them in the cell's output a bar that is kept up to date.

    It is an output that is replaced, no widget: those are not installed everywhere, and while rich's thread writes to
    one, it takes in and loses what is printed.
    """

    def __init__(self) -> None:
        super().__init__()
        self._output: Any = None
        self._shown_at = 0.0
        self._bar = self._words = self._doing = ""

    @contextmanager
    def busy(self, what: str) -> Iterator[Callable[[str], None]]:
        self._show(doing=what)
        yield lambda text: self._show(doing=f"{what}: {text}", seldom=True)
        self._show(doing="")

    def step(self, record: dict[str, Any], total: int | None) -> None:
        self._bar = f'<progress value="{record["step"]}" max="{total}"></progress> ' if total else ""
        self._words = _step_line(record, total)
        self._show(seldom=True)

    def evaluating(self, done: int, total: int) -> None:
        self._show(doing=f"validating {done:,}/{total:,}" if done < total else "", seldom=True)

    def end(self) -> None:
        self._show(doing="")

    def _show(self, *, doing: str | None = None, seldom: bool = False) -> None:
        """`seldom`: where it is one of many, a few times a second."""
        from IPython.display import HTML, display

        self._doing = self._doing if doing is None else doing
        if seldom and time.monotonic() - self._shown_at < 0.2:
            return
        self._shown_at = time.monotonic()
        shown = HTML(self._bar + escape(" · ".join(filter(None, (self._words, self._doing)))))
        if self._output is None:
            self._output = display(shown, display_id=True)
        else:
            self._output.update(shown)


def in_a_notebook() -> bool:
    """Whether a notebook's kernel runs this; its package may also be loaded by what only starts one."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def make_progress() -> Progress:
    """A bar on a terminal or in a notebook, else plain lines."""
    if in_a_notebook():
        return NotebookProgress()
    return TerminalProgress() if sys.stdout.isatty() else LineProgress()


def _bar_words(record: Mapping[str, Any]) -> str:
    peak = f" ({share(record['peak_share'])} of peak)" if "peak_share" in record else ""
    unit = (
        "texts" if "matthews" in record else "pairs" if "margin" in record else "tokens"
    )  # what a step's weight counts
    rate = f"{record['tokens_per_second']:,.{0 if record['tokens_per_second'] >= 10 else 1}f} {unit}/s{peak}"
    entropy = f" (cross-entropy {record['cross_entropy']:.3f})" if "cross_entropy" in record else ""
    accuracy = _accuracy(record, " · accuracy ")
    return f"loss {record['loss']:.3f}{entropy}{accuracy} · {rate} · {size(record['memory_bytes'])}"


def _accuracy(scores: Mapping[str, Any], before: str) -> str:
    """A classifier's accuracy, or how often a chosen answer is above the rejected one, 0.741 as "74.1 %"; of a language
    model nothing."""
    return f"{before}{100 * scores['accuracy']:.1f} %" if "accuracy" in scores else ""


def _step_line(record: Mapping[str, Any], total: int | None) -> str:
    step = record["step"]
    if not total:
        return f"step {step:,} · {_bar_words(record)}"
    left = duration(record["seconds"] / step * (total - step))
    return f"step {step:,}/{total:,} · {_bar_words(record)} · {left} left"


def _scores_line(event: str, step: int, scores: Mapping[str, float]) -> str:
    names = {"validation": "validation", "validation_sampled": "validation, sampled"}
    words = f"step {step:,} · {names.get(event, event)}: loss {scores['loss']:.4f}"
    if "cross_entropy" in scores:
        words += f" (cross-entropy {scores['cross_entropy']:.4f})"
    words += _accuracy(scores, ", accuracy ")
    if "margin" in scores:
        words += f", margin {scores['margin']:.4f}"
    if "matthews" in scores:
        words += f", Matthews {scores['matthews']:.3f}, F1 {scores['f1']:.3f}"
    if "perplexity" in scores:
        words += f", perplexity {perplexity(scores['perplexity'])} per token"
    if "perplexity_per_word" in scores:
        words += f", {perplexity(scores['perplexity_per_word'])} per word, {scores['bits_per_byte']:.3f} bits per byte"
    return words


def _plain_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = aligned([columns, *rows], [_numeric(rows, i) for i in range(len(columns))])
    return "\n".join([title, *(f"  {line}" for line in lines)])


def _numeric(rows: Sequence[Sequence[str]], column: int) -> bool:
    """Whether a column holds numbers, which stand to the right."""
    return column > 0 and all(row[column][:1].isdigit() or not row[column] for row in rows)
