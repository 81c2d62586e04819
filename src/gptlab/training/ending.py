"""The scores of a finished run, as evaluation.json keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptlab.data.batch import TextRows
from gptlab.errors import TrainingStopped
from gptlab.evaluation.scores import Scorer, unigram_loss
from gptlab.objectives.base import exp
from gptlab.run.open import load_weights
from gptlab.run.run import Run
from gptlab.training.loop import Engine
from gptlab.training.prepare import Prepared
from gptlab.training.progress import Progress
from gptlab.words import number, perplexity


def evaluate_ends(run: Run, engine: Engine, data: Prepared, runs: Path, progress: Progress) -> dict[str, Any]:
    """The whole validation set by the best and the last checkpoint (and what a start was worth), and the test set,
    once, by the best.

    TrainingStopped where there is no best one, since no loss on validation was finite.
    """
    if run.state.get("best") is None:
        raise TrainingStopped(
            f"{run.folder}: the loss on validation was never finite. Try a third of optimizer.learning_rate"
        )
    context, vocab_size = data.rows.context, data.tokenizer.vocab_size
    scorer = Scorer(engine.objective, engine.device, engine.precision, engine.micro_batch_size)
    best, last = run.checkpoint("best"), run.checkpoint("last")
    scored = {line["step"]: line for line in run.metrics("validation")}
    scores: dict[str, Any] = {"context": context, "stride": context}
    splits = {name: rows for name, rows in (("validation", data.validation), ("test", data.test)) if rows}
    trained = data.rows.targets_array()
    unigram = {name: exp(unigram_loss(trained, rows.targets_array(), vocab_size)) for name, rows in splits.items()}

    def finish(values: Mapping[str, Any], split: str) -> dict[str, float]:
        of_the_run = ("event", "step", "seconds")
        return {key: v for key, v in values.items() if key not in of_the_run} | {"unigram_perplexity": unigram[split]}

    def score(checkpoint: Path, split: str, rows: TextRows) -> dict[str, float]:
        values = scored.get(int(checkpoint.name)) if split == "validation" else None
        if values is None:
            model = load_weights(checkpoint, device=engine.device, runs=runs, context=context)
            with progress.busy(f"scoring {split} by step {checkpoint.name}") as tell:
                values = scorer.text(model, rows, lambda done, total: tell(f"{done:,}/{total:,} rows"))
        return finish(values, split)

    if 0 in scored:
        scores["start"] = {"step": 0, "validation": finish(scored[0], "validation")}
    for which, checkpoint in {"best": best, **({} if last == best else {"last": last})}.items():
        scores[which] = {"step": int(checkpoint.name), "validation": score(checkpoint, "validation", data.validation)}
    if data.test:
        scores["best"]["test"] = score(best, "test", data.test)
    return scores


def in_words(scores: dict[str, Any]) -> str:
    """The best checkpoint's scores, a line a split, with everything named that they depend on."""
    best = scores["best"]
    return "\n".join(
        f"{split}, step {number(best['step'])}: perplexity {perplexity(found['perplexity'])} per token (unigram model "
        f"{perplexity(found['unigram_perplexity'])}), {perplexity(found['perplexity_per_word'])} per word, "
        f"{found['bits_per_byte']:.3f} bits per byte; {number(found['tokens'])} tokens scored, context "
        f"{scores['context']}, stride {scores['stride']}"
        for split in ("validation", "test")
        if (found := best.get(split))
    )
