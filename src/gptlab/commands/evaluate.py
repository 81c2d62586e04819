"""`gptlab evaluate`: a model's scores on held-out text, dialogues, labels or pairs, or on a published test."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from gptlab.errors import UserError
from gptlab.words import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gptlab.data.splitting import Split
    from gptlab.device import PrecisionName

MANY_ROWS = 20
"""Longer tables are left to --json."""

SHOWN_ANSWERS = 3


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a run under --runs, or a name on the hub.")],
    on: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE|KIND:PATH",
            help="corpus:, dialogues:, labels:, preferences:FILE, blimp, lambada, hellaswag, a recipe; else its run's.",
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Of a recipe: validation, test or train.")] = "validation",
    answers: Annotated[int, typer.Option(min=0, help="Of dialogues, or --against: so many prompts are answered.")] = 40,
    reward: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A reward model, or default: it scores what is answered.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="MODEL", help="What it was tuned from, say: both answer the same prompts.")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Of a classifier: what it says of each text, .csv .tsv .jsonl.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else there.")] = False,
    checkpoint: Annotated[
        str | None, typer.Option(metavar="best|last|STEP", help="Of a run; best if there is.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="The same seed writes the same answers.")] = 0,
    runs: Annotated[Path, typer.Option(metavar="DIR", help="Where runs are.")] = Path("runs"),
) -> None:
    """Loss and perplexity, per token and per word; of a dialogue model also what its answers are like.

    Of a classifier accuracy, Matthews' correlation and F1, with 95 % intervals, by class, and what was taken for what.
    Of pairs how often the chosen answer has the higher reward, or is the likelier one.
    """
    if split not in ("train", "validation", "test"):
        raise UserError(f"--split {split}: wanted validation, test or train")
    from gptlab import lab
    from gptlab.run.open import parse_checkpoint
    from gptlab.training.progress import Progress, make_progress

    progress = Progress() if as_json else make_progress()
    found = lab.evaluate(
        model, on=on, split=cast("Split", split), answers=answers, reward=reward, against=against,
        predictions=predictions, checkpoint=parse_checkpoint(checkpoint), device=device,
        precision=cast("PrecisionName", precision), seed=seed, runs=runs, progress=progress,
    )  # fmt: skip
    if as_json:
        print(json.dumps({"metrics": found.metrics}))
        return
    typer.echo(f"{found.model} on {found.on}")
    lines = {name: _words(name, found.metrics) for name in found.metrics}
    width = max(len(name) for name, words in lines.items() if words)
    for name, words in lines.items():
        if words:
            typer.echo(f"  {name:<{width}}  {words}")
    for title, columns, rows in _tables(found.metrics):
        if len(rows) <= MANY_ROWS:
            progress.table(title, columns, rows)
        else:
            typer.echo(f"{title}: {len(rows)} rows, which --json has")
    if predictions:
        typer.echo(f"predictions in {predictions}")
    for each in found.answers[:SHOWN_ANSWERS]:
        typer.echo(f"  {each.whole}")
    if "against" in found.metrics:
        _side_by_side(found.metrics["against"])


def _words(name: str, metrics: Mapping[str, Any]) -> str:
    """A number or a name as it is printed, with its interval; "" for what belongs to another line or into a table."""
    value = metrics[name]
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping | list) or name.endswith(("_low", "_high")):
        return ""
    if f"{name}_low" in metrics:
        return f"{_number(value)}  95 %: {_number(metrics[f'{name}_low'])} to {_number(metrics[f'{name}_high'])}"
    return _number(value)


def _number(value: float) -> str:
    whole = isinstance(value, int) or (value.is_integer() and abs(value) >= 10)
    return f"{value:,.0f}" if whole else f"{value:.4f}"


def _tables(metrics: Mapping[str, Any]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """(title, columns, rows) of the scores by class or by group, of the confusion matrix, of how well a reward's
    differences are calibrated, and of a comparison."""
    special = {"calibration": _calibration, "against": _comparison}
    for name, groups in metrics.items():
        if name in special:
            yield special[name](groups)
        elif isinstance(groups, Mapping):
            scores = {group: of if isinstance(of, Mapping) else {"accuracy": of} for group, of in groups.items()}
            columns = ["", *next(iter(scores.values()))]
            yield name.replace("_", " "), columns, [[group, *map(_number, of.values())] for group, of in scores.items()]
    if "confusion" in metrics:
        labels = list(metrics["per_class"])
        rows = zip(labels, metrics["confusion"], strict=True)
        yield "confusion", ["true \\ predicted", *labels], [[label, *map(_number, row)] for label, row in rows]


def _calibration(found: Mapping[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    rows = [
        [
            f"{each['low']:.2f} to {each['high']:.2f}",
            *(_number(each[name]) for name in ("pairs", "confidence", "accuracy")),
        ]
        for each in found["bins"]
    ]
    return f"calibration, error {_number(found['error'])}", ["confidence", "pairs", "mean", "accuracy"], rows


def _comparison(found: Mapping[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    """Before and after, with 95 % intervals in parentheses."""
    rows = []
    if reward := found.get("reward"):
        difference = f"{reward['difference']:+.4f} ({reward['low']:+.4f} to {reward['high']:+.4f})"
        rows.append(["reward", _with_interval("before", reward), _with_interval("after", reward), difference])
        rows.append(["win rate", "", _with_interval("win_rate", found), f"{_number(found['ties'])} ties"])
    measured = {"answer tokens": found["answer_tokens"], "ended": found["ended"]}
    if other := found.get("other_text"):
        measured[f"perplexity, {other['name']}"] = other["perplexity"]
    for name, of in measured.items():
        rows.append([name, _number(of["before"]), _number(of["after"]), f"{of['after'] - of['before']:+.4f}"])
    rows.append(["KL, nats a token", "", _number(found["kl"]), ""])
    title = f"against {found['start']}, {_number(found['prompts'])} prompts"
    return title, ["", "before", "after", "difference"], rows


def _with_interval(name: str, scores: Mapping[str, Any]) -> str:
    return f"{_number(scores[name])} ({_number(scores[f'{name}_low'])} to {_number(scores[f'{name}_high'])})"


def _side_by_side(found: Mapping[str, Any]) -> None:
    """The first prompts, with the answers of both models beside each other."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 1, 0), expand=True)
    for name in ("prompt", "before", "after"):
        table.add_column(name, ratio=1, overflow="fold")
    for each in found["answers"][:SHOWN_ANSWERS]:
        table.add_row(*(Text(printable(each[name])) for name in ("prompt", "before", "after")))
    Console(highlight=False, markup=False).print(table)
