"""The scores of a finished run, as evaluation.json keeps them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptlab.data.windows import ScoredWindows
from gptlab.errors import TrainingStopped
from gptlab.evaluation.scores import Scorer, unigram_loss
from gptlab.model.huggingface import load_model
from gptlab.objectives.base import exp
from gptlab.run.run import Run
from gptlab.training.loop import Engine
from gptlab.training.prepare import Prepared
from gptlab.training.progress import Progress
from gptlab.words import number, perplexity


def evaluate_ends(run: Run, engine: Engine, data: Prepared, progress: Progress) -> dict[str, Any]:
    """The whole validation set by the best and the last checkpoint, and the test set, once, by the best.

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

    unigram = {
        text: exp(unigram_loss(data.corpus.train.tokens, text.file.tokens, vocab_size))
        for text in (data.validation, data.test)
        if text
    }

    def score(checkpoint: Path, split: str, text: ScoredWindows) -> dict[str, float]:
        values = scored.get(int(checkpoint.name)) if split == "validation" else None
        if values is None:
            model = load_model(checkpoint, device=engine.device)
            with progress.busy(f"scoring {split} by step {checkpoint.name}") as tell:
                values = scorer.text(model, text, lambda done, total: tell(f"{done:,}/{total:,} rows"))
        of_the_run = ("event", "step", "seconds")
        return {key: v for key, v in values.items() if key not in of_the_run} | {"unigram_perplexity": unigram[text]}

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
