"""A model's scores on text, dialogues, texts with labels or pairs of answers (its own run's held-out data, another
recipe's, a file's), and on the tests of language models that are published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptlab.data.batch import TextRows
from gptlab.data.choices import DEFAULT_PLACES, Kind
from gptlab.data.dialogue_rows import DialogueRows
from gptlab.data.label_rows import LabelRows
from gptlab.data.preference_rows import PreferenceRows
from gptlab.data.splitting import Split
from gptlab.device import PrecisionName, pick_precision
from gptlab.errors import UserError
from gptlab.evaluation.answers import Answer
from gptlab.evaluation.choice import evaluate_choices
from gptlab.evaluation.classification_scores import class_logits, classification_scores
from gptlab.evaluation.drift import check_same_tokens
from gptlab.evaluation.predictions import check_predictions_file, write_predictions
from gptlab.evaluation.scores import Scorer, rows_at_once
from gptlab.model.classifier import KINDS, Task
from gptlab.objectives.language import LanguageObjective
from gptlab.run.open import OpenModel, Which, open_model
from gptlab.training.evaluate_answers import answers_alone, answers_compared
from gptlab.training.evaluate_pairs import likelihood_scores, reward_model_scores
from gptlab.training.progress import Progress
from gptlab.training.scored_data import Scoring, check_kind, kind_and_place, scored_data

OPTIONS: dict[str, tuple[Task, str]] = {
    "--reward": ("language", "scores what a language model answers"),
    "--against": ("language", "compares what two language models answer"),
    "--predictions": ("classification", "are what a classifier says"),
}
"""Of which models an option is, and what it does."""


@dataclass(frozen=True)
class Evaluation:
    """What was found.

    on:      what was scored, in words
    metrics: of text loss (nats a supervised token), perplexity, perplexity_per_word, bits_per_byte, tokens (scored),
             context; of dialogues also those of the answers that were written (`dialogue_scores`), and `reward` with
             `reward_low` and `reward_high` where a reward model was named; of texts with labels
             `classification_scores`; of pairs `likelihood_scores`, or a reward model's `preference_scores`; of a
             published test `evaluate_choices`. `against`: `compare_models`, where another model was named
    answers: to the prompts
    """

    model: str
    on: str
    metrics: dict[str, Any]
    answers: Sequence[Answer] = field(default_factory=list)


def evaluate_model(
    name: str | Path,
    *,
    on: str | None = None,
    split: Split = "validation",
    answers: int = 40,
    reward: str | None = None,
    against: str | Path | None = None,
    predictions: Path | None = None,
    checkpoint: Which = None,
    device: str = "auto",
    precision: PrecisionName = "auto",
    seed: int = 0,
    runs: Path = Path("runs"),
    progress: Progress | None = None,
) -> Evaluation:
    """Scores a model (see `find_model`) on `on`: a recipe's `split`, or all of KIND:PATH ("corpus:book.txt",
    "dialogues:chats.jsonl", "labels:reviews.csv", "preferences:pairs.jsonl"); by default the data of the run that it
    lies in. A published test is its own kind, "blimp:FOLDER", "lambada:FILE" or "hellaswag:OWNER/NAME", and from the
    hub "blimp" alone.

    answers:     so many prompts are answered where dialogues are scored, or models compared: held-out ones, drawn as
                 the recipe's [samples] says
    reward:      a reward model: it scores answers to the forty prompts that ship, or those of the two compared
    against:     the model that this one was tuned from, say: both answer the same prompts (`compare_models`), and of
                 pairs it is the reference of the rewards that DPO implies, in place of the run's own
    predictions: a file that gets what a classifier says of each text

    UserError where the model, the data or the split is not there, or the model is of another kind than the data.
    """
    progress = progress or Progress()
    if predictions:
        check_predictions_file(predictions)
    with progress.busy(f"opening {name}"):
        opened = open_model(name, device=device, runs=runs, checkpoint=checkpoint)
    given = {"--reward": reward, "--against": against, "--predictions": predictions}
    options = {option: str(value) for option, value in given.items() if value is not None}
    _check_task(opened, options)
    at = next(opened.model.parameters()).device
    start = None
    if against is not None:
        with progress.busy(f"opening {against}"):
            start = open_model(against, device=at, runs=runs, task="language")
        check_same_tokens(opened, start)
    scoring = Scoring(opened, start, pick_precision(precision, at), runs, progress)

    kind, place = kind_and_place(on) or ("", "")
    if kind in DEFAULT_PLACES:
        check_kind(opened, kind, f"--on {on}")
        _check_answers(options, f"--on {on}")
        return Evaluation(str(name), str(on), _choice_scores(scoring, kind, place))
    data = scored_data(scoring, on, split)
    rows, words = data.rows, data.words
    prompts = [
        messages for messages, _ in (rows.prompts(answers) if isinstance(rows, DialogueRows | PreferenceRows) else ())
    ]
    if not prompts:
        _check_answers(options, words, of_pairs=isinstance(rows, PreferenceRows))
    if isinstance(rows, LabelRows):
        metrics = _label_scores(scoring, rows, words, data.majority, predictions)
    elif isinstance(rows, PreferenceRows):
        metrics = (reward_model_scores if opened.task == "reward" else likelihood_scores)(scoring, rows, words)
    else:
        metrics = _text_scores(scoring, rows, words)
    written: list[Answer] = []
    if start is not None and prompts:
        metrics["against"] = answers_compared(scoring, start, prompts, data.samples, reward=reward, seed=seed)
    elif prompts and (reward or isinstance(rows, DialogueRows)):
        written, more = answers_alone(scoring, prompts, data.samples, reward=reward, seed=seed)
        metrics |= more
    return Evaluation(str(name), words, metrics, written)


def _check_task(opened: OpenModel, options: Mapping[str, str]) -> None:
    """UserError for an option of another kind of model."""
    for option, value in options.items():
        task, does = OPTIONS[option]
        if opened.task != task:
            raise UserError(f"{option} {value}: {does}, and {opened.name} is {KINDS[opened.task]}")


def _check_answers(options: Mapping[str, str], words: str, *, of_pairs: bool = False) -> None:
    """UserError for an option about answers where there are none; of pairs another model is also their reference."""
    for option, value in options.items():
        if option == "--reward" or (option == "--against" and not of_pairs):
            raise UserError(
                f"{option} {value}: is about answers, and there are none: {words} has no prompts, or --answers is 0"
            )


def _choice_scores(scoring: Scoring, kind: Kind, place: str) -> dict[str, Any]:
    """A published test of language models, at `place`, by default where it stands on the hub."""
    opened = scoring.opened
    with scoring.progress.busy(f"scoring {kind}") as tell:
        return evaluate_choices(
            kind, opened.model, opened.require_tokenizer(), place or DEFAULT_PLACES[kind], device=scoring.device,
            precision=scoring.precision, on_batch=lambda done, total: tell(f"{done:,}/{total:,}"),
        )  # fmt: skip


def _label_scores(
    scoring: Scoring, rows: LabelRows, words: str, majority: int, predictions: Path | None
) -> dict[str, Any]:
    with scoring.progress.busy(f"classifying {words}") as tell:
        logits = class_logits(
            scoring.opened.model, rows, device=scoring.device, precision=scoring.precision,
            micro_batch_size=rows_at_once(rows),
            on_batch=lambda done, total: tell(f"{done:,}/{total:,} texts"),
        )  # fmt: skip
    if predictions:
        write_predictions(predictions, rows, logits)
    return classification_scores(rows.classes, logits, rows.labels, majority=majority)


def _text_scores(scoring: Scoring, rows: TextRows, words: str) -> dict[str, Any]:
    scorer = Scorer(LanguageObjective(), scoring.device, scoring.precision, rows_at_once(rows))
    with scoring.progress.busy(f"scoring {words}") as tell:
        scores = scorer.text(scoring.opened.model, rows, lambda done, total: tell(f"{done:,}/{total:,} rows"))
    return {**scores, "context": rows.context}
