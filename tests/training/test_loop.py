"""What the loop does beside the mathematics: too little memory, losses that are not finite, its log."""

import numpy as np
import pytest
import torch

from gptlab.data.batch import pad_rows
from gptlab.device import Precision
from gptlab.errors import MemoryLimitError, TrainingStopped
from gptlab.model.gpt import GPT, GPTShape
from gptlab.objectives.language import LanguageObjective
from gptlab.training.length import Length
from gptlab.training.loop import SKIPPED_IN_A_ROW, Engine, State, train
from gptlab.training.optimizer import Optimizer, OptimizerSettings
from gptlab.training.schedule import ScheduleSettings

SHAPE = GPTShape(vocab_size=17, context=8, n_layer=1, n_head=1, n_embd=8)


class Rows:
    def __init__(self, count=40):
        self.ids = np.random.default_rng(0).integers(17, size=(count, 9))

    def __len__(self):
        return len(self.ids)

    def batch(self, rows, epoch=0):
        return pad_rows([(self.ids[row, :-1], self.ids[row, 1:]) for row in rows], rows)


class Watcher:
    def __init__(self, rest_after=()):
        self.records, self.rest_after = [], rest_after

    def decided(self, state, length): ...

    def due(self, state, length):
        return state.step in self.rest_after

    def log(self, record, state, length):
        self.records.append(record)

    def rest(self, state, length):
        return True

    def asked_to_stop(self, state, length):
        return False


class SmallMemory(LanguageObjective):
    """A device that holds at most `rows` rows, and says so as a GPU does."""

    def __init__(self, rows):
        self.rows = rows

    def __call__(self, model, batch):
        if len(batch) > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().__call__(model, batch)


def run(objective, *, steps=5, dtype="float32", watcher=None, rate=1e-2, micro=8):
    torch.manual_seed(0)
    model = GPT(SHAPE)
    optimizer = Optimizer(model, OptimizerSettings(learning_rate=rate))
    precision = Precision(dtype, getattr(torch, dtype), "")
    said = []
    engine = Engine(model, objective, optimizer, torch.device("cpu"), precision, micro, 1.0, say=said.append)
    watcher = watcher or Watcher()
    state = State()
    schedule = ScheduleSettings(kind="constant", warmup_steps=0)
    train(
        engine, Rows(), batch_size=8, seed=0, schedule=schedule, length=Length.fixed(steps), state=state,
        watcher=watcher,
    )  # fmt: skip
    return engine, watcher, said


def test_out_of_memory_halves_the_micro_batch_says_so_and_changes_no_number():
    whole, whole_log, _ = run(LanguageObjective())
    small, small_log, said = run(SmallMemory(rows=3))
    assert small.micro_batch_size == 2
    assert [text.split(":")[0] for text in said] == ["out of memory"] * 2
    for ours, theirs in zip(small.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)  # 5 steps of Adam, each at most 1e-2
    for ours, theirs in zip(small_log.records, whole_log.records, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


def test_out_of_memory_with_one_row_is_an_error_that_says_what_helps():
    with pytest.raises(MemoryLimitError, match=r"activation_checkpointing.*model\.context"):
        run(SmallMemory(rows=0))


class BadFrom(LanguageObjective):
    """A loss that is `value` from some step on."""

    def __init__(self, step, value):
        self.step, self.value, self.calls = step, value, 0

    def __call__(self, model, batch):
        self.calls += 1
        sums = super().__call__(model, batch)
        return {"loss": sums["loss"] * (self.value if self.calls >= self.step else 1.0)}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_at_its_step(value):
    watcher = Watcher()
    with pytest.raises(TrainingStopped, match=r"step 4: .*learning rate of 0\.01.*Try a third"):
        run(BadFrom(4, value), watcher=watcher)
    assert [record["step"] for record in watcher.records] == [1, 2, 3]


class SteepLoss(LanguageObjective):
    """A finite loss whose gradient overflows at any loss scale."""

    def __call__(self, model, batch):
        loss = super().__call__(model, batch)["loss"]
        return {"loss": loss.detach() + (loss - loss.detach()) * 1e38}


def test_fp16_steps_skipped_again_and_again_stop_the_run():
    with pytest.raises(TrainingStopped, match=f"skipped {SKIPPED_IN_A_ROW} steps"):
        run(SteepLoss(), dtype="float16", steps=100)


def test_fp16_learns_what_float32_learns():
    _, exact, _ = run(LanguageObjective(), steps=20)
    _, half, _ = run(LanguageObjective(), steps=20, dtype="float16")
    assert [r["loss"] for r in half.records] == pytest.approx([r["loss"] for r in exact.records], abs=0.03)


def test_the_watcher_can_end_the_run():
    _, watcher, _ = run(LanguageObjective(), watcher=Watcher(rest_after=(3,)))
    assert [record["step"] for record in watcher.records] == [1, 2, 3]


def test_a_long_run_logs_means_over_the_steps_between_its_lines(monkeypatch):
    from gptlab.training import loop

    _, every, _ = run(LanguageObjective(), steps=12)
    monkeypatch.setattr(loop, "LOGGED_STEPS", 4)
    _, some, _ = run(LanguageObjective(), steps=12)
    assert [record["step"] for record in some.records] == [3, 6, 9, 12]
    losses = [record["loss"] for record in every.records]
    assert [record["loss"] for record in some.records] == pytest.approx(np.mean(np.reshape(losses, (4, 3)), axis=1))
    assert [record["tokens"] for record in some.records] == [3 * 64, 6 * 64, 9 * 64, 12 * 64]


class Counting(LanguageObjective):
    """It also counts, for each token, how often it is wanted; what it reports of that is no mean."""

    def __call__(self, model, batch):
        return {**super().__call__(model, batch), "wanted": torch.bincount(batch.targets.flatten(), minlength=17)}

    def metrics(self, sums, weight):
        return {**super().metrics(sums, weight), "rarest": min(sums["wanted"])}


@pytest.mark.parametrize("micro", [8, 3])
def test_counts_reach_the_metrics_summed_over_the_steps_of_a_line(monkeypatch, micro):
    from gptlab.training import loop

    monkeypatch.setattr(loop, "LOGGED_STEPS", 1)
    _, watcher, _ = run(Counting(), steps=5, micro=micro)
    wanted = np.bincount(Rows().ids[:, 1:].flatten(), minlength=17)  # five steps of 8 rows are all 40
    assert [record["rarest"] for record in watcher.records] == [wanted.min()]
    assert "wanted" not in watcher.records[0]
