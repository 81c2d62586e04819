"""What a person should read before the first step, on one screen; and what must be true before it."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

import numpy as np
import torch

from gptlab.data.batch import steps_per_epoch
from gptlab.device import Precision, describe_device
from gptlab.errors import RunError
from gptlab.model.build import parameter_count
from gptlab.model.gpt import GPT
from gptlab.training.fit import Fit
from gptlab.training.length import Length
from gptlab.training.prepare import Prepared
from gptlab.training.recipe import Recipe
from gptlab.words import duration, large, number, size


def sources_table(data: Prepared) -> tuple[list[str], list[list[str]]]:
    """What each source gave: (columns, rows)."""
    context = data.rows.context
    rows = [
        [
            row.name, row.split, number(row.documents), size(row.bytes), number(row.tokens),
            number(-(-row.tokens // context)), row.dropped,
        ]
        for row in data.corpus.table
    ]  # fmt: skip
    return ["source", "split", "documents", "text", "tokens", "rows", "dropped"], rows


def screen(recipe: Recipe, data: Prepared, model: GPT, fit: Fit, length: Length, machine: str, disk_bytes: int) -> str:
    """The screen as text. `machine` says which device and precision."""
    shape, training, vocabulary = model.shape, recipe.training, data.tokenizer.vocab_size
    tokens = min(training.batch_size, len(data.rows)) * shape.context
    epoch_steps = steps_per_epoch(len(data.rows), training.batch_size)
    if length.total is not None:
        epochs = length.total / epoch_steps
        seen = large(round(epochs * len(data.rows) * shape.context))
        steps = f"{number(length.total)} steps = {epochs:.2f} epochs = {seen} tokens; the time is said after ten"
    else:
        steps = f"{duration(length.seconds or 0)}; how many steps that is, is said after ten"
    first_loss = math.log(vocabulary) + shape.n_embd * 0.02**2 / 2  # logits of weights N(0, 0.02²) on a normed state
    own_rate = recipe.optimizer.matrix_learning_rate if recipe.optimizer.kind == "muon" else None
    matrices = f" (matrices {own_rate:g})" if own_rate else ""
    micro = f"micro-batches of {fit.micro_batch_size}" if fit.micro_batch_size < training.batch_size else "all at once"
    lines = {
        "tokenizer": f"{number(vocabulary)} tokens, {data.bytes_per_token:.2f} bytes a token",
        "model": f"n_layer {shape.n_layer}, n_embd {shape.n_embd}, n_head {shape.n_head}, context {shape.context}, "
        f"head {'tied' if shape.tie_head else 'not tied'}: {large(parameter_count(model))} parameters",
        "objective": f"{recipe.objective.kind}; a first loss near {first_loss:.2f} "
        f"(ln {number(vocabulary)} + {shape.n_embd} · 0.02² / 2) is right",
        "step": f"{training.batch_size} rows × {shape.context} = {number(tokens)} tokens, {micro}; "
        f"{recipe.optimizer.kind}, rate {recipe.optimizer.learning_rate:g}{matrices}, {recipe.schedule.kind}",
        "length": f"{steps}; an epoch is {number(epoch_steps)} steps",
        "machine": machine,
        "memory": f"{size(fit.peak_bytes)} predicted at the peak, of {size(fit.available_bytes)}",
        "disk": f"{size(disk_bytes)} for checkpoints at most",
    }
    width = max(map(len, lines))
    return "\n".join(f"  {what:<{width}}  {words}" for what, words in lines.items())


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


def checkpoint_disk_bytes(model: GPT, keep: int) -> int:
    """What a run's checkpoints take: weights and two moments each, the newest `keep`, one being written, the best."""
    weights = 4 * parameter_count(model)
    return 3 * weights * (keep + 1) + weights


def check_disk(folder: Path, needed: int) -> None:
    """RunError where the disk is too small for the checkpoints."""
    free = shutil.disk_usage(_existing(folder.absolute())).free
    if needed > free:
        raise RunError(
            f"{folder}: the checkpoints need {size(needed)}, and {size(free)} are free there. Free some space, choose "
            f"another folder with --runs, or lower checkpoints.keep"
        )


def one_row(data: Prepared, characters: int = 300) -> str:
    """The first training row's tokens, divided by ·, as far as they fit into so many characters."""
    ids = data.rows.batch(np.array([0])).tokens[0].tolist()
    text = "·".join(data.tokenizer.decode([id]).replace("\n", "\\n") for id in ids)
    return text if len(text) <= characters else text[:characters] + "…"
