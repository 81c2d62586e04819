"""`gptlab evaluate`: a model's scores on held-out text or dialogues."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from gptlab.errors import UserError

if TYPE_CHECKING:
    from gptlab.data.splitting import Split
    from gptlab.device import PrecisionName


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a run under --runs, or a name on the hub.")],
    on: Annotated[
        str | None,
        typer.Option(metavar="RECIPE|KIND:PATH", help="corpus:FILE, dialogues:FILE, a recipe; else a run's own."),
    ] = None,
    split: Annotated[str, typer.Option(help="Of a recipe: validation, test or train.")] = "validation",
    answers: Annotated[int, typer.Option(min=0, help="Of dialogues: so many questions are answered.")] = 40,
    reward: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A reward model, or default: it scores forty answers.")
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
    """Loss and perplexity, per token and per word; of a dialogue model also what its answers are like."""
    if split not in ("train", "validation", "test"):
        raise UserError(f"--split {split}: wanted validation, test or train")
    from gptlab import lab
    from gptlab.run.open import parse_checkpoint
    from gptlab.training.progress import Progress, make_progress

    found = lab.evaluate(
        model, on=on, split=cast("Split", split), answers=answers, reward=reward,
        checkpoint=parse_checkpoint(checkpoint), device=device, precision=cast("PrecisionName", precision),
        seed=seed, runs=runs, progress=Progress() if as_json else make_progress(),
    )  # fmt: skip
    if as_json:
        print(json.dumps({"metrics": found.metrics}))
        return
    typer.echo(f"{found.model} on {found.on}")
    width = max(map(len, found.metrics))
    for name, value in found.metrics.items():
        words = f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 10 else f"{value:.4f}"
        typer.echo(f"  {name:<{width}}  {words}")
    for each in found.answers[:3]:
        typer.echo(f"  {each.whole}")
