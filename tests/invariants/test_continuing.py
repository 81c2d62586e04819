"""Nothing is lost: killed at any moment, a run continued by the same call ends with the same weights, bit for bit.

Runs are made by processes forked from a server that has torch loaded already, so that a kill costs little.
"""

import functools
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from gptlab.errors import RunError
from gptlab.hub import cache_folder
from gptlab.settings import build, plain
from gptlab.training.recipe import Recipe

STEPS = 40
TEXT = "\n\n".join(f"The number {n} is {'even' if n % 2 == 0 else 'odd'}, and {n} + 1 = {n + 1}." for n in range(900))


def recipe(folder: Path, **changes):
    text = folder / "numbers.txt"
    if not text.exists():
        text.write_text(TEXT)
    tree = {
        "name": "numbers", "seed": 3,
        "model": {"n_layer": 2, "n_head": 2, "n_embd": 16, "context": 16, "dropout": 0.2},
        "tokenizer": {"train": 300},
        "data": {"sources": [{"path": str(text), "document": "block"}], "validation": {"share": 0.1}},
        "optimizer": {"kind": "muon"},
        "training": {"max_steps": STEPS, "batch_size": 8, "precision": "float32", **changes.pop("training", {})},
        "validation": {"every_steps": 4, "sampled_rows": 20},
        "samples": {"prompts": ["The number"], "max_new_tokens": 5},
        **changes,
    }  # fmt: skip
    return build(Recipe, tree, "test")


def train(folder: Path, the_recipe: Recipe, kill_at_call: int | None = None):
    """One session of the run. With `kill_at_call` the process dies at that call to fsync or rename."""
    from gptlab.training.assemble import train_recipe

    os.environ.pop("GPTLAB_CACHE", None)
    kernels, ours = cache_folder() / "kernels", folder / "cache" / "kernels"
    if not ours.exists():  # so that they are built once for all runs
        kernels.mkdir(parents=True, exist_ok=True)
        ours.parent.mkdir(exist_ok=True)
        ours.symlink_to(kernels)
    os.environ["GPTLAB_CACHE"] = str(folder / "cache")
    if kill_at_call is not None:
        calls = 0

        def dying(real, *arguments, **keywords):
            nonlocal calls
            calls += 1
            if calls == kill_at_call:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **keywords)

        for name in ("fsync", "rename", "replace"):
            setattr(os, name, functools.partial(dying, getattr(os, name)))
    train_recipe(the_recipe, runs=folder / "runs")


@pytest.fixture(scope="module")
def forks():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gptlab.training.assemble"])
    return context


def session(forks, *arguments, kill_after=None):
    """Runs `train` in a process of its own; returns its exit code."""
    process = forks.Process(target=train, args=arguments)
    process.start()
    if kill_after is not None:
        time.sleep(kill_after)
        process.kill()
    process.join()
    return process.exitcode


def weights(folder: Path) -> dict[str, bytes]:
    last = (folder / "runs/numbers/checkpoints" / f"{STEPS:06d}").resolve()
    return {
        name: (last / name).read_bytes()
        for name in ("model.safetensors", "optimizer.safetensors", "random.safetensors")
    }


def metrics(folder: Path) -> list[dict]:
    """What was logged, without what the clock and the machine say, and without the sessions' starts."""
    lines = [json.loads(line) for line in (folder / "runs/numbers/metrics.jsonl").read_text().splitlines()]
    of_the_clock = {"seconds", "tokens_per_second", "memory_bytes", "peak_share"}
    return [{k: v for k, v in line.items() if k not in of_the_clock} for line in lines if line["event"] != "start"]


@pytest.fixture(scope="module")
def uninterrupted(forks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    started = time.monotonic()
    assert session(forks, folder, recipe(folder)) == 0
    return folder, time.monotonic() - started


def assert_same(folder, uninterrupted):
    whole, _ = uninterrupted
    for name, expected in weights(whole).items():
        assert weights(folder)[name] == expected, name
    assert metrics(folder) == metrics(whole)
    samples = "runs/numbers/samples.jsonl"
    assert (folder / samples).read_text() == (whole / samples).read_text()


@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments(forks, uninterrupted, tmp_path, kills):
    moments = random.Random(kills)
    killed = 0
    while killed < kills:
        # A run that was quicker than its killer is compared too, and the next begins.
        if session(forks, tmp_path, recipe(tmp_path), kill_after=moments.uniform(0, uninterrupted[1])) == 0:
            assert_same(tmp_path, uninterrupted)
            shutil.rmtree(tmp_path / "runs")
        else:
            killed += 1
    assert session(forks, tmp_path, recipe(tmp_path)) == 0
    assert_same(tmp_path, uninterrupted)


@pytest.mark.parametrize("call", [3, 14, 31, 60, *(pytest.param(c, marks=pytest.mark.slow) for c in (1, 9, 47, 83))])
def test_killed_inside_a_save(forks, uninterrupted, tmp_path, call):
    shutil.copytree(uninterrupted[0] / "cache", tmp_path / "cache")
    the_recipe = recipe(uninterrupted[0])
    assert session(forks, tmp_path, the_recipe, call) == -signal.SIGKILL
    assert session(forks, tmp_path, the_recipe) == 0
    assert_same(tmp_path, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_saves_and_goes_on(forks, uninterrupted, tmp_path, number):
    the_recipe = recipe(tmp_path)
    process = forks.Process(target=train, args=(tmp_path, the_recipe))
    process.start()
    log = tmp_path / "runs/numbers/metrics.jsonl"
    while not (log.exists() and len(log.read_text().splitlines()) > 1):  # the first line is the start
        time.sleep(0.005)
    os.kill(process.pid, number)
    process.join()
    state = json.loads((tmp_path / "runs/numbers/state.json").read_text())
    assert process.exitcode == 1  # Interrupted, which only the command line turns into 130
    assert state["status"] == "interrupted"
    assert 0 < state["step"] < STEPS
    assert (tmp_path / "runs/numbers/checkpoints" / f"{state['step']:06d}" / "manifest.json").exists()
    assert session(forks, tmp_path, the_recipe) == 0
    for name, expected in weights(uninterrupted[0]).items():
        assert weights(tmp_path)[name] == expected, name


def damage(checkpoint: Path, how: str) -> None:
    model = checkpoint / "model.safetensors"
    data = bytearray(model.read_bytes())
    if how == "truncated":
        model.write_bytes(data[: len(data) // 2])
    elif how == "a bit flipped":
        data[-5] ^= 4
        model.write_bytes(data)
    elif how == "half deleted":
        model.unlink()
        (checkpoint / "manifest.json").unlink()


@pytest.mark.parametrize("how", ["truncated", "a bit flipped", "half deleted"])
def test_a_damaged_checkpoint_is_passed_over_and_said(uninterrupted, tmp_path, how, monkeypatch):
    from gptlab.training.assemble import train_recipe
    from gptlab.training.progress import Progress

    class Saying(Progress):
        said = ""

        def say(self, text):
            self.said += text + "\n"

    shutil.copytree(uninterrupted[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "runs/numbers"
    state = json.loads((run / "state.json").read_text())
    (run / "state.json").write_text(json.dumps({**state, "status": "running"}))
    damage(run / "checkpoints" / f"{STEPS:06d}", how)
    progress = Saying()
    train_recipe(recipe(uninterrupted[0]), runs=tmp_path / "runs", progress=progress)
    assert f"{STEPS:06d}" in progress.said
    assert f"continues after step {STEPS - 4}" in progress.said
    assert_same(tmp_path, uninterrupted)


def test_a_run_whose_folder_is_gone_comes_back_from_its_mirror(forks, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted[0] / "cache", tmp_path / "cache")
    the_recipe = recipe(uninterrupted[0], checkpoints={"mirror": str(tmp_path / "drive")})
    assert session(forks, tmp_path, the_recipe, 60) == -signal.SIGKILL
    shutil.rmtree(tmp_path / "runs")
    assert session(forks, tmp_path, the_recipe) == 0
    assert_same(tmp_path, uninterrupted)


@pytest.fixture
def copied(uninterrupted, tmp_path, monkeypatch):
    shutil.copytree(uninterrupted[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path / "cache"))
    return functools.partial(recipe, uninterrupted[0]), tmp_path / "runs"


def test_a_finished_run_says_so_and_a_longer_one_goes_on(copied):
    from gptlab.training.assemble import train_recipe

    make, runs = copied
    before = weights(runs.parent)
    train_recipe(make(), runs=runs)
    assert weights(runs.parent) == before
    run = train_recipe(make(training={"max_steps": STEPS + 8}), runs=runs)
    assert run.state["step"] == STEPS + 8
    assert run.recipe["training"]["max_steps"] == STEPS + 8
    assert [line["step"] for line in run.metrics("step")] == list(range(1, STEPS + 9))


def test_a_run_killed_between_being_lengthened_and_its_first_step_goes_on(copied, monkeypatch):
    from gptlab.training import assemble

    make, runs = copied

    def dies(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(assemble, "measure_peak_flops", dies)
        with pytest.raises(KeyboardInterrupt):
            assemble.train_recipe(make(training={"max_steps": STEPS + 4}), runs=runs)
    run = assemble.train_recipe(make(training={"max_steps": STEPS + 4}), runs=runs)
    assert (run.state["step"], run.state["status"]) == (STEPS + 4, "finished")


def test_a_shorter_length_than_what_is_done_is_refused_and_changes_nothing(copied):
    from gptlab.training.assemble import train_recipe

    make, runs = copied
    before = (runs / "numbers/recipe.toml").read_text(), (runs / "numbers/state.json").read_text()
    with pytest.raises(RunError, match=f"has done {STEPS} steps already, and 8 are asked for"):
        train_recipe(make(training={"max_steps": 8}), runs=runs)
    assert ((runs / "numbers/recipe.toml").read_text(), (runs / "numbers/state.json").read_text()) == before


def test_a_run_that_stopped_itself_early_stays_ended(tmp_path, monkeypatch):
    from gptlab.training import assemble

    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path / "cache"))
    validation = {"every_steps": 2, "sampled_rows": 20, "patience": 2, "stop": True}
    the_recipe = recipe(tmp_path, validation=validation, optimizer={"kind": "sgd", "learning_rate": 1e-9})

    def dies(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(assemble, "evaluate_ends", dies)
        with pytest.raises(KeyboardInterrupt):
            assemble.train_recipe(the_recipe, runs=tmp_path / "runs")
    run = assemble.train_recipe(the_recipe, runs=tmp_path / "runs")
    assert run.state["status"] == "finished"
    assert run.state["step"] == max(line["step"] for line in run.metrics("step")) < STEPS


def test_a_run_begun_in_another_precision_goes_on(copied):
    from gptlab.training.assemble import train_recipe

    make, runs = copied
    state = runs / "numbers/state.json"
    kept = json.loads(state.read_text())
    kept["decisions"]["device"] = "cuda"  # as if it came from a GPU, so that the precision is decided anew
    state.write_text(json.dumps(kept))
    assert train_recipe(make(training={"max_steps": STEPS + 4}), runs=runs).state["step"] == STEPS + 4


@pytest.mark.parametrize("wanted", [100, 128 * 5, 10_000])
def test_a_length_in_tokens_sees_at_least_so_many(tmp_path, monkeypatch, wanted):
    from gptlab.training.assemble import train_recipe

    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path / "cache"))
    tree = plain(recipe(tmp_path))
    tree["training"].pop("max_steps")
    tree["training"] |= {"tokens": wanted, "batch_size": 1000}  # more rows than there are
    tree["data"]["sources"][0] |= {"limit_documents": 60}
    run = train_recipe(build(Recipe, tree, "test"), runs=tmp_path / "runs")
    assert run.metrics("step")[-1]["tokens"] >= wanted


def test_another_recipe_in_the_same_folder_is_refused_by_its_differences(copied):
    from gptlab.training.assemble import train_recipe

    make, runs = copied
    with pytest.raises(RunError, match=r"seed: 3 there, 4 now(.|\n)*--fresh"):
        train_recipe(make(seed=4), runs=runs)
    assert train_recipe(make(seed=4), runs=runs, fresh=True).folder == runs / "numbers-2"


def test_other_data_in_the_same_file_are_refused(copied):
    from gptlab.training.assemble import train_recipe

    make, runs = copied
    other = runs.parent / "numbers.txt"
    tree = plain(make())
    stored = runs / "numbers/recipe.toml"
    path = str(tree["data"]["sources"][0]["path"])
    other.write_text(TEXT.replace("even", "EVEN"))
    stored.write_text(stored.read_text().replace(path, str(other)).replace('status = "finished"', ""))
    tree["data"]["sources"][0]["path"] = str(other)
    tree["training"]["max_steps"] = STEPS + 1
    with pytest.raises(RunError, match="data have changed"):
        train_recipe(build(Recipe, tree, "test"), runs=runs)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_what_it_has(tmp_path, monkeypatch):
    from gptlab.errors import TrainingStopped
    from gptlab.run.run import Run
    from gptlab.training.assemble import train_recipe

    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path / "cache"))
    optimizer = {"kind": "sgd", "learning_rate": 1e30, "gradient_clip": 0.0}
    schedule = {"kind": "constant", "warmup_steps": 10_000}  # 1e26 a step: finite at first, then not
    with pytest.raises(TrainingStopped, match=r"step \d+: the loss is (nan|inf).*learning rate.*Try"):
        train_recipe(recipe(tmp_path, optimizer=optimizer, schedule=schedule), runs=tmp_path / "runs")
    run = Run.open(tmp_path / "runs/numbers")
    assert run.state["status"] == "stopped"
    assert "not finite" in run.metrics("note")[-1]["text"] or "the loss is" in run.metrics("note")[-1]["text"]
