"""The scores of a finished run, as evaluation.json keeps them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gptlab.data.splitting import Split
from gptlab.errors import TrainingStopped
from gptlab.evaluation.classification_scores import class_logits, classification_scores
from gptlab.evaluation.scores import Scorer, unigram_loss
from gptlab.model.folder import Model
from gptlab.objectives.base import exp
from gptlab.run.open import load_weights
from gptlab.run.run import Run
from gptlab.training.loop import Engine
from gptlab.training.pair_ending import Comparing, Score, pair_scores
from gptlab.training.prepare import Prepared
from gptlab.training.progress import Progress
from gptlab.words import number, percent, perplexity


def evaluate_ends(
    run: Run, engine: Engine, data: Prepared, comparing: Comparing | None, *, context: int, runs: Path,
    progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """The whole validation set by the best and the last checkpoint (and what a start was worth), and the test set,
    once, by the best; and under DPO the best beside the start. `context`: the model's.

    TrainingStopped where there is no best one, since no loss on validation was finite.
    """
    if run.state.get("best") is None:
        raise TrainingStopped(
            f"{run.folder}: the loss on validation was never finite. Try a third of optimizer.learning_rate"
        )

    def load(checkpoint: Path) -> Model:
        return load_weights(checkpoint, device=engine.device, runs=runs, context=context)

    scores: dict[str, Any] = {"context": context}
    if data.items == "pairs":
        more, score = _start_of(run), pair_scores(engine, data, _validated(run), load, progress)
    elif data.vocabulary.labels:
        more, score = _class_scores(data.vocabulary.labels, engine, data, load, progress)
    else:
        more, score = _text_scores(run, engine, data, load, progress)
    scores |= more
    best, last = run.checkpoint("best"), run.checkpoint("last")
    for which, checkpoint in {"best": best, **({} if last == best else {"last": last})}.items():
        scores[which] = {"step": int(checkpoint.name), "validation": score(checkpoint, "validation")}
    if data.test:
        scores["best"]["test"] = score(best, "test")
    if comparing and (found := comparing.with_start(engine, data, load(best), run.name, progress)):
        scores["against_start"] = found
    return scores


OF_THE_RUN = ("event", "step", "seconds")
"""What of a line of the metrics is no score."""


def _start_of(run: Run) -> dict[str, Any]:
    """What the start was worth, where it was scored, and what was learned."""
    kind = run.recipe["objective"]["kind"]
    begun = _validated(run).get(0)
    return {"objective": kind, **({"start": {"step": 0, "validation": begun}} if begun else {})}


def _validated(run: Run) -> dict[int, dict[str, Any]]:
    """What the whole validation set gave while the run went on, by step."""
    return {
        line["step"]: {key: value for key, value in line.items() if key not in OF_THE_RUN}
        for line in run.metrics("validation")
    }


def _text_scores(
    run: Run, engine: Engine, data: Prepared, load: Callable[[Path], Model], progress: Progress
) -> tuple[dict[str, Any], Score]:
    """What holds for all scores of a language model, with its start's; and how a checkpoint is scored."""
    rows = data.text()
    scorer = Scorer(engine.objective, engine.device, engine.precision, engine.micro_batch_size)
    validated = _validated(run)
    trained = rows["train"].targets_array()
    unigram: dict[Split, float] = {
        split: exp(unigram_loss(trained, scored.targets_array(), data.tokenizer.vocab_size))
        for split, scored in rows.items() if split != "train"
    }  # fmt: skip

    def finish(values: Mapping[str, Any], split: Split) -> dict[str, Any]:
        return {**values, "unigram_perplexity": unigram[split]}

    def score(checkpoint: Path, split: Split) -> dict[str, Any]:
        values = validated.get(int(checkpoint.name)) if split == "validation" else None
        if values is None:
            with progress.busy(f"scoring {split} by step {checkpoint.name}") as tell:
                values = scorer.text(load(checkpoint), rows[split], lambda n, total: tell(f"{n:,}/{total:,} rows"))
        return finish(values, split)

    scores: dict[str, Any] = {"stride": data.rows.context}
    if 0 in validated:
        scores["start"] = {"step": 0, "validation": finish(validated[0], "validation")}
    return scores, score


def _class_scores(
    labels: Sequence[str], engine: Engine, data: Prepared, load: Callable[[Path], Model], progress: Progress
) -> tuple[dict[str, Any], Score]:
    """What holds for all scores of a classifier; and how a checkpoint is scored."""
    rows = data.labelled()
    majority = rows["train"].majority

    def score(checkpoint: Path, split: Split) -> dict[str, Any]:
        with progress.busy(f"classifying {split} by step {checkpoint.name}") as tell:
            logits = class_logits(
                load(checkpoint), rows[split], device=engine.device, precision=engine.precision,
                micro_batch_size=engine.micro_batch_size, on_batch=lambda n, total: tell(f"{n:,}/{total:,} texts"),
            )  # fmt: skip
        return classification_scores(rows[split].classes, logits, labels, majority=majority)

    return {"labels": list(labels)}, score


def in_words(scores: Mapping[str, Any]) -> str:
    """The best checkpoint's scores, a line a split, with everything named that they depend on."""
    best = scores["best"]
    words = _class_words if "labels" in scores else _pair_words if "objective" in scores else _text_words
    lines = [
        f"{split}, step {number(best['step'])}: {words(best[split], scores)}"
        for split in ("validation", "test")
        if split in best
    ]
    return "\n".join([*lines, *([_comparison_words(scores["against_start"])] if "against_start" in scores else [])])


def _text_words(found: Mapping[str, Any], scores: Mapping[str, Any]) -> str:
    return (
        f"perplexity {perplexity(found['perplexity'])} per token (unigram model "
        f"{perplexity(found['unigram_perplexity'])}), {perplexity(found['perplexity_per_word'])} per word, "
        f"{found['bits_per_byte']:.3f} bits per byte; {number(found['tokens'])} tokens scored, context "
        f"{scores['context']}, stride {scores['stride']}"
    )


def _class_words(found: Mapping[str, Any], scores: Mapping[str, Any]) -> str:
    accuracy, low, high = (percent(found[key]) for key in ("accuracy", "accuracy_low", "accuracy_high"))
    return (
        f"accuracy {accuracy} ({low} to {high}), always {found['majority']!r} {percent(found['majority_accuracy'])}; "
        f"Matthews {found['matthews']:.3f} ({found['matthews_low']:.3f} to {found['matthews_high']:.3f}), macro F1 "
        f"{found['f1']:.3f}; {number(found['texts'])} texts, 95 % intervals"
    )


def _pair_words(found: Mapping[str, Any], scores: Mapping[str, Any]) -> str:
    accuracy, low, high = (percent(found[key]) for key in ("accuracy", "accuracy_low", "accuracy_high"))
    return (
        f"chosen above rejected in {accuracy} of the pairs ({low} to {high}; chance 50 %, always the longer "
        f"{percent(found['longer_accuracy'])}); margin {found['margin']:.3f} ({found['margin_low']:.3f} to "
        f"{found['margin_high']:.3f}), calibration error {found['calibration']['error']:.3f}; "
        f"{number(found['pairs'])} pairs, 95 % intervals"
    )


def _comparison_words(found: Mapping[str, Any]) -> str:
    tokens = found["answer_tokens"]
    parts = [f"answer tokens {tokens['before']:.1f} → {tokens['after']:.1f}", f"KL {found['kl']:.4f} nats a token"]
    if "win_rate" in found:
        won, low, high = (percent(found[key]) for key in ("win_rate", "win_rate_low", "win_rate_high"))
        reward = found["reward"]
        parts = [
            f"its answers win {won} ({low} to {high}), reward {reward['before']:.3f} → {reward['after']:.3f}", *parts
        ]  # fmt: skip
    if other := found.get("other_text"):
        before, after = (perplexity(other["perplexity"][key]) for key in ("before", "after"))
        parts.append(f"perplexity on {other['name']} {before} → {after}")
    return f"against {found['start']}, {number(found['prompts'])} held-out prompts: {'; '.join(parts)}"
