"""The cut into micro-batches changes memory and speed and nothing else.

The trap: rows of uneven length. A mean over each micro-batch, and then over the micro-batches, weighs the
tokens of a short row more than those of a long one; torchtune, transformers and mlx-lm have all had it.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gptlab.data.batch import IGNORE, ValuedRows, pad_rows, rows_of_step
from gptlab.device import Precision
from gptlab.model.classifier import GPTClassifier
from gptlab.model.gpt import GPT, GPTShape
from gptlab.objectives.classification import ClassificationObjective
from gptlab.objectives.distillation import ClassDistillation, LanguageDistillation
from gptlab.objectives.language import LanguageObjective
from gptlab.training.length import Length
from gptlab.training.loop import Engine, State, train
from gptlab.training.optimizer import Optimizer, OptimizerSettings
from gptlab.training.schedule import ScheduleSettings

SHAPE = GPTShape(vocab_size=37, context=24, n_layer=2, n_head=2, n_embd=16)
TEACHER = GPTShape(vocab_size=37, context=24, n_layer=1, n_head=2, n_embd=24)
LABELS = ("a", "b", "c")
STEPS = 20


class UnevenRows:
    """70 rows of 2 to 24 tokens, some of them learned only at their end."""

    context = 24

    def __init__(self):
        random = np.random.default_rng(0)
        self.rows = []
        for _ in range(70):
            ids = random.integers(37, size=random.integers(3, 25))
            learned_from = random.integers(len(ids) - 1)
            targets = np.where(np.arange(len(ids) - 1) < learned_from, IGNORE, ids[1:])
            self.rows.append((ids[:-1], targets))
        self.scored = sum((targets != IGNORE).sum() for _, targets in self.rows)

    def __len__(self):
        return len(self.rows)

    def batch(self, rows, epoch=0):
        return pad_rows([self.rows[row] for row in rows], rows)


class Labelled(UnevenRows):
    """The same rows, each of one of three classes, which stands at its last token."""

    def __init__(self):
        super().__init__()
        self.rows = [(ids, [*[IGNORE] * (len(ids) - 1), row % 3]) for row, (ids, _) in enumerate(self.rows)]
        self.scored = len(self.rows)


def lesson(name):
    """What is learned: model, objective and rows."""
    torch.manual_seed(1)
    if name == "language":
        return GPT(SHAPE), LanguageObjective(), UnevenRows()
    if name == "language distillation":
        return GPT(SHAPE), LanguageDistillation(GPT(TEACHER).double(), 0.6, 2.0), UnevenRows()
    model, rows = GPTClassifier(SHAPE, LABELS), Labelled()
    if name == "classification":
        return model, ClassificationObjective(3), rows
    return model, ClassDistillation(3, 0.6, 2.0), ValuedRows(rows, {"teacher": torch.randn(len(rows), 3)})


class Quiet:
    """A watcher that wants nothing and remembers the log."""

    def __init__(self):
        self.records = []

    def decided(self, state, length): ...
    def due(self, state, length):
        return False

    def log(self, record, state, length):
        self.records.append(record)

    def rest(self, state, length):
        return False

    def asked_to_stop(self, state, length):
        return False


def trained(micro_batch_size, kind="adamw", learned="language"):
    model, objective, rows = lesson(learned)
    model = model.double()
    optimizer = Optimizer(model, OptimizerSettings(kind=kind, learning_rate=1e-2))
    precision = Precision("float32", torch.float32, "")
    engine = Engine(model, objective, optimizer, torch.device("cpu"), precision, micro_batch_size, 1.0)
    watcher = Quiet()
    train(
        engine, rows, batch_size=16, seed=5, schedule=ScheduleSettings(warmup_steps=3),
        length=Length.fixed(STEPS), state=State(), watcher=watcher,
    )  # fmt: skip
    return model, watcher.records


REPORTED = {
    "language": {"loss", "perplexity"},
    "language distillation": {"loss", "perplexity", "distillation", "cross_entropy"},
    "classification": {"loss", "accuracy", "matthews", "f1"},
    "class distillation": {"loss", "accuracy", "matthews", "f1", "distillation", "cross_entropy"},
}
OF_THE_MACHINE = {"seconds", "tokens_per_second", "memory_bytes"}


@pytest.mark.parametrize("micro_batch_size", [8, 4, 1])
@pytest.mark.parametrize(
    ("learned", "kind"), [("language", "adamw"), ("language", "muon"), *((name, "adamw") for name in [*REPORTED][1:])]
)
def test_weights_and_scores_are_those_of_the_whole_batch(micro_batch_size, learned, kind):
    (whole, whole_log), (cut, cut_log) = (trained(size, kind, learned) for size in (16, micro_batch_size))
    for (name, expected), got in zip(whole.named_parameters(), cut.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-9, msg=name)
    assert len(cut_log) == STEPS
    for ours, theirs in zip(cut_log, whole_log, strict=True):
        assert ours.keys() >= REPORTED[learned]
        assert {"hits", "true", "predicted"}.isdisjoint(ours)
        for key in ours.keys() - OF_THE_MACHINE - {"event"}:
            assert ours[key] == pytest.approx(theirs[key], rel=1e-9, abs=1e-9), key


def test_the_loop_is_the_plain_loop_of_torch():
    """The same 20 steps written out with nothing of the lab's loop, head or optimizer wrapper."""
    from gptlab.training.schedule import rate_factor

    model, _ = trained(4)
    torch.manual_seed(1)
    plain = GPT(SHAPE).double()
    matrices = [p for p in plain.parameters() if p.dim() == 2]
    rest = [p for p in plain.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=1e-2, betas=(0.9, 0.999)
    )
    rows = UnevenRows()
    for step in range(STEPS):
        _, numbers = rows_of_step(len(rows), 16, 5, step)
        batch = rows.batch(numbers)
        logits = plain.logits(plain(batch.tokens))
        loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * rate_factor(ScheduleSettings(warmup_steps=3), step, STEPS)
        optimizer.step()
    for (name, expected), got in zip(plain.named_parameters(), model.named_parameters(), strict=True):
        torch.testing.assert_close(got[1], expected, rtol=0, atol=1e-9, msg=name)
