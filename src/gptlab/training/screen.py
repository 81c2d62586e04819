"""What a person should read before the first step, on one screen; and what must be true before it."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

import torch

from gptlab.data.batch import steps_per_epoch
from gptlab.data.counts import SourceCounts
from gptlab.data.dialogues import DialogueCounts
from gptlab.data.labels import LabelCounts
from gptlab.data.preferences import PreferenceCounts
from gptlab.device import Precision, describe_device
from gptlab.errors import RunError
from gptlab.model.build import parameter_count
from gptlab.model.classifier import is_classifier, task_of
from gptlab.model.folder import Model
from gptlab.model.gpt import GPTShape
from gptlab.model.lora import lora_settings, trainable_counts
from gptlab.objectives.distillation import DistillationSettings
from gptlab.objectives.dpo import DPOObjective, DPOSettings
from gptlab.training.fit import Fit
from gptlab.training.length import Length
from gptlab.training.prepare import Prepared
from gptlab.training.recipe import Recipe
from gptlab.training.start import Start
from gptlab.words import duration, large, number, size


def sources_table(data: Prepared) -> tuple[list[str], list[list[str]]]:
    """What each source gave: (columns, rows)."""
    context = data.rows.context
    rows = [
        [
            row.name, row.split, number(row.documents), size(row.bytes), number(row.tokens),
            number(-(-row.tokens // context)), row.dropped,
        ]
        for row in data.table if isinstance(row, SourceCounts)
    ]  # fmt: skip
    if rows:
        return ["source", "split", "documents", "text", "tokens", "rows", "dropped"], rows
    rows = [
        [
            row.name, row.split, number(row.rows), number(row.tokens), number(row.learned), row.lengths,
            "; ".join(filter(None, [f"{number(row.cut)} cut from the left" if row.cut else "", row.dropped])),
        ]
        for row in data.table if isinstance(row, DialogueCounts)
    ]  # fmt: skip
    if rows:
        columns = ["source", "split", "rows", "tokens", "learned", "tokens a row (50, 90, 99 %, most)", "cut, dropped"]
        return columns, rows
    rows = [
        [row.name, row.split, number(row.texts), number(row.tokens), row.lengths, row.classes_in_words, row.remarks]
        for row in data.table if isinstance(row, LabelCounts)
    ]  # fmt: skip
    if rows:
        return ["source", "split", "texts", "tokens", "tokens a text (50, 90, 99 %, most)", "classes", "remarks"], rows
    rows = [
        [row.name, row.split, number(row.pairs), number(row.tokens), row.lengths, row.remarks]
        for row in data.table if isinstance(row, PreferenceCounts)
    ]  # fmt: skip
    return ["source", "split", "pairs", "tokens", "tokens a side (50, 90, 99 %, most)", "remarks"], rows


def screen(
    recipe: Recipe, data: Prepared, model: Model, fit: Fit, length: Length, machine: str, disk_bytes: int,
    start: Start | None = None,
) -> str:  # fmt: skip
    """The screen as text. `machine` says which device and precision."""
    training = recipe.training
    epoch_steps = steps_per_epoch(len(data.rows), training.batch_size)
    rows = min(training.batch_size, len(data.rows))
    learned = data.rows.scored / len(data.rows)  # a row of a corpus has as many as it is long
    if length.total is not None:
        epochs = length.total / epoch_steps
        seen = f"{large(round(epochs * data.rows.scored))} {data.items}"
        steps = f"{number(length.total)} steps = {epochs:.2f} epochs = {seen}; the time is said after ten"
    else:
        steps = f"{duration(length.seconds or 0)}; how many steps that is, is said after ten"
    own_rate = recipe.optimizer.matrix_learning_rate if recipe.optimizer.kind == "muon" else None
    matrices = f" (matrices {own_rate:g})" if own_rate else ""
    micro = f"micro-batches of {fit.micro_batch_size}" if fit.micro_batch_size < training.batch_size else "all at once"
    template = f"; turns by the template {data.template.name}" if data.template else ""
    step = f"{training.batch_size} rows × {learned:.0f} = {number(round(rows * learned))} tokens"
    if data.items != "tokens":
        step = f"{training.batch_size} {data.items} of {data.tokens_an_item:.0f} tokens in the mean"
    lines = {
        "tokenizer": f"{number(data.tokenizer.vocab_size)} tokens, {data.bytes_per_token:.2f} bytes a token{template}",
        "model": _model_in_words(model, start, data),
        "objective": f"{_objective_in_words(recipe)}; {_first_loss(recipe, data, model, start)}",
        "step": f"{step}, {micro}; {recipe.optimizer.kind}, rate {recipe.optimizer.learning_rate:g}{matrices}, "
        f"{recipe.schedule.kind}",
        "length": f"{steps}; an epoch is {number(epoch_steps)} steps",
        "machine": machine,
        "memory": f"{size(fit.peak_bytes)} predicted at the peak, of {size(fit.available_bytes)}",
        "disk": f"{size(disk_bytes)} for checkpoints at most",
    }
    width = max(map(len, lines))
    return "\n".join(f"  {what:<{width}}  {words}" for what, words in lines.items())


def _model_in_words(model: Model, start: Start | None, data: Prepared) -> str:
    shape, trained = model.shape, trainable_counts(model)
    if isinstance(shape, GPTShape):
        words = f"n_layer {shape.n_layer}, n_embd {shape.n_embd}, n_head {shape.n_head}, context {shape.context}, "
    else:
        words = f"{shape.cell}, n_layer {shape.n_layer}, n_embd {shape.n_embd}, n_hidden {shape.n_hidden}, "
    words += f"head {_head_in_words(model)}: {large(parameter_count(model))} parameters"
    parts = {name: count for name, count in trained.items() if name not in ("trainable", "all") and count}
    if trained["trainable"] < trained["all"]:
        listed = ", ".join(f"{name.replace('_', ' ')} {number(count)}" for name, count in parts.items())
        share = trained["trainable"] / trained["all"]
        words += f", {number(trained['trainable'])} of them trained ({share:.2%}: {listed})"
    if start and start.labels and not start.is_for(data.vocabulary):
        return f"{words}; from {start.name}, whose head for other classes ({len(start.labels)}) gives way to a new one"
    return f"{words}; from {start.name}" if start else words


def _head_in_words(model: Model) -> str:
    if not is_classifier(model):
        return "tied" if model.shape.tie_head else "not tied"
    return "of one reward" if task_of(model.labels) == "reward" else f"{len(model.labels)} classes"


def _objective_in_words(recipe: Recipe) -> str:
    match recipe.objective:
        case DistillationSettings() as settings:
            weights = f"alpha {settings.alpha:g}, temperature {settings.temperature:g}"
            return f"distillation from {settings.teacher}, {weights}"
        case DPOSettings() as settings:
            against = f" against {recipe.start}" if settings.needs_reference else ""
            loss = "" if settings.loss == "sigmoid" else f", {settings.loss}"
            smoothing = f", label smoothing {settings.label_smoothing:g}" if settings.label_smoothing else ""
            return f"dpo{against}, beta {settings.beta:g}{loss}{smoothing}"
    return "a reward model" if recipe.objective.kind == "reward" else recipe.objective.kind


def _first_loss(recipe: Recipe, data: Prepared, model: Model, start: Start | None) -> str:
    if data.items == "pairs":
        return _first_loss_of_pairs(recipe)
    if labels := data.vocabulary.labels:
        counts = data.labelled()["train"].counts()
        most = f"always {labels[int(counts.argmax())]!r} is right for {counts.max() / counts.sum():.1%} of training"
        if start is not None and start.is_for(data.vocabulary):
            return f"its loss is measured before the first step; {most}"
        if recipe.objective.kind == "distillation":
            return f"guessing costs {math.log(len(labels)):.2f} (ln {len(labels)}) beside the teacher's part; {most}"
        return f"a first loss near {math.log(len(labels)):.2f} (ln {len(labels)}) is right; {most}"
    if start is not None:
        return "its loss is measured before the first step"
    if recipe.objective.kind == "distillation" or not isinstance(model.shape, GPTShape):
        return f"guessing costs {math.log(model.shape.vocab_size):.2f} (ln {number(model.shape.vocab_size)})"
    first_loss = (
        math.log(model.shape.vocab_size) + model.shape.n_embd * 0.02**2 / 2
    )  # weights N(0, 0.02²), a normed state
    formula = f"ln {number(model.shape.vocab_size)} + {model.shape.n_embd} · 0.02² / 2"
    return f"a first loss near {first_loss:.2f} ({formula}) is right"


def _first_loss_of_pairs(recipe: Recipe) -> str:
    if isinstance(recipe.objective, DPOSettings):
        wanted = DPOObjective(recipe.objective).loss_at_reference
        if wanted is None:
            return "its loss is measured before the first step"
        formula = "ln 2" if recipe.objective.loss == "sigmoid" else "1 / 4β²"
        return f"a first loss of {wanted:.4g} ({formula}) and margins of 0 are right, and checked before the first step"
    return "guessing costs 0.69 (ln 2) and is right for half of the pairs"


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


def check_folder(folder: Path) -> None:
    """RunError where a run's folder can be neither made nor written to."""
    there = _existing(folder.absolute())
    if not there.is_dir():
        raise RunError(f"{folder}: {there} is a file, and a run needs a folder; --runs or --name choose another")
    if not os.access(there, os.W_OK):
        raise RunError(f"{folder}: nothing can be written in {there}; choose another folder with --runs")


def machine_in_words(device: torch.device, precision: Precision, peak_flops: float, kernels: str) -> str:
    """The device, the precision and why, what was measured, and in what the inner loops are written."""
    peak = f"{peak_flops / 1e9:,.0f} GFLOP/s measured"
    return f"{describe_device(device)}; {precision.name} ({precision.reason}); {peak}; {kernels} kernels"


def checkpoint_disk_bytes(model: Model, keep: int) -> int:
    """What a run's checkpoints take: weights and two moments each, the newest `keep`, one being written, the best. Of
    an adapted model only what is trained is saved."""
    trained = 4 * sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    weights = trained if lora_settings(model) else 4 * parameter_count(model)
    return (weights + 2 * trained) * (keep + 1) + weights


def check_disk(folder: Path, needed: int) -> None:
    """RunError where the disk is too small for the checkpoints."""
    free = shutil.disk_usage(_existing(folder.absolute())).free
    if needed > free:
        raise RunError(
            f"{folder}: the checkpoints need {size(needed)}, and {size(free)} are free there. Free some space, choose "
            f"another folder with --runs, or lower checkpoints.keep"
        )
