"""A model's scores on text, dialogues or texts with labels (its own run's held-out data, another recipe's, a file's),
and on the tests of language models that are published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gptlab.data.batch import TextRows
from gptlab.data.choices import DEFAULT_PLACES, Kind
from gptlab.data.dialogue_rows import DialogueRows
from gptlab.data.dialogue_sources import DialogueSourceSettings
from gptlab.data.dialogues import read_all
from gptlab.data.label_rows import LabelRows
from gptlab.data.label_sources import LabelSourceSettings
from gptlab.data.labels import read_labelled
from gptlab.data.scored_text import read_text_tokens
from gptlab.data.sources import SourceSettings
from gptlab.data.splitting import Split
from gptlab.data.windows import ScoredWindows
from gptlab.device import PrecisionName, pick_precision
from gptlab.errors import RunError, UserError, nearest
from gptlab.evaluation.answers import Answer, answer
from gptlab.evaluation.choice import evaluate_choices
from gptlab.evaluation.classification_scores import class_logits, classification_scores
from gptlab.evaluation.classify import separator_of
from gptlab.evaluation.dialogue_scores import dialogue_scores
from gptlab.evaluation.predictions import check_predictions_file, write_predictions
from gptlab.evaluation.prompts import topic_prompts
from gptlab.evaluation.reward_scores import HuggingFaceReward
from gptlab.evaluation.samples import SampleSettings
from gptlab.evaluation.scores import Scorer, rows_at_once
from gptlab.objectives.language import LanguageObjective
from gptlab.run.open import OpenModel, Which, open_model
from gptlab.run.run import RECIPE
from gptlab.settings import build
from gptlab.text.dialogue import Message, Template
from gptlab.training.judge import score_answers
from gptlab.training.prepare import Prepared, prepare
from gptlab.training.progress import Progress
from gptlab.training.recipe import load_recipe
from gptlab.training.start import Start

KINDS = ("corpus", "dialogues", "labels", *DEFAULT_PLACES)


@dataclass(frozen=True)
class Evaluation:
    """What was found.

    on:      what was scored, in words
    metrics: of text loss (nats a supervised token), perplexity, perplexity_per_word, bits_per_byte, tokens (scored),
             context; of dialogues also those of the answers that were written (`dialogue_scores`), and `reward` with
             `reward_low` and `reward_high` where a reward model was named; of texts with labels
             `classification_scores`; of a published test `evaluate_choices`
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
    predictions: Path | None = None,
    checkpoint: Which = None,
    device: str = "auto",
    precision: PrecisionName = "auto",
    seed: int = 0,
    runs: Path = Path("runs"),
    progress: Progress | None = None,
) -> Evaluation:
    """Scores a model (see `find_model`) on `on`: a recipe's `split`, or all of KIND:PATH ("corpus:book.txt",
    "dialogues:chats.jsonl", "labels:reviews.csv"); by default the data of the run that it lies in. A published test is
    its own kind, "blimp:FOLDER", "lambada:FILE" or "hellaswag:OWNER/NAME", and from the hub "blimp" alone.

    answers:     so many questions are answered where dialogues are scored: held-out ones, or with a `reward` model the
                 forty that ship, whose answers it scores
    predictions: a file that gets what a classifier says of each text

    UserError where the model, the data or the split is not there, or the model is of another kind than the data.
    """
    progress = progress or Progress()
    if predictions:
        check_predictions_file(predictions)
    with progress.busy(f"opening {name}"):
        opened = open_model(name, device=device, runs=runs, checkpoint=checkpoint)
    if opened.labels is not None:
        if reward:
            raise UserError(f"--reward {reward}: scores answers, and {name} is a classifier, which gives none")
        words, scores = _score_labels(opened, on, split, precision, predictions, progress)
        return Evaluation(str(name), words, scores)
    if predictions:
        raise UserError(f"--predictions {predictions}: are a classifier's, and {name} is a language model")
    kind, _, place = (on or "").partition(":")
    if kind in DEFAULT_PLACES and not Path(on or "").exists():
        return Evaluation(str(name), str(on), _score_choices(opened, kind, place, precision, progress))
    rows, words = _rows(opened, on, split, progress)
    if reward and not (isinstance(rows, DialogueRows) and answers):
        raise UserError(f"--reward {reward}: scores answers, and there are none: {words} is text, or --answers is 0")
    at = next(opened.model.parameters()).device
    scorer = Scorer(LanguageObjective(), at, pick_precision(precision, at), rows_at_once(rows))
    with progress.busy(f"scoring {words}") as tell:
        scores = scorer.text(opened.model, rows, lambda done, total: tell(f"{done:,}/{total:,} rows"))
    metrics: dict[str, Any] = {**scores, "context": rows.context}
    written: list[Answer] = []
    if isinstance(rows, DialogueRows) and answers:
        with progress.busy("writing answers"):
            written = _answers(opened, rows, answers, reward, seed)
        metrics |= dialogue_scores(written)
        metrics |= _reward(written, reward, at, progress)
    return Evaluation(str(name), words, metrics, written)


def _score_choices(
    opened: OpenModel, kind: Kind, place: str, precision: PrecisionName, progress: Progress
) -> dict[str, Any]:
    """A published test of language models, at `place`, by default where it stands on the hub."""
    at = next(opened.model.parameters()).device
    with progress.busy(f"scoring {kind}") as tell:
        return evaluate_choices(
            kind, opened.model, opened.require_tokenizer(), place or DEFAULT_PLACES[kind], device=at,
            precision=pick_precision(precision, at), on_batch=lambda done, total: tell(f"{done:,}/{total:,}"),
        )  # fmt: skip


def _score_labels(
    opened: OpenModel,
    on: str | None,
    split: Split,
    precision: PrecisionName,
    predictions: Path | None,
    progress: Progress,
) -> tuple[str, dict[str, Any]]:
    """What was classified, in words, and the scores."""
    rows, majority, words = _labelled(opened, on, split, progress)
    at = next(opened.model.parameters()).device
    with progress.busy(f"classifying {words}") as tell:
        logits = class_logits(
            opened.model, rows, device=at, precision=pick_precision(precision, at),
            micro_batch_size=rows_at_once(rows),
            on_batch=lambda done, total: tell(f"{done:,}/{total:,} texts"),
        )  # fmt: skip
    if predictions:
        write_predictions(predictions, rows, logits)
    return words, classification_scores(rows.classes, logits, rows.labels, majority=majority)


def _labelled(opened: OpenModel, on: str | None, split: Split, progress: Progress) -> tuple[LabelRows, int, str]:
    """The texts that are classified, the class that is the most frequent in training (of a file: in it), and what they
    are in words."""
    assert opened.labels
    if (path := _file_of_kind(on, "labels")) is not None:
        source = build(LabelSourceSettings, {"path": path}, "labels")
        rows = read_labelled(
            source, opened.require_tokenizer(), context=opened.model.shape.context, labels=opened.labels,
            separator=separator_of(opened),
        )  # fmt: skip
        return rows, rows.majority, str(on)
    data, words = _prepared(opened, on, split, progress)
    if data.vocabulary.labels is None:
        raise UserError(f"{opened.name} is a classifier, and {words} has no labels; --on labels:FILE, or such a recipe")
    labelled = data.labelled()
    return labelled[split], labelled["train"].majority, words


def _rows(opened: OpenModel, on: str | None, split: Split, progress: Progress) -> tuple[TextRows, str]:
    """The rows of text or dialogues that are scored, and what they are in words."""
    for kind in ("corpus", "dialogues"):
        if (path := _file_of_kind(on, kind)) is not None:
            return _rows_of_file(opened, kind, path), str(on)
    data, words = _prepared(opened, on, split, progress)
    if data.vocabulary.labels is not None:
        raise UserError(f"{words} has labels, and {opened.name} is a language model: gptlab train makes a classifier")
    return data.text()[split], words


def _file_of_kind(on: str | None, wanted: str) -> str | None:
    """The path in "KIND:PATH" of this kind; UserError for a kind that there is not, or another than fits the model."""
    kind, colon, path = (on or "").partition(":")
    if not (colon or kind in DEFAULT_PLACES) or "/" in kind or "\\" in path or Path(on or "").exists():
        return None
    if kind not in KINDS:
        raise UserError(f"--on {on}: there is no kind {kind!r}{nearest(kind, list(KINDS))}; wanted {', '.join(KINDS)}")
    if (kind == "labels") != (wanted == "labels") or kind in DEFAULT_PLACES:
        model = "a classifier" if wanted == "labels" else "a language model"
        scored = "labels:FILE" if wanted == "labels" else "corpus:FILE or dialogues:FILE"
        raise UserError(f"--on {on}: the model is {model}, and is scored on {scored}, or a recipe of its own kind")
    return path if kind == wanted else None


def _prepared(opened: OpenModel, on: str | None, split: Split, progress: Progress) -> tuple[Prepared, str]:
    """The data of a recipe, of the model's own run where none is named, and what of them is scored in words."""
    recipe = load_recipe(_own_recipe(opened) if on is None else on)
    shape = opened.model.shape
    context = min(recipe.model.numbers().get("context", shape.context), shape.context)
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"context": context})})
    start = Start(
        opened.name, opened.folder, shape, opened.require_tokenizer(), opened.template, opened.labels, continued=True
    )
    data = prepare(recipe, progress, start)
    if data.tokenizer.vocab_size > shape.vocab_size:
        raise UserError(f"{recipe.name}: its template needs tokens that {opened.name} has not; name another recipe")
    if split not in data.splits:
        raise UserError(f"{recipe.name} has no test set; --split validation is there")
    return data, f"{recipe.name}, {split}"


def _rows_of_file(opened: OpenModel, kind: str, path: str) -> TextRows:
    tokenizer, context = opened.require_tokenizer(), opened.model.shape.context
    if kind == "corpus":
        return ScoredWindows(read_text_tokens(build(SourceSettings, {"path": path}, kind), tokenizer), context)
    template = opened.template or Template.named("eos", tokenizer.eos)
    return read_all(build(DialogueSourceSettings, {"path": path}, kind), tokenizer, template, context=context)


def _own_recipe(opened: OpenModel) -> str:
    """The recipe of the run in which a checkpoint lies."""
    recipe = opened.folder.resolve().parent.parent / RECIPE
    if not recipe.is_file():
        raise RunError(
            f"{opened.name}: is no run, so it has no held-out data of its own; --on RECIPE or --on corpus:FILE says "
            "what it is to be scored on"
        )
    return str(recipe)


def _answers(opened: OpenModel, rows: DialogueRows, n: int, reward: str | None, seed: int) -> list[Answer]:
    tokenizer, samples = opened.require_tokenizer(), SampleSettings()
    if reward:
        asked = [[Message("user", prompt.text)] for prompt in topic_prompts()]
    else:
        asked = [messages for messages, _ in rows.prompts(n)]
    return answer(
        opened.model, tokenizer, opened.template, asked, samples.sampling, max_new_tokens=samples.max_new_tokens,
        seed=seed,
    )  # fmt: skip


def _reward(written: Sequence[Answer], name: str | None, device: torch.device, progress: Progress) -> Mapping[str, Any]:
    if name is None:
        return {}
    with progress.busy("judging answers"):
        scores = score_answers(HuggingFaceReward(name, device), written)
    return {"reward": scores["mean"], "reward_low": scores["low"], "reward_high": scores["high"]}
