"""`gptlab quickstart`."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer


def quickstart(
    minutes: Annotated[float, typer.Option(min=0.1, help="How long to train.")] = 4.0,
    runs: Annotated[str, typer.Option(help="Where runs are kept.")] = "runs",
) -> None:
    """The whole life of a small GPT, offline, on the documentation that every Python carries.

    Trains a tokenizer, trains a GPT, scores it, writes with it and makes a report. The same command again
    continues an unfinished run, and of a finished one shows what came out.
    """
    from gptlab import lab
    from gptlab.evaluation.samples import SampleSettings, complete
    from gptlab.run.open import open_model
    from gptlab.settings import build
    from gptlab.training.progress import make_progress
    from gptlab.words import perplexity

    progress = make_progress()
    progress.say("1. text → tokenizer → tokens, 2. a GPT trained on them (Ctrl-C saves; the same command goes on)")
    run = lab.train(
        "quickstart", f"training.minutes={minutes}", runs=runs, progress=progress,
        command=f"gptlab quickstart --minutes {minutes:g}" + ("" if runs == "runs" else f" --runs {shlex.quote(runs)}"),
    )  # fmt: skip
    progress.say("\n3. what it writes")
    best, samples = open_model(run.folder), build(SampleSettings, run.recipe["samples"], str(run.folder))
    for each in complete(
        best.model, best.require_tokenizer(), samples.prompts, samples.sampling, max_new_tokens=samples.max_new_tokens
    ):
        progress.say(f"\n> {each.prompt}{each.text}")
    scores = run.evaluation["best"]["validation"]
    share = scores["perplexity"] / scores["unigram_perplexity"]
    progress.say(
        f"\nvalidation perplexity {perplexity(scores['perplexity'])}: {share:.0%} of the unigram model's "
        f"{perplexity(scores['unigram_perplexity'])}, which knows only how frequent each token is\n"
        f"report   {run.report_files.html}\n"
        f"write    gptlab generate {run.folder} 'Return a list of'\n"
        f"your own gptlab train quickstart --name mine --data my-text.txt"
    )
