"""`gptlab quickstart`."""

from __future__ import annotations

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
    from gptlab.evaluation.samples import complete
    from gptlab.generation.sampling import Sampling
    from gptlab.run.open import open_model
    from gptlab.training.progress import make_progress
    from gptlab.words import perplexity

    progress = make_progress()
    progress.say("1. text → tokenizer → tokens, 2. a GPT trained on them (Ctrl-C saves; the same command goes on)")
    run = lab.train(
        "quickstart", f"training.minutes={minutes}", runs=runs, progress=progress,
        command=f"gptlab quickstart --minutes {minutes:g}",
    )  # fmt: skip
    scores = run.evaluation["best"]["validation"]
    progress.say("\n3. what it writes")
    model = open_model(str(run.folder))
    prompts = run.recipe["samples"]["prompts"]
    for each in complete(
        model.model, model.require_tokenizer(), prompts, Sampling(temperature=0.7, top_k=40), max_new_tokens=60
    ):
        progress.say(f"\n> {each.prompt}{each.text}")
    ratio = scores["unigram_perplexity"] / scores["perplexity"]
    progress.say(
        f"\nvalidation perplexity {perplexity(scores['perplexity'])} per token; {ratio:.1f} times as much is that of "
        f"the unigram model, which knows only how frequent each token is: {perplexity(scores['unigram_perplexity'])}\n"
        f"report   {run.report_files.html}\n"
        f"write    gptlab generate {run.folder} 'Return a list of'\n"
        f"your own gptlab train quickstart --name mine --data my-text.txt"
    )
