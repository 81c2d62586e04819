"""The one function where the parts of a run meet: read it and you know the program."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from gptlab.device import float32_products, measure_peak_flops, pick_device, pick_precision
from gptlab.errors import CheckpointError, TrainingStopped
from gptlab.kernels.layers import training_kernels
from gptlab.kernels.native import kernels
from gptlab.model.build import flops_per_token
from gptlab.model.meta import without_memory
from gptlab.objectives.dpo import DPOObjective
from gptlab.run.checkpoint import load_state
from gptlab.run.run import Run
from gptlab.training.auto import choose_size
from gptlab.training.continuing import (
    bring_up_to_date,
    find_run,
    is_finished,
    make_cadence,
    new_folder,
    open_run,
)
from gptlab.training.ending import evaluate_ends, in_words
from gptlab.training.fit import decide_micro_batch, memory_errors
from gptlab.training.judge import Judge
from gptlab.training.lesson import make_lesson
from gptlab.training.loop import Engine, State, deterministic, train
from gptlab.training.optimizer import Optimizer, check_device
from gptlab.training.origin import make_origin
from gptlab.training.other_model import find_other_model
from gptlab.training.pair_ending import Comparing
from gptlab.training.prepare import prepare
from gptlab.training.progress import Progress
from gptlab.training.recipe import Recipe
from gptlab.training.reference import check_start
from gptlab.training.screen import (
    check_disk,
    check_folder,
    checkpoint_disk_bytes,
    machine_in_words,
    screen,
    sources_table,
)
from gptlab.training.start import find_start, make_base, make_model, outline
from gptlab.training.tracking import check_services, open_trackers
from gptlab.training.watch import RunWatcher, stop_signals


@memory_errors()
def train_recipe(
    recipe: Recipe,
    *,
    runs: Path = Path("runs"),
    device: str = "auto",
    fresh: bool = False,
    command: str = "",
    progress: Progress | None = None,
) -> Run:
    """Trains the recipe in `runs/NAME`, or continues it there; returns the run, finished and evaluated.

    `fresh` starts over in a new folder. `command` is what a person typed, for the report.
    RunError names the differences where the folder holds a run of another recipe or of other data; Interrupted
    after Ctrl-C or SIGTERM (all saved); TrainingStopped where the loss is not finite (the last save is good);
    MemoryLimitError where the machine is too small.
    What cannot be done is found out before the run's folder is made or changed.
    """
    progress = progress or Progress()
    place = pick_device(device)
    check_device(recipe.optimizer, place)
    check_services(recipe.tracking)
    check_folder(runs / recipe.name)
    existing, recipe = find_run(recipe, runs, fresh=fresh, say=progress.say)
    if existing and is_finished(existing, recipe):
        progress.say(f"{existing.folder} is finished. A longer length continues it; --fresh starts over")
        return existing
    kept: dict[str, Any] = existing.state.get("decisions", {}) if existing else {}
    if kept.get("device") != place.type:
        kept = {}  # what was decided for another kind of device
    precision = pick_precision(kept.get("precision", recipe.training.precision), place)
    if kept:
        precision = replace(precision, reason="as it began")

    start, recipe = find_start(recipe, existing, runs)
    other = find_other_model(recipe, existing, runs)
    data = prepare(recipe, progress, start, runs=runs)
    progress.table("data", *sources_table(data))
    vocabulary = data.vocabulary
    if existing and start:  # whose own tokenizer has the added tokens already
        vocabulary = replace(vocabulary, first_added=existing.origin["start"].get("first_added"))
    writes = place.type == "cpu" and (recipe.samples.prompts or recipe.samples.reward)
    wanted = training_kernels(place, precision.dtype) + (("decode",) if writes else ())
    with (
        float32_products(place, kept.get("float32_products"), progress.say) as products,
        kernels(wanted, kept.get("kernels"), progress.say) as written_in,
    ):
        peak_flops = measure_peak_flops(place, precision.dtype)
        recipe = choose_size(
            recipe, tokens=data.rows.scored, vocab_size=data.tokenizer.vocab_size, peak_flops=peak_flops
        )
        judge = Judge.of(recipe.samples, data, recipe.seed, device, runs)
        size = start.tuned_shape(recipe, vocabulary.size).vocab_size if start else vocabulary.size
        lesson = make_lesson(
            recipe, data, other, vocabulary=vocabulary, vocab_size=size, device=place, precision=precision, runs=runs,
            progress=progress,
        )  # fmt: skip
        data, objective = lesson.data, lesson.objective
        with progress.busy("predicting memory"):
            fit = decide_micro_batch(
                recipe, lambda: outline(recipe, vocabulary, start), lesson.outline, len(data.rows), lesson.rows,
                held_bytes=lesson.held_bytes, device=place, precision=precision, kept=kept.get("micro_batch_size"),
            )  # fmt: skip
        with without_memory():
            shapes = outline(recipe, vocabulary, start)
        folder = new_folder(recipe.name, runs) if fresh else runs / recipe.name
        recipe = recipe.model_copy(update={"name": folder.name})  # so that a fresh run can be continued by its name
        disk_bytes = checkpoint_disk_bytes(shapes, recipe.checkpoints.keep)
        check_disk(folder, disk_bytes)
        origin = make_origin(data, place, shapes, command, start if existing is None else None, lesson.asked)
        run = open_run(existing, recipe, folder, origin, progress.say)

        with run.lock(), deterministic(recipe.training.deterministic), ExitStack() as ending:
            checkpoint = run.newest_valid(progress.say)
            if checkpoint is None and run.steps():
                raise CheckpointError(
                    f"{run.folder}: none of its checkpoints can be continued from; --fresh starts over"
                )
            length = bring_up_to_date(run, recipe, data, int(checkpoint.name) if checkpoint else 0, progress.say)
            torch.manual_seed(recipe.seed)
            with progress.busy("loading the model"):
                base = None
                if start and recipe.lora:
                    base = make_base(run, recipe, start, vocabulary, data.tokenizer, data.template, runs)
                model = make_model(recipe, vocabulary, start, checkpoint, base, runs).to(place)
            engine = Engine(
                model=cast(nn.Module, torch.compile(model)) if recipe.training.compile else model,
                objective=objective,
                optimizer=Optimizer(model, recipe.optimizer),
                device=place,
                precision=precision,
                micro_batch_size=fit.micro_batch_size,
                gradient_clip=recipe.optimizer.gradient_clip,
            )
            watcher = RunWatcher(
                run=run,
                engine=engine,
                model=model,
                data=data,
                base=base,
                judge=judge,
                cadence=make_cadence(recipe, len(data.rows), len(data.validation)),
                validation=recipe.validation,
                samples=recipe.samples,
                checkpoints=recipe.checkpoints,
                seed=recipe.seed,
                work_of_item=flops_per_token(model) * data.tokens_an_item / peak_flops,
                decided_once={
                    "device": place.type,
                    "precision": precision.name,
                    "float32_products": products,
                    "kernels": written_in,
                },
                progress=progress,
            )
            state = watcher.restore(load_state(checkpoint)) if checkpoint else State()
            engine.say = lambda text: watcher.note(state.step, text)
            watcher.tracker = ending.enter_context(open_trackers(recipe.tracking, run, state.step, progress.say))
            run.cut(state.step)

            progress.say(f"{run.folder} " + (f"continues after step {state.step:,}" if state.step else "begins"))
            machine = machine_in_words(place, precision, peak_flops, written_in)
            progress.say(screen(recipe, data, model, fit, length, machine, disk_bytes, start))
            watcher.began(state, length, command)
            try:
                if start and not state.step and start.is_for(vocabulary):
                    scores = watcher.evaluate_start(state)
                    if isinstance(objective, DPOObjective):
                        check_start(objective, scores, precision)
                with stop_signals(progress.say) as watcher.stop_asked:
                    train(
                        engine, data.rows, batch_size=recipe.training.batch_size, seed=recipe.seed,
                        schedule=recipe.schedule, length=length, state=state, watcher=watcher,
                    )  # fmt: skip
                progress.end()
                context = recipe.model.numbers()["context"]
                comparing = None
                if lesson.reference and recipe.start:
                    comparing = Comparing(recipe.start, lesson.reference, recipe.samples, judge, recipe.seed)
                scores = evaluate_ends(run, engine, data, comparing, context=context, runs=runs, progress=progress)
            except TrainingStopped as stopped:
                watcher.note(state.step, str(stopped))
                watcher.write_state(state, length, stopped.status)
                raise
            finally:
                progress.end()
            run.write_evaluation(scores)
            progress.say(in_words(scores))
            watcher.write_state(state, length, "finished")
    return run
