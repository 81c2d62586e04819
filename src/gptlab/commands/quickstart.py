"""`gptlab quickstart`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gptlab.run.run import Run
    from gptlab.training.progress import Progress

TUNED = {"quickstart-answers": 0.1, "quickstart-preferences": 0.15}
"""How long learning to answer, and to prefer, lasts beside the pretraining: four minutes of it leave the whole below
six."""

SHOWN = 3
"""So many held-out questions are shown with their answers."""


def quickstart(
    minutes: Annotated[
        float, typer.Option(min=0.1, help="How long to pretrain; what follows takes a third of that.")
    ] = 4.0,
    runs: Annotated[str, typer.Option(help="Where runs are kept.")] = "runs",
) -> None:
    """The whole life of a small GPT, offline, on the documentation that every Python carries.

    Trains a tokenizer and a GPT, scores it, writes with it; teaches it to answer questions, and to tell right answers
    from wrong ones; asks it about what it has never read, and makes reports. The same command again continues what is
    unfinished, and of what is finished shows what came out.
    """
    from gptlab import lab
    from gptlab.training.progress import make_progress

    progress = make_progress()
    command = f"gptlab quickstart --minutes {minutes:g}" + ("" if runs == "runs" else f" --runs {shlex.quote(runs)}")

    def train(recipe: str, share: float, start: Run | None = None) -> Run:
        changes = [f"training.minutes={minutes * share:g}", *([f"start={start.name}"] if start else [])]
        name = _name(recipe, start, Path(runs)) if start else recipe
        return lab.train(recipe, *changes, name=name, runs=runs, progress=progress, command=command)

    progress.say("1. text → tokenizer → tokens, 2. a GPT trained on them (Ctrl-C saves; the same command goes on)")
    base = train("quickstart", 1.0)
    progress.say("\n3. what it writes")
    _write(base, progress)
    progress.say("\n4. it learns to answer: questions about Python with what the documentation says")
    answers = train("quickstart-answers", TUNED["quickstart-answers"], base)
    progress.say("\n5. it learns which of two answers is right: DPO, with answers to other questions as the wrong ones")
    preferences = train("quickstart-preferences", TUNED["quickstart-preferences"], answers)
    progress.say("\n6. questions about packages that it has never read")
    stages = {"pretraining": base, "answers": answers, "preferences": preferences}
    _answer(preferences, progress)
    _judge(stages, progress)
    reports = "\n         ".join(str(run.report_files.html) for run in stages.values())
    progress.say(
        f"\nreport   {reports}\n"
        f"write    gptlab generate {base.folder} 'Return a list of'\n"
        f"talk     gptlab chat {preferences.folder}\n"
        f"your own gptlab train quickstart --name mine --data my-text.txt"
    )


def _name(recipe: str, start: Run, runs: Path) -> str:
    """The recipe's own; numbered, as a fresh run is, where the one of that name began before its start was trained
    longer."""
    from gptlab.run.base import weights_fingerprint
    from gptlab.run.run import Run

    now = weights_fingerprint(start.checkpoint("best"))
    names = chain([recipe], (f"{recipe}-{number}" for number in count(2)))
    return next(name for name in names if Run(runs / name).origin.get("start", {}).get("fingerprint", now) == now)


def _write(run: Run, progress: Progress) -> None:
    """What the run's model writes to its prompts, and how well it predicts."""
    from gptlab.evaluation.samples import SampleSettings, complete
    from gptlab.run.open import open_model
    from gptlab.settings import build
    from gptlab.words import perplexity, share

    best, samples = open_model(run.folder), build(SampleSettings, run.recipe["samples"], str(run.folder))
    for each in complete(
        best.model, best.require_tokenizer(), samples.prompts, samples.sampling, max_new_tokens=samples.max_new_tokens
    ):
        progress.say(f"\n> {each.prompt}{each.text}")
    scores = run.evaluation["best"]["validation"]
    progress.say(
        f"\nvalidation perplexity {perplexity(scores['perplexity'])}: "
        f"{share(scores['perplexity'] / scores['unigram_perplexity'])} of the unigram model's "
        f"{perplexity(scores['unigram_perplexity'])}, which knows only how frequent each token is"
    )


def _answer(run: Run, progress: Progress) -> None:
    """What the run's model, and the one that it started from, answer to held-out questions."""
    from gptlab.data.python_questions import python_questions

    documented = {each.question: each.right for each in python_questions("validation")}
    for each in run.evaluation.get("against_start", {}).get("answers", [])[:SHOWN]:
        progress.say(
            f"\n> {each['prompt']}\n  before DPO     {each['before']}\n  after DPO      {each['after']}\n"
            f"  documentation  {documented[each['prompt']]}"
        )


def _judge(stages: Mapping[str, Run], progress: Progress) -> None:
    """Of how many held-out questions each stage finds the right answer likelier than the wrong one."""
    from gptlab import lab
    from gptlab.words import number, percent

    rows = []
    for stage, run in stages.items():
        scores = lab.evaluate(
            run.folder, on="quickstart-preferences", answers=0, precision="float32", runs=run.folder.parent,
            progress=progress,
        ).metrics  # fmt: skip
        interval = f"{percent(scores['likelier_low'])} to {percent(scores['likelier_high'])}"
        rows.append([f"after {stage}", percent(scores["likelier"]), interval])
    questions = number(scores["pairs"])
    progress.say("")
    progress.table(
        f"how often the right answer is likelier than a wrong one ({questions} held-out questions; by chance 50 %)",
        ["", "right", "95 % interval"], rows,
    )  # fmt: skip
