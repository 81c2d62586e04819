"""The kernels in torch's place: a model's step with them is the step without, to rounding; and torch's come back."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters

from gptlab.data.batch import make_batch
from gptlab.device import Precision
from gptlab.evaluation.scores import Scorer
from gptlab.kernels import gelu, linear, native
from gptlab.kernels.layers import fast_layers, training_kernels
from gptlab.model.gpt import GPT, Activation, GPTShape
from gptlab.objectives.language import LanguageObjective
from gptlab.training.loop import Engine, gradients
from gptlab.training.optimizer import Optimizer, OptimizerSettings

TORCHS = F.linear, F.gelu, F.embedding
CPU = torch.device("cpu")
needs_gelu = pytest.mark.skipif(not gelu.supported(), reason=native.reason("gelu") or "there")


@pytest.fixture
def small_layers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "FEWEST_ROWS", 1)
    monkeypatch.setattr(linear, "FEWEST_PRODUCTS", 1)


def step(
    dtype: torch.dtype, *, checkpointing: bool = False, activation: Activation = "gelu_new"
) -> dict[str, torch.Tensor]:
    """Output and gradients of a small GPT."""
    torch.manual_seed(0)
    model = GPT(GPTShape(50, context=16, n_layer=2, n_head=2, n_embd=32, activation=activation))
    model.activation_checkpointing = checkpointing
    tokens = torch.randint(50, (3, 16))
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        hidden = model(tokens)
    hidden.float().square().sum().backward()
    return {"hidden": hidden.detach()} | {
        name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
    }


@pytest.mark.usefixtures("small_layers_too")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("activation", ["gelu_new", "gelu"])
def test_a_step_is_the_same_to_rounding(dtype, tolerance, checkpointing, activation):
    expected = step(dtype, activation=activation)
    with fast_layers():
        ours = step(dtype, checkpointing=checkpointing, activation=activation)
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert (ours[name] - value).norm() <= tolerance * value.norm(), name


def test_torch_is_put_back_also_after_an_error():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), fast_layers():
        F.linear(torch.zeros(2, 3), torch.zeros(2, 4))
    assert (F.linear, F.gelu, F.embedding) == TORCHS


@needs_gelu
def test_only_the_tanh_form_is_taken(monkeypatch):
    x = torch.randn(7, generator=torch.Generator().manual_seed(0))
    exact, tanh = F.gelu(x), F.gelu(x, approximate="tanh")
    taken = []
    monkeypatch.setattr(gelu, "gelu", lambda x, real=gelu.gelu: taken.append(x) or real(x))
    with fast_layers():
        torch.testing.assert_close(F.gelu(x), exact, rtol=0, atol=0)
        assert not taken
        torch.testing.assert_close(F.gelu(x, approximate="tanh"), tanh)
        assert len(taken) == 1


def layer(name: str) -> str:
    """Who does GELU or an embedding for the caller, as autograd names it."""
    x = torch.ones(3, 2, requires_grad=True)
    y = F.gelu(x, approximate="tanh") if name == "gelu" else F.embedding(torch.tensor([1, 2]), x)
    return y.grad_fn.name()


@needs_gelu
def test_what_the_run_did_not_choose_stays_torchs():
    ours = "_GeluBackward", "EmbeddingBackward"
    with fast_layers(("softmax", "gelu")):
        assert (layer("gelu"), layer("embedding")) == ours
        with fast_layers(()):
            assert (layer("gelu"), layer("embedding")) == ("GeluBackward0", "EmbeddingBackward0")
        assert (layer("gelu"), layer("embedding")) == ours
    for names in ((), ("softmax",)):
        with fast_layers(names):
            assert (F.linear, F.gelu, F.embedding) == TORCHS
    with native.torch_only("asked for"), fast_layers():
        assert (F.linear, F.gelu, F.embedding) == TORCHS


def test_a_gpu_has_none_and_float32_has_no_linear_layers(monkeypatch):
    asked = []
    monkeypatch.setattr(native, "_load", lambda name, real=native._load: asked.append(name) or real(name))
    tokens = torch.randint(50, (2, 9))
    batch = make_batch(tokens[:, :-1], tokens[:, 1:], torch.arange(2))
    model, objective, precision = GPT(GPTShape(50, 8, 1, 2, 16)), LanguageObjective(), Precision("", torch.float32, "")
    gradients(Engine(model, objective, Optimizer(model, OptimizerSettings()), CPU, precision, 2, 1.0), batch)

    class Rows:
        def __len__(self):
            return 2

        def batch(self, rows, epoch=0):
            return batch

    Scorer(objective, CPU, precision, 2).rows(model, Rows(), np.arange(2))
    assert set(asked) == {"softmax", "gelu"}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert training_kernels(torch.device("cuda"), dtype) == ()
    assert "linear" in training_kernels(CPU, torch.bfloat16)


@needs_gelu
def test_two_threads_that_overlap_leave_torchs_behind():
    first_is_in, second_is_in, first_is_out = (threading.Event() for _ in range(3))
    found = []

    def first():
        with fast_layers():
            first_is_in.set()
            second_is_in.wait()
        first_is_out.set()

    def second():
        first_is_in.wait()
        with fast_layers():
            second_is_in.set()
            first_is_out.wait()
            found.append(layer("gelu"))

    threads = [threading.Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert found == ["_GeluBackward"]
    assert (F.linear, F.gelu, F.embedding) == TORCHS


@needs_gelu
def test_a_thread_that_has_not_entered_has_torchs():
    found = []
    with fast_layers():
        thread = threading.Thread(target=lambda: found.append((layer("gelu"), layer("embedding"))))
        thread.start()
        thread.join(timeout=60)
    assert found == [("GeluBackward0", "EmbeddingBackward0")]


@needs_gelu
def test_what_went_forward_by_a_kernel_goes_backward_by_it():
    x = torch.randn(5, requires_grad=True)
    with fast_layers():
        y = F.gelu(x, approximate="tanh")
    with native.torch_only("asked for"):
        y.sum().backward()
    wanted = x.detach().requires_grad_()
    F.gelu(wanted, approximate="tanh").sum().backward()
    torch.testing.assert_close(x.grad, wanted.grad)


@pytest.mark.usefixtures("small_layers_too")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_model_is_one_graph(dtype):
    torch._dynamo.reset()
    counters.clear()
    model = GPT(GPTShape(50, context=16, n_layer=2, n_head=2, n_embd=32))
    compiled, tokens = torch.compile(model, backend="eager"), torch.randint(50, (3, 16))
    with fast_layers(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        hidden = compiled(tokens)
        hidden.float().sum().backward()
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        torch.testing.assert_close(hidden, model(tokens))


@pytest.mark.parametrize("ids", [torch.tensor(3), torch.tensor([1, 1]), torch.zeros(2, 0, dtype=torch.int64)], ids=str)
def test_an_embedding_of_any_shape(ids):
    ours, wanted = (torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2))
    with fast_layers():
        rows = F.embedding(ids, ours)
        rows.sum().backward()
    expected = F.embedding(ids, wanted)
    expected.sum().backward()
    assert torch.equal(rows, expected)
    assert torch.equal(ours.grad, wanted.grad)
