"""The one function where the parts of a run meet: read it and you know the program."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from gptlab.data.batch import steps_per_epoch
from gptlab.device import describe_device, measure_peak_flops, pick_device, pick_precision
from gptlab.errors import CheckpointError, TrainingStopped
from gptlab.model.build import build_model, flops_per_token, parameter_count
from gptlab.model.huggingface import load_model
from gptlab.objectives.language import LanguageObjective
from gptlab.run.checkpoint import load_state
from gptlab.run.run import Run
from gptlab.training.cadence import Cadence
from gptlab.training.continuing import find_run, is_finished, make_length, make_origin, new_folder, open_run
from gptlab.training.ending import evaluate_ends
from gptlab.training.fit import decide_micro_batch
from gptlab.training.loop import Engine, State, deterministic, train
from gptlab.training.optimizer import Optimizer
from gptlab.training.prepare import prepare
from gptlab.training.progress import Progress
from gptlab.training.recipe import Recipe
from gptlab.training.screen import check_disk, checkpoint_disk_bytes, screen, sources_table
from gptlab.training.watch import RunWatcher, stop_signals


def train_recipe(
    recipe: Recipe,
    *,
    runs: Path = Path("runs"),
    device: str = "auto",
    fresh: bool = False,
    command: str | None = None,
    progress: Progress | None = None,
) -> Run:
    """Trains the recipe in `runs/NAME`, or continues it there; returns the run, finished and evaluated.

    `fresh` starts over in a new folder. `command` is what a person typed, for the report.
    RunError names the differences where the folder holds a run of another recipe or of other data; Interrupted
    after Ctrl-C or SIGTERM (all saved); TrainingStopped where the loss is not finite (the last save is good).
    """
    progress = progress or Progress()
    place = pick_device(device)
    existing = find_run(recipe, runs, fresh=fresh, say=progress.say)
    if existing and is_finished(existing, recipe):
        progress.say(f"{existing.folder} is finished. A longer length continues it; --fresh starts over")
        return existing

    data = prepare(recipe, progress)
    progress.table("data", *sources_table(data))
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model, data.tokenizer.vocab_size)
    folder = existing.folder if existing else new_folder(recipe.name, runs)
    disk_bytes = checkpoint_disk_bytes(model, recipe.checkpoints.keep)
    check_disk(folder, disk_bytes)
    origin = make_origin(recipe, data, place, parameter_count(model), command)
    run = open_run(existing, recipe, folder, origin, progress.say)

    with run.lock(), deterministic(recipe.training.deterministic):
        checkpoint = run.newest_valid(progress.say)
        if checkpoint is None and run.steps():
            raise CheckpointError(f"{run.folder}: none of its checkpoints can be continued from; --fresh starts over")
        if checkpoint:
            model = load_model(checkpoint)
        model.activation_checkpointing = recipe.training.activation_checkpointing
        model.to(place)
        kept: dict[str, Any] = run.state.get("decisions", {})
        same_kind = kept.get("device") == place.type
        precision = pick_precision(kept["precision"] if same_kind else recipe.training.precision, place)
        objective = LanguageObjective()
        fit = decide_micro_batch(
            recipe, data.tokenizer.vocab_size, objective, device=place, precision=precision,
            kept=kept["micro_batch_size"] if same_kind else None,
        )  # fmt: skip
        length = make_length(recipe.training, data, kept.get("length", []))
        engine = Engine(
            model=cast(nn.Module, torch.compile(model)) if recipe.training.compile else model,
            objective=objective,
            optimizer=Optimizer(model, recipe.optimizer),
            device=place,
            precision=precision,
            micro_batch_size=fit.micro_batch_size,
            gradient_clip=recipe.optimizer.gradient_clip,
        )
        peak_flops = measure_peak_flops(place, precision.dtype)
        watcher = RunWatcher(
            run=run,
            engine=engine,
            model=model,
            tokenizer=data.tokenizer,
            text=data.validation,
            cadence=Cadence(
                recipe.validation.every_steps, recipe.samples.every_steps, recipe.checkpoints.every_steps,
                steps_per_epoch(len(data.rows), recipe.training.batch_size),
                evaluation_cost=recipe.validation.sampled_rows / (3 * recipe.training.batch_size),
            ),
            validation=recipe.validation,
            samples=recipe.samples,
            checkpoints=recipe.checkpoints,
            seed=recipe.seed,
            flops_per_token=flops_per_token(model),
            peak_flops=peak_flops,
            decided_once={"device": place.type, "precision": precision.name},
            progress=progress,
        )  # fmt: skip
        engine.say = lambda text: watcher.note(state.step, text)
        state = watcher.restore(load_state(checkpoint)) if checkpoint else State()
        run.cut(state.step)
        length.rewind(state.step)

        progress.say(f"{run.folder} " + (f"continues after step {state.step:,}" if state.step else "begins"))
        machine = (
            f"{describe_device(place)}; {precision.name} ({precision.reason}); {peak_flops / 1e9:,.0f} GFLOP/s measured"
        )
        progress.say(screen(recipe, data, model, fit, length, machine, disk_bytes))
        watcher.began(state, length)
        try:
            with stop_signals() as watcher.stop_asked:
                train(
                    engine, data.rows, batch_size=recipe.training.batch_size, seed=recipe.seed,
                    schedule=recipe.schedule, length=length, state=state, watcher=watcher,
                )  # fmt: skip
        except TrainingStopped as stopped:
            watcher.note(state.step, str(stopped))
            watcher.write_state(state, length, "stopped")
            raise
        finally:
            progress.end()
        run.write_evaluation(evaluate_ends(run, engine, data, progress))
        watcher.write_state(state, length, "finished")
    return run
