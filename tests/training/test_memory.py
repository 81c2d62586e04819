"""The traced prediction against the same count of the real step, and the choice it leads to."""

import pytest
import torch

from gptlab.device import Precision
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.rnn import RNN, RNNShape
from gptlab.objectives.language import LanguageObjective
from gptlab.training.loop import Engine, descend, gradients
from gptlab.training.memory import FullRows, LiveStorages, choose_micro_batch, predict_peak_bytes, process_bytes
from gptlab.training.optimizer import Optimizer, OptimizerSettings

FLOAT32 = Precision("float32", torch.float32, "")
SHAPE = GPTShape(vocab_size=1003, context=32, n_layer=3, n_head=4, n_embd=32, dropout=0.1)


def predicted(rows, *, batch=8, kind="adamw", shape=SHAPE, checkpointing=False, precision=FLOAT32):
    def make_model():
        model = GPT(shape)
        model.activation_checkpointing = checkpointing
        return model

    settings = OptimizerSettings(kind=kind)
    return predict_peak_bytes(
        make_model, LanguageObjective, settings, precision=precision, micro_batch_size=rows, batch_size=batch,
        rows=FullRows(shape.context),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["adamw", "sgd", "adafactor", "muon"])
def test_the_prediction_is_what_the_real_step_counts(kind):
    with LiveStorages() as storages:
        model = GPT(SHAPE)
        optimizer = Optimizer(model, OptimizerSettings(kind=kind))
        engine = Engine(model, LanguageObjective(), optimizer, torch.device("cpu"), FLOAT32, 4, 1.0)
        batch = FullRows(SHAPE.context).batch(8)
        for _ in range(2):
            gradients(engine, batch)
            descend(engine)
    assert predicted(4, kind=kind) == pytest.approx(storages.peak, rel=0.01)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_the_prediction_of_a_recurrent_step_is_what_the_real_one_counts(cell):
    def make_model():
        return RNN(RNNShape(vocab_size=300, context=64, n_layer=2, n_embd=128, n_hidden=128, cell=cell))

    settings = OptimizerSettings(kind="adamw")
    with LiveStorages() as storages:
        model = make_model()
        engine = Engine(model, LanguageObjective(), Optimizer(model, settings), torch.device("cpu"), FLOAT32, 16, 1.0)
        for _ in range(2):
            gradients(engine, FullRows(64).batch(16))
            descend(engine)
    found = predict_peak_bytes(
        make_model,
        LanguageObjective,
        settings,
        precision=FLOAT32,
        micro_batch_size=16,
        batch_size=16,
        rows=FullRows(64),
    )
    assert found == pytest.approx(storages.peak, rel=0.05)


def test_memory_follows_what_memory_must_follow():
    wide = GPTShape(**{**SHAPE.__dict__, "n_embd": 64})
    assert predicted(1) < predicted(4) < predicted(8)
    assert predicted(4, batch=64) == predicted(4, batch=8)  # accumulation costs nothing
    assert predicted(8, checkpointing=True) < predicted(8)
    assert predicted(1, kind="sgd") < predicted(1, kind="adamw")
    assert predicted(1, shape=wide) > predicted(1)
    weights = 4 * sum(p.numel() for p in GPT(SHAPE).parameters())
    assert predicted(1) > 4 * weights  # weights, gradients, two moments


def test_the_largest_micro_batch_that_fits_is_chosen():
    def predict(size):
        return 10**8 * size

    def memory_for(size):
        return process_bytes(predict(size))

    assert choose_micro_batch(predict, 32, memory_for(32)) == (32, memory_for(32))
    assert choose_micro_batch(predict, 32, memory_for(32) - 1) == (16, memory_for(16))
    assert choose_micro_batch(predict, 6, memory_for(4))[0] == 3
    assert choose_micro_batch(predict, 32, 10) == (1, memory_for(1))  # and the caller refuses
