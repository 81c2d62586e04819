"""A model's scores on text or dialogues: its own run's held-out data, another recipe's, or a file's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gptlab.data.batch import TextRows
from gptlab.data.dialogue_rows import DialogueRows
from gptlab.data.dialogue_sources import DialogueSourceSettings
from gptlab.data.dialogues import read_all
from gptlab.data.scored_text import read_text_tokens
from gptlab.data.sources import SourceSettings
from gptlab.data.splitting import Split
from gptlab.data.windows import ScoredWindows
from gptlab.device import PrecisionName, pick_precision
from gptlab.errors import RunError, UserError, nearest
from gptlab.evaluation.answers import Answer, answer
from gptlab.evaluation.dialogue_scores import dialogue_scores
from gptlab.evaluation.prompts import topic_prompts
from gptlab.evaluation.reward_scores import HuggingFaceReward
from gptlab.evaluation.samples import SampleSettings
from gptlab.evaluation.scores import Scorer
from gptlab.objectives.language import LanguageObjective
from gptlab.run.open import OpenModel, Which, open_model
from gptlab.run.run import RECIPE
from gptlab.settings import build
from gptlab.text.dialogue import Message, Template
from gptlab.training.judge import score_answers
from gptlab.training.prepare import prepare
from gptlab.training.progress import Progress
from gptlab.training.recipe import load_recipe
from gptlab.training.start import Start

KINDS = ("corpus", "dialogues")
MICRO_BATCH_TOKENS = 8192


@dataclass(frozen=True)
class Evaluation:
    """What was found.

    on:      what was scored, in words
    metrics: loss (nats a supervised token), perplexity, perplexity_per_word, bits_per_byte, tokens (scored), context;
             of dialogues also those of the answers that were written (`dialogue_scores`), and `reward` with
             `reward_low` and `reward_high` where a reward model was named
    answers: to the prompts
    """

    model: str
    on: str
    metrics: dict[str, float]
    answers: Sequence[Answer] = field(default_factory=list)


def evaluate_model(
    name: str | Path,
    *,
    on: str | None = None,
    split: Split = "validation",
    answers: int = 40,
    reward: str | None = None,
    checkpoint: Which = None,
    device: str = "auto",
    precision: PrecisionName = "auto",
    seed: int = 0,
    runs: Path = Path("runs"),
    progress: Progress | None = None,
) -> Evaluation:
    """Scores a model (see `find_model`) on `on`: a recipe's `split`, or all of KIND:PATH ("corpus:book.txt",
    "dialogues:chats.jsonl"); by default the data of the run that it lies in.

    answers: so many questions are answered where dialogues are scored: held-out ones, or with a `reward` model the
             forty that ship, whose answers it scores.

    UserError where the model, the data or the split is not there.
    """
    progress = progress or Progress()
    with progress.busy(f"opening {name}"):
        opened = open_model(name, device=device, runs=runs, checkpoint=checkpoint)
    rows, words = _rows(opened, on, split, progress)
    if reward and not (isinstance(rows, DialogueRows) and answers):
        raise UserError(f"--reward {reward}: scores answers, and there are none: {words} is text, or --answers is 0")
    at = next(opened.model.parameters()).device
    scorer = Scorer(LanguageObjective(), at, pick_precision(precision, at), max(1, MICRO_BATCH_TOKENS // rows.context))
    with progress.busy(f"scoring {words}") as tell:
        scores = scorer.text(opened.model, rows, lambda done, total: tell(f"{done:,}/{total:,} rows"))
    metrics: dict[str, float] = {**scores, "context": rows.context}
    written: list[Answer] = []
    if isinstance(rows, DialogueRows) and answers:
        with progress.busy("writing answers"):
            written = _answers(opened, rows, answers, reward, seed)
        metrics |= dialogue_scores(written)
        metrics |= _reward(written, reward, at, progress)
    return Evaluation(str(name), words, metrics, written)


def _rows(opened: OpenModel, on: str | None, split: Split, progress: Progress) -> tuple[TextRows, str]:
    """The rows that are scored, and what they are in words."""
    kind, colon, path = (on or "").partition(":")
    if colon and kind in KINDS and not Path(on or "").exists():
        return _rows_of_file(opened, kind, path), f"{on}"
    if colon and "/" not in kind and "\\" not in path and not Path(on or "").exists():
        raise UserError(f"--on {on}: there is no kind {kind!r}{nearest(kind, list(KINDS))}; wanted {', '.join(KINDS)}")
    recipe = load_recipe(_own_recipe(opened) if on is None else on)
    shape = opened.model.shape
    context = min(recipe.model.numbers().get("context", shape.context), shape.context)
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"context": context})})
    start = Start(opened.name, opened.folder, shape, opened.require_tokenizer(), opened.template, continued=True)
    data = prepare(recipe, progress, start)
    if data.tokenizer.vocab_size > shape.vocab_size:
        raise UserError(f"{recipe.name}: its template needs tokens that {opened.name} has not; name another recipe")
    rows = {"train": data.rows, "validation": data.validation, "test": data.test}[split]
    if rows is None:
        raise UserError(f"{recipe.name} has no test set; --split validation is there")
    return rows, f"{recipe.name}, {split}"


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
