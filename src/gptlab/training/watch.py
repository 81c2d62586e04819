"""What happens between two steps of a run: validation, the best so far, alarms, samples, checkpoints, stopping."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptlab.evaluation.answers import answer
from gptlab.evaluation.samples import SampleSettings, TextCompletion, complete
from gptlab.evaluation.scores import Scorer
from gptlab.model.folder import Model
from gptlab.run.checkpoint import Base, TrainingState
from gptlab.run.run import Run
from gptlab.text.dialogue import Message
from gptlab.training.cadence import CLASS_METRICS, Cadence, CheckpointSettings, ValidationSettings
from gptlab.training.judge import Judge
from gptlab.training.length import Length
from gptlab.training.loop import Engine, State
from gptlab.training.prepare import Prepared
from gptlab.training.progress import Progress
from gptlab.training.tracking import Tracker

SAID_AFTER = 10
"""Steps after which it is said how long the run will take."""

SAVE_SECONDS = 600
"""A run that has not been saved for so long is saved, evaluation or not."""


@dataclass
class Best:
    """The best evaluation so far, and how many came after it. `loss`: of what is to rise (a reward) the negative."""

    step: int | None = None
    loss: float = math.inf
    since: int = 0

    def update(self, step: int, loss: float) -> bool:
        """Whether this one is the best."""
        if loss < self.loss:
            self.step, self.loss, self.since = step, loss, 0
            return True
        self.since += 1
        return False


@dataclass
class RunWatcher:
    """The loop's watcher that writes into a run directory (loop.Watcher is its contract).

    `model` is what is saved; `engine.model` may be its compiled face. `decided_once` goes into state.json and is
    taken up again when the run continues.
    """

    run: Run
    engine: Engine
    model: Model
    data: Prepared
    base: Base | None
    judge: Judge | None
    cadence: Cadence
    validation: ValidationSettings
    samples: SampleSettings
    checkpoints: CheckpointSettings
    seed: int
    work_of_item: float
    """Of the operations that the machine does at its peak in a second the share that an item takes: a token, a text
    with its label, a pair."""
    decided_once: dict[str, Any]
    progress: Progress
    stop_asked: Callable[[], bool] = lambda: False
    tracker: Tracker = field(default_factory=Tracker)
    best: Best = field(default_factory=Best)
    first_step: int = 0
    saved_step: int = -1
    saved_at: float = field(default_factory=time.monotonic)

    def began(self, state: State, length: Length, command: str) -> None:
        """The run starts or goes on by this command; written before the first step."""
        self.first_step = state.step
        self._line({
            "event": "start", "step": state.step, "seconds": state.seconds, "total_steps": length.total,
            "micro_batch_size": self.engine.micro_batch_size, "command": command, **self.decided_once,
        })  # fmt: skip
        self.write_state(state, length, "running")

    def evaluate_start(self, state: State) -> dict[str, Any]:
        """What the start is worth on the whole validation set before it is tuned; it is no candidate for the best. What
        a run that was killed before its first save has measured already is not measured again."""
        if not self.run.metrics("validation"):
            scores = self._scorer().whole(self.engine.model, self.data.validation, self.progress.evaluating)
            self._log_scores("validation", state, scores)
        if self.judge and not self.run.metrics("reward"):
            self._judge(state)
        return self.run.metrics("validation")[0]

    def decided(self, state: State, length: Length) -> None:
        self.write_state(state, length, "running")
        self.progress.length(state.step, length.total, state.seconds)

    def due(self, state: State, length: Length) -> bool:
        if length.seconds is None and state.step == self.first_step + SAID_AFTER:
            self.progress.length(state.step, length.total, state.seconds)
        wanted = any(check(state.step, length.total) for check in (self._evaluates, self._samples, self._saves))
        return wanted or self.stop_asked()  # what is saved must have been seen to be finite

    def log(self, record: dict[str, Any], state: State, length: Length) -> None:
        record["peak_share"] = record["tokens_per_second"] * self.work_of_item
        self._line(record)
        self.progress.step(record, length.total)

    def rest(self, state: State, length: Length) -> bool:
        step, total = state.step, length.total
        improved = self._evaluates(step, total) and self._evaluate(state, total)
        if self._samples(step, total):
            self._write_samples(step)
        ended = self._alarm(step)
        if ended:
            length.total = self.decided_once["ended"] = step
        if improved or ended or self._saves(step, total):
            self.save(state, length, best=improved)
        return ended

    def asked_to_stop(self, state: State, length: Length) -> bool:
        if not self.stop_asked():
            return False
        if self.saved_step != state.step:
            self.save(state, length, best=False)
        self.write_state(state, length, "interrupted")
        return True

    def _line(self, record: dict[str, Any]) -> None:
        """A line of the metrics, for the run and for what follows it."""
        self.run.log(record)
        self.tracker.log(record)

    def note(self, step: int, text: str) -> None:
        """Something a person should know: said now and kept for the report."""
        self._line({"event": "note", "step": step, "text": text})
        self.progress.say(text)

    def _evaluates(self, step: int, total: int | None) -> bool:
        return self.cadence.evaluation(step, total) or self.cadence.whole_validation(step, total)

    def _samples(self, step: int, total: int | None) -> bool:
        return bool(self.samples.prompts) and self.cadence.samples(step, total)

    def _saves(self, step: int, total: int | None) -> bool:
        return self.cadence.save(step, total) or time.monotonic() - self.saved_at > SAVE_SECONDS

    def _evaluate(self, state: State, total: int | None) -> bool:
        """Scores the sampled rows or the whole set or both, whatever is due; whether it is the best so far.

        A set that is not larger than the sample is always scored whole, and so is one by which a classifier is chosen.
        """
        rows, by = self.data.validation, self.validation.best_by
        small = len(rows) <= self.validation.sampled_rows or by in CLASS_METRICS
        scores: dict[str, dict[str, float]] = {}
        scorer = self._scorer()
        if self.cadence.evaluation(state.step, total) and not small:
            chosen = np.linspace(0, len(rows) - 1, self.validation.sampled_rows).astype(np.int64)
            scores["validation_sampled"] = scorer.rows(self.engine.model, rows, chosen, self.progress.evaluating)
        if self.cadence.whole_validation(state.step, total) or small:
            scores["validation"] = scorer.whole(self.engine.model, rows, self.progress.evaluating)
        for event, values in scores.items():
            self._log_scores(event, state, values)
        losses = {event: values["loss"] for event, values in scores.items()}
        if by in CLASS_METRICS and "validation" in scores:
            losses[by] = -scores["validation"][by]
        if self.judge and self.cadence.evaluation(state.step, total):
            losses["reward"] = -self._judge(state)
        followed = losses.get("validation" if small and by == "validation_sampled" else by)
        return followed is not None and self.best.update(state.step, followed)

    def _judge(self, state: State) -> float:
        """The mean reward of the answers it gives now."""
        assert self.judge
        with self.progress.busy("judging answers"):
            scores = self.judge.scores(self.model)
        self._line({"event": "reward", "step": state.step, **scores, "seconds": state.seconds})
        self.progress.judged(state.step, scores)
        return float(scores["mean"])

    def _scorer(self) -> Scorer:
        engine = self.engine
        return Scorer(engine.objective, engine.device, engine.precision, engine.micro_batch_size)

    def _log_scores(self, event: str, state: State, values: dict[str, float]) -> None:
        self._line({"event": event, "step": state.step, **values, "seconds": state.seconds})
        self.progress.evaluated(event, state.step, values)

    def _alarm(self, step: int) -> bool:
        """Says once that validation has stopped falling; whether the run is to end."""
        if self.best.since == self.validation.patience:
            self.note(
                step,
                f"validation has not improved for {self.best.since} evaluations; "
                f"the best, step {self.best.step:,}, is kept",
            )
        return self.validation.stop and self.best.since >= self.validation.patience

    def _write_samples(self, step: int) -> None:
        with self.progress.busy("writing samples"):
            completions = self._written(self.samples.prompts)
        self.run.log_samples(
            {"step": step, "prompt": c.prompt, "text": c.text, "stopped": c.stopped} for c in completions
        )
        self.progress.sampled(step, completions)

    def _written(self, prompts: Sequence[str]) -> Sequence[TextCompletion]:
        """What the model writes after each prompt; where it is tuned for dialogue, what it answers."""
        sampling, data, at_most = self.samples.sampling, self.data, self.samples.max_new_tokens
        if data.template is None:
            return complete(self.model, data.tokenizer, prompts, sampling, max_new_tokens=at_most, seed=self.seed)
        asked = [[Message("user", prompt)] for prompt in prompts]
        return answer(
            self.model, data.tokenizer, data.template, asked, sampling, max_new_tokens=at_most, seed=self.seed
        )

    def save(self, state: State, length: Length, *, best: bool) -> None:
        """A checkpoint of this moment."""
        with self.progress.busy(f"saving step {state.step:,}"):
            self.run.save_checkpoint(
                state.step, self.model, self.data.tokenizer, self._snapshot(state), keep=self.checkpoints.keep,
                best=best, template=self.data.template, base=self.base,
            )  # fmt: skip
            self.write_state(state, length, "running")
        self.saved_step, self.saved_at = state.step, time.monotonic()

    def _snapshot(self, state: State) -> TrainingState:
        random: dict[str, Tensor] = {"cpu": torch.get_rng_state()}
        if self.engine.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.engine.device)
        values = {
            "weight": state.weight,
            "seconds": state.seconds,
            "scaler": self.engine.scaler.state_dict(),
            "best": None if self.best.step is None else asdict(self.best),
        }
        return TrainingState(state.step, values, self.engine.optimizer.tensors(), random)

    def restore(self, saved: TrainingState) -> State:
        """Optimizer, random states, scaler and best as they were; returns where the run is."""
        self.engine.optimizer.load(saved.optimizer)
        if saved.values["scaler"] and self.engine.scaler.is_enabled():  # else it began in another precision
            self.engine.scaler.load_state_dict(saved.values["scaler"])
        torch.set_rng_state(saved.random["cpu"])
        if "cuda" in saved.random and self.engine.device.type == "cuda":
            torch.cuda.set_rng_state(saved.random["cuda"], self.engine.device)
        if saved.values["best"]:
            self.best = Best(**saved.values["best"])
        self.saved_step = saved.step
        return State(saved.step, saved.values["weight"], saved.values["seconds"])

    def write_state(self, state: State, length: Length, status: str) -> None:
        """state.json: where the run is, and what was decided once."""
        self.run.write_state({
            "status": status,
            "step": state.step,
            "total_steps": length.total,
            "decisions": {
                **self.decided_once, "micro_batch_size": self.engine.micro_batch_size, "length": length.decisions,
            },
            "best": self._best_in_words(),
            "elapsed_seconds": state.seconds,
        })  # fmt: skip

    def _best_in_words(self) -> dict[str, float] | None:
        if self.best.step is None:
            return None
        by = self.validation.best_by
        risen = by == "reward" or by in CLASS_METRICS
        return {"step": self.best.step, **({by: -self.best.loss} if risen else {"loss": self.best.loss})}


@contextmanager
def stop_signals(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """While inside, the first Ctrl-C or SIGTERM only raises a flag, which is yielded; a second one interrupts.

    Outside of the main thread nothing can be caught, and the flag stays down.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def on_signal(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        say("stopping after this step (once more: at once, without saving)")

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
