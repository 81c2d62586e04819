"""The optimizers are torch's and bitsandbytes' own; what is tested is the grouping, and that state survives by name."""

import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from gptlab.device import Precision
from gptlab.errors import CheckpointError, DeviceError, RecipeError, UserError
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.lora import LoraSettings, add_lora
from gptlab.objectives.language import LanguageObjective
from gptlab.settings import build
from gptlab.training.loop import Engine, descend, gradients
from gptlab.training.memory import FullRows, LiveStorages, predict_peak_bytes
from gptlab.training.optimizer import Optimizer, OptimizerSettings, check_device

SHAPE = GPTShape(vocab_size=31, context=8, n_layer=2, n_head=2, n_embd=8)
WIDE = GPTShape(vocab_size=211, context=16, n_layer=2, n_head=2, n_embd=64)  # its matrices have 4,096 values and more
KINDS = [{"kind": kind} for kind in ("adamw", "adam", "sgd", "nesterov", "adafactor", "muon")] + [{"state": "8bit"}]


def step(model, optimizer, tokens=None):
    tokens = torch.arange(16).view(2, 8) if tokens is None else tokens
    optimizer.zero_grad()
    loss = F.cross_entropy(model.logits(model(tokens[:, :-1])).flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    for part in optimizer.parts:
        part.step()
    return loss.item()


def new(kind="adamw", shape=SHAPE, **settings):
    torch.manual_seed(0)
    model = GPT(shape)
    return model, Optimizer(model, OptimizerSettings(kind=kind, **settings))


@pytest.mark.parametrize("settings", KINDS, ids=lambda settings: next(iter(settings.values())))
def test_state_saved_by_name_and_loaded_elsewhere_goes_on_bit_for_bit(settings, tmp_path):
    shape = WIDE if "state" in settings else SHAPE
    model, optimizer = new(shape=shape, **settings)
    for _ in range(3):
        step(model, optimizer)
    save_file({name: tensor.contiguous() for name, tensor in optimizer.tensors().items()}, tmp_path / "state")
    other, its_optimizer = new(shape=shape, **settings)
    other.load_state_dict(model.state_dict())
    its_optimizer.load(load_file(tmp_path / "state"))
    for each in ((model, optimizer), (other, its_optimizer)):
        step(*each)
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_plain_sgd_is_the_formula_and_keeps_no_state():
    model, optimizer = new("sgd", momentum=0.0, weight_decay=0.0, learning_rate=0.5)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    step(model, optimizer)
    for old, parameter in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(parameter.detach(), old - 0.5 * parameter.grad)
    assert optimizer.tensors() == {}


def test_decay_acts_on_matrices_only():
    _, optimizer = new("adamw", weight_decay=0.3)
    for group in optimizer.parts[0].param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.3 if parameter.dim() == 2 else 0.0)


def test_muon_takes_the_matrices_inside_the_blocks_and_adamw_the_rest():
    model, optimizer = new("muon", learning_rate=1e-3, matrix_learning_rate=2e-2)
    muon, adamw = optimizer.parts
    assert isinstance(muon, torch.optim.Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    inside = {id(p) for name, p in model.named_parameters() if name.startswith("h.") and p.dim() == 2}
    assert {id(p) for group in muon.param_groups for p in group["params"]} == inside
    optimizer.set_rate(0.5)
    assert muon.param_groups[0]["lr"] == 1e-2
    assert optimizer.parts[1].param_groups[0]["lr"] == 5e-4


def test_state_of_another_model_is_refused_by_name():
    model, optimizer = new("adamw")
    step(model, optimizer)
    tensors = {f"student.{name}": tensor for name, tensor in optimizer.tensors().items()}
    with pytest.raises(CheckpointError, match=r"student\."):
        new("adamw")[1].load(tensors)


def lines(count, length=17):
    """(count, length) tokens of a text that can be learned: each is the one before plus 7, or now and then 8."""
    generator = torch.Generator().manual_seed(1)
    start = torch.randint(211, (count, 1), generator=generator)
    return (start + (7 + (torch.rand(count, length, generator=generator) < 0.1)).cumsum(1)) % 211


def test_8_bits_learn_what_float32_learns():
    """To 0.2 % of the loss at each of 50 steps; 0.03 % was seen."""
    losses = {}
    for state in ("float32", "8bit"):
        model, optimizer = new(shape=WIDE, state=state, learning_rate=3e-3)
        losses[state] = [step(model, optimizer, lines(64)[16 * (i % 4) :][:16]) for i in range(50)]
    assert losses["8bit"][0] == losses["float32"][0] > 5
    assert losses["8bit"][-1] < 2.5
    assert losses["8bit"] == pytest.approx(losses["float32"], rel=0.002)


def test_8_bits_are_a_quarter_of_the_bytes_where_there_are_many():
    """The matrices inside the blocks: 2 codes, and 2 scales for 256 of them, in place of 2 float32 numbers."""
    model, optimizer = new(shape=WIDE, state="8bit")
    step(model, optimizer)
    matrices = {name for name, p in model.named_parameters() if p.dim() == 2 and name.startswith("h.")}
    values = sum(model.get_parameter(name).numel() for name in matrices)
    tensors = {key: t for key, t in optimizer.tensors().items() if not key.endswith(":step")}
    assert sum(t.nbytes for key, t in tensors.items() if key.split(":")[0] in matrices) == values * (2 + 8 / 256)
    for key, tensor in tensors.items():
        if key.split(":")[0] not in matrices:
            assert tensor.dtype == torch.float32, key


def test_8_bits_are_counted_by_the_trace_as_by_the_step():
    settings = OptimizerSettings(state="8bit")
    float32 = Precision("float32", torch.float32, "")
    with LiveStorages() as storages:
        model = GPT(WIDE)
        optimizer = Optimizer(model, settings)
        engine = Engine(model, LanguageObjective(), optimizer, torch.device("cpu"), float32, 1, 1.0)
        for _ in range(2):
            gradients(engine, FullRows(4).batch(1))
            descend(engine)
    predicted = predict_peak_bytes(
        lambda: GPT(WIDE),
        LanguageObjective,
        settings,
        precision=float32,
        micro_batch_size=1,
        batch_size=1,
        rows=FullRows(4),
    )
    assert predicted == pytest.approx(storages.peak, rel=0.01)


def test_8_bits_are_adamws_alone():
    with pytest.raises(ValueError, match="kind = adamw, not sgd"):
        OptimizerSettings(kind="sgd", state="8bit")


def test_without_bitsandbytes_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim.adamw", None)
    with pytest.raises(UserError, match=r"pip install 'gptlab\[8bit\]'"):
        new(state="8bit")


def test_8_bits_are_refused_where_bitsandbytes_has_no_kernel():
    with pytest.raises(DeviceError, match="state=float32"):
        check_device(OptimizerSettings(state="8bit"), torch.device("mps"))
    for settings, device in (({"state": "8bit"}, "cpu"), ({"state": "8bit"}, "cuda"), ({}, "mps")):
        check_device(OptimizerSettings(**settings), torch.device(device))


def test_under_lora_its_factors_alone_are_learned_and_muon_is_refused():
    model, _ = new(shape=WIDE)
    add_lora(model, LoraSettings(rank=64))
    factors = {name for name, _ in model.named_parameters() if name.endswith(("lora_A", "lora_B"))}
    for settings in ({}, {"state": "8bit"}):
        optimizer = Optimizer(model, OptimizerSettings(**settings))
        step(model, optimizer)
        assert {key.split(":")[0] for key in optimizer.tensors()} == factors
        assert len(optimizer.parts) == 1
    assert optimizer.tensors()["h.0.attn.c_attn.lora_A:state1"].dtype == torch.uint8
    with pytest.raises(RecipeError, match="LoRA"):
        Optimizer(model, OptimizerSettings(kind="muon"))


def test_muon_takes_a_layer_that_is_learned_whole_and_leaves_the_factors_beside_it_to_adamw():
    model, _ = new()
    add_lora(model, LoraSettings(rank=2, targets=("c_attn",), also_train=("h.1.mlp.c_fc",)))
    muon, adamw = Optimizer(model, OptimizerSettings(kind="muon")).parts
    assert muon.param_groups[0]["params"] == [model.h[1].mlp.c_fc.weight]
    names = {p: name for name, p in model.named_parameters()}
    assert {names[p].split(".", 2)[2] for group in adamw.param_groups for p in group["params"]} == {
        "attn.c_attn.lora_A", "attn.c_attn.lora_B", "mlp.c_fc.bias"
    }  # fmt: skip


@pytest.mark.parametrize(("kind", "decay"), [("adam", 0), ("sgd", 0), ("nesterov", 0), ("adamw", 0.1), ("muon", 0.1)])
def test_a_decay_that_is_part_of_the_gradient_is_only_there_where_it_is_asked_for(kind: str, decay: float) -> None:
    """A classifier's gradient is thousands of times smaller than its weights: a tenth of these would drown it."""
    assert build(OptimizerSettings, {"kind": kind}, "test").weight_decay == decay
    assert build(OptimizerSettings, {"kind": kind, "weight_decay": 0.2}, "test").weight_decay == 0.2
