"""LoRA: what is learned, what it becomes when it is merged; under autocast, in the kernels, with checkpointing."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from gptlab.errors import RecipeError, UserError
from gptlab.generation.decoder import Decoder
from gptlab.kernels import linear
from gptlab.kernels.layers import fast_layers
from gptlab.model.build import SIZES
from gptlab.model.classifier import GPTClassifier, RNNClassifier, as_classifier
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.head import summed_cross_entropy, target_log_probs
from gptlab.model.lora import (
    LoraLinear,
    LoraSettings,
    NewRows,
    add_lora,
    lora_settings,
    merge_lora,
    train_new_rows,
    trainable_counts,
)
from gptlab.model.rnn import RNN, RNNShape
from gptlab.settings import build
from gptlab.training.optimizer import Optimizer, OptimizerSettings

VOCABULARY, CONTEXT = 61, 16
tied = pytest.mark.parametrize("tie_head", [True, False], ids=["tied", "untied"])


def make_model(**changes: Any) -> GPT:
    torch.manual_seed(0)
    shape = {"vocab_size": VOCABULARY, "context": CONTEXT, "n_layer": 2, "n_head": 2, "n_embd": 16}
    return GPT(GPTShape(**{**shape, **changes}))


def randomize(model: GPT) -> None:
    """Random numbers in all that is learned: B is zero at first, and a zero hides faults."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


def make_adapted(settings: LoraSettings | None = None, new_rows: int = 0, **changes: Any) -> GPT:
    model = make_model(**changes)
    add_lora(model, settings or LoraSettings(rank=3))
    if new_rows:
        train_new_rows(model, model.shape.vocab_size - new_rows)
    randomize(model)
    return model


def some_tokens(rows: int = 3) -> Tensor:
    torch.manual_seed(2)
    tokens = torch.randint(VOCABULARY, (rows, CONTEXT))
    tokens[0, :4] = VOCABULARY - torch.tensor([1, 2, 1, 3])
    return tokens


def loss_of(model: GPT, tokens: Tensor) -> Tensor:
    """The loss that training takes: the fused head."""
    rows, time = tokens.shape
    positions = torch.arange(rows * time).view(rows, time)[:, :-1].flatten()
    targets = tokens.roll(-1, dims=1)
    return summed_cross_entropy(model(tokens), model.head_weight, targets, positions) / len(positions)


def gradients(model: GPT) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_a_new_adapter_changes_nothing_and_begins_as_a_linear_layer_does() -> None:
    plain, model = make_model(n_embd=256), make_model(n_embd=256)
    torch.manual_seed(5)
    add_lora(model, LoraSettings(rank=64, dropout=0.5))
    assert torch.equal(model(some_tokens()), plain(some_tokens()))
    layer = model.h[0].attn.c_attn
    bound = 1 / math.sqrt(256)  # kaiming, a = √5: the limits of nn.Linear's start
    assert layer.lora_A.abs().max() <= bound
    assert float(layer.lora_A.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert layer.lora_A.mean().abs() < 0.01 * bound
    assert not layer.lora_B.any()


@pytest.mark.parametrize(("rslora", "scaling"), [(False, 6 / 9), (True, 2.0)])
def test_a_layer_is_the_formula(rslora: bool, scaling: float) -> None:
    settings = LoraSettings(rank=9, alpha=6, rslora=rslora)
    assert settings.scaling == pytest.approx(scaling)
    model = make_adapted(settings).double()
    layer = model.h[1].mlp.c_fc
    x = torch.randn(5, 16, dtype=torch.float64)
    wanted = x @ (layer.base_layer.weight + scaling * layer.lora_B @ layer.lora_A).T + layer.base_layer.bias
    torch.testing.assert_close(layer(x), wanted, atol=1e-12, rtol=0)


def test_dropout_is_before_a_and_only_while_training() -> None:
    model = make_adapted(LoraSettings(rank=3, dropout=0.4))
    layer, x = model.h[0].mlp.c_fc, torch.randn(50, 16)
    torch.manual_seed(7)
    found = layer(x)
    torch.manual_seed(7)
    dropped = F.dropout(x, 0.4)
    wanted = layer.base_layer(x) + layer.settings.scaling * dropped @ layer.lora_A.T @ layer.lora_B.T
    torch.testing.assert_close(found, wanted)
    assert torch.equal(layer.eval()(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_merging_gives_w_plus_s_b_a(dtype: torch.dtype) -> None:
    model = make_adapted(LoraSettings(rank=3, alpha=5, also_train=("biases",))).to(dtype)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}
    assert len(layers) == 8
    wide = torch.promote_types(dtype, torch.float32)
    expected = {
        name: (m.base_layer.weight.to(wide) + 5 / 3 * m.lora_B.to(wide) @ m.lora_A.to(wide)).detach()
        for name, m in layers.items()
    }
    before = model(some_tokens())
    merge_lora(model)
    for name, weight in expected.items():
        merged = model.get_submodule(name)
        assert type(merged) is nn.Linear
        assert merged.weight.dtype == dtype
        last_bit = 2**-7 if dtype == torch.bfloat16 else 0
        torch.testing.assert_close(merged.weight.detach(), weight.to(dtype), atol=1e-6, rtol=last_bit)
    if dtype != torch.bfloat16:
        torch.testing.assert_close(model(some_tokens()), before, atol=1e-5, rtol=0)


@tied
def test_a_merged_model_is_a_plain_one(tie_head: bool) -> None:
    model = make_adapted(new_rows=3, tie_head=tie_head)
    merge_lora(model)
    plain = make_model(tie_head=tie_head)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
    assert trainable(model) == trainable(plain)
    assert (model.lm_head.weight is model.wte.weight) == tie_head
    assert lora_settings(model) is None
    again = copy.deepcopy(model)
    merge_lora(again)  # twice is once
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_merging_a_plain_model_leaves_even_what_is_frozen() -> None:
    model = make_model()
    model.wte.requires_grad_(False)
    merge_lora(model)
    assert not model.wte.weight.requires_grad
    assert model.wpe.weight.requires_grad


def test_a_merged_copy_leaves_the_model_that_is_trained_alone() -> None:
    model = make_adapted(new_rows=3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    twin = copy.deepcopy(model)
    merge_lora(twin)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(twin(some_tokens()), model(some_tokens()), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("changes", "learned"),
    [
        ({}, []),
        ({"targets": ("mlp.c_fc",)}, []),
        ({"targets": ("c_proj",), "also_train": ("layer_norms",)}, ["ln_1.weight", "ln_1.bias", "ln_2.weight"]),
        ({"also_train": ("biases",)}, ["ln_1.bias", "c_attn.base_layer.bias", "mlp.c_fc.base_layer.bias"]),
        ({"targets": ("attn.c_attn",), "also_train": ("mlp.c_fc",)}, ["mlp.c_fc.weight", "mlp.c_fc.bias"]),
        ({"also_train": ("wpe", "h.1.ln_2")}, ["wpe.weight", "h.1.ln_2.bias"]),
    ],
)
def test_only_what_was_asked_for_is_learned(changes: dict[str, Any], learned: list[str]) -> None:
    settings = LoraSettings(**changes)
    model = make_adapted(settings)
    assert lora_settings(model) == settings
    found = trainable(model)
    for name in learned:
        assert any(each.endswith(name) for each in found), name
    for name in found:
        asked = name.endswith((".lora_A", ".lora_B")) or any(
            kind in name for kind in ("ln_", ".bias", "wpe", "mlp.c_fc") if settings.also_train
        )
        assert asked, name
    assert len([name for name in found if name.endswith("lora_A")]) == 2 * sum(
        2 if target == "c_proj" else 1 for target in settings.targets
    )
    loss_of(model, some_tokens()).backward()
    assert gradients(model).keys() == found
    optimizer = Optimizer(model, OptimizerSettings())
    assert set(optimizer.parameters) == {p for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("size", "adapters", "layer_norms", "everything"),
    [("gpt2", 589_824, 38_400, 125_029_632), ("gpt2-medium", 1_572_864, 100_352, 356_396_032)],
)
def test_the_published_counts_come_out(size: str, adapters: int, layer_norms: int, everything: int) -> None:
    """Rank 4 on all four linear layers, LayerNorms learned too: 125.03 and 356.40 million, 0.63 and 1.68 trained."""
    with torch.device("meta"):
        model = GPT(GPTShape(vocab_size=50_257, **SIZES[size]))
        add_lora(model, LoraSettings(rank=4, also_train=("layer_norms",)))
    counts = trainable_counts(model)
    assert counts == {
        "adapters": adapters, "layer_norms": layer_norms, "biases": 0, "embeddings": 0, "head": 0, "other": 0,
        "trainable": adapters + layer_norms, "all": everything,
    }  # fmt: skip


def test_counts_of_every_kind() -> None:
    settings = LoraSettings(rank=1, targets=("attn.c_attn",), also_train=("biases", "wpe", "mlp.c_proj"))
    counts = trainable_counts(make_adapted(settings, new_rows=2, tie_head=False))
    wanted = {
        "adapters": 2 * 64, "layer_norms": 0, "biases": 2 * (4 * 16 + 48 + 64) + 16,
        "embeddings": 16 * CONTEXT + 2 * 16, "head": 2 * 16, "other": 2 * 16 * 64,
    }  # fmt: skip
    assert counts["all"] == sum(p.numel() for p in make_model(tie_head=False).parameters()) + 128
    assert {name: count for name, count in counts.items() if name in wanted} == wanted
    assert counts["trainable"] == sum(wanted.values())
    plain = trainable_counts(make_model())
    assert plain["trainable"] == plain["all"] == sum(p.numel() for p in make_model().parameters())
    assert plain["embeddings"] == 16 * (VOCABULARY + CONTEXT)


@tied
@pytest.mark.parametrize("head", ["fused", "per position", "logits"])
def test_new_rows_have_the_gradient_that_the_whole_embedding_has(tie_head: bool, head: str) -> None:
    def loss(model: GPT) -> Tensor:
        tokens, hidden = some_tokens(), model(some_tokens())
        if head == "fused":
            return summed_cross_entropy(hidden, model.head_weight, tokens, torch.arange(tokens.numel()))
        if head == "per position":
            return -target_log_probs(hidden, model.head_weight, tokens, torch.arange(tokens.numel())).sum()
        return F.cross_entropy(model.logits(hidden).flatten(0, 1), tokens.flatten(), reduction="sum")

    model = make_adapted(LoraSettings(rank=3), tie_head=tie_head)
    whole = copy.deepcopy(model)
    whole.wte.weight.requires_grad_(True)
    whole.lm_head.weight.requires_grad_(True)
    train_new_rows(model, VOCABULARY - 3)
    values = [loss(model), loss(whole)]
    assert torch.equal(*values)
    for value in values:
        value.backward()
    torch.testing.assert_close(model.wte.rows.grad, whole.wte.weight.grad[-3:])
    torch.testing.assert_close(model.lm_head.rows.grad, whole.lm_head.weight.grad[-3:])
    assert model.wte.base_layer.weight.grad is model.lm_head.base_layer.weight.grad is None


@tied
def test_only_new_rows_move_and_need_an_optimizer_state(tie_head: bool) -> None:
    model = make_adapted(new_rows=3, tie_head=tie_head)
    assert (model.wte.rows is model.lm_head.rows) == tie_head
    assert model.head_weight.data_ptr() == model.lm_head.base_layer.weight.data_ptr()  # no copy of the vocabulary
    old = model.wte.weight[:-3].clone(), model.head_weight[:-3].clone()
    before = model.wte.rows.clone()
    optimizer = Optimizer(model, OptimizerSettings())
    loss_of(model, some_tokens()).backward()
    optimizer.parts[0].step()
    assert torch.equal(model.wte.weight[:-3], old[0])
    assert torch.equal(model.head_weight[:-3], old[1])
    assert torch.equal(model.wte.weight[-3:], model.wte.rows)
    assert torch.equal(model.head_weight[-3:], model.lm_head.rows)
    assert not torch.equal(model.wte.rows, before)
    assert (
        max(tensor.numel() for name, tensor in optimizer.tensors().items() if name.startswith(("wte", "lm_head"))) == 48
    )
    ours = {name for name in optimizer.tensors() if name.endswith("rows:exp_avg")}
    assert ours == ({"wte.rows:exp_avg"} if tie_head else {"wte.rows:exp_avg", "lm_head.rows:exp_avg"})


def test_new_rows_of_an_embedding_that_is_learned_whole_are_left_to_it() -> None:
    model = make_model(tie_head=False)
    add_lora(model, LoraSettings(also_train=("wte",)))
    train_new_rows(model, 58)
    assert isinstance(model.wte, nn.Embedding)
    assert isinstance(model.lm_head, NewRows)
    before = trainable(model)
    train_new_rows(model, 58)
    assert trainable(model) == before


def test_new_rows_want_an_adapted_model_and_rows_on_either_side() -> None:
    with pytest.raises(ValueError, match="a plain model learns all of its rows"):
        train_new_rows(make_model(), 58)
    for first in (0, VOCABULARY, -1):
        with pytest.raises(ValueError, match=f"first = {first}: .* vocabulary of 61"):
            train_new_rows(make_adapted(), first)


@tied
def test_a_decoder_writes_as_the_merged_model_does(tie_head: bool) -> None:
    model = make_adapted(new_rows=3, tie_head=tie_head).eval()
    merged = copy.deepcopy(model)
    merge_lora(merged)
    windows, ids = [[60, 3, 58], [5]], torch.tensor([59, 7])
    with torch.no_grad():
        outputs = []
        for each in (model, merged):
            decoder = Decoder(each)
            cache, first = decoder.read(windows, 8)
            outputs.append((first, decoder.step(ids, cache)))
    for ours, wanted in zip(*outputs, strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("also_train", [(), ("wte",), ("biases", "layer_norms")])
def test_activation_checkpointing_changes_no_gradient(also_train: tuple[str, ...]) -> None:
    """With a frozen embedding the first block's input needs no gradient, and its adapter still gets one."""
    found = []
    for checkpointing in (False, True):
        model = make_adapted(LoraSettings(rank=3, also_train=also_train), new_rows=0 if "wte" in also_train else 3)
        model.activation_checkpointing = checkpointing
        loss_of(model, some_tokens()).backward()
        assert gradients(model).keys() == trainable(model)
        assert all(gradient.abs().max() > 0 for gradient in gradients(model).values())
        found.append(gradients(model))
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("width", [16, 256])
def test_a_step_in_the_kernels_is_the_step_in_float32(width: int, checkpointing: bool) -> None:
    """Under bfloat16 autocast the lab exchanges linear layers, GELU and embedding; width 256 is the kernel's."""
    tokens = some_tokens(32)
    settings = LoraSettings(rank=4, also_train=("biases",))
    model = make_adapted(settings, new_rows=3, n_embd=width)
    exact = copy.deepcopy(model)
    loss_of(exact, tokens).backward()
    model.activation_checkpointing = checkpointing
    with fast_layers(), computed() as shapes:
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, tokens)
        loss.backward()
    torch.testing.assert_close(loss, loss_of(exact, tokens), atol=0.01, rtol=0)
    assert gradients(model).keys() == trainable(model)
    for name, gradient in gradients(model).items():
        wanted = exact.get_parameter(name).grad
        assert gradient.dtype == torch.float32
        assert (gradient - wanted).norm() < 0.08 * wanted.norm(), name
    if linear.supported() and width == 256:
        assert any("linear_input_gradient" in name for name, _ in shapes)
    # No product in backward has the shape of a frozen weight, (out, in) or turned round.
    frozen = {(3 * width, width), (4 * width, width), (width, 4 * width), (width, 3 * width)}
    assert not [(name, shape) for name, shape in shapes if shape in frozen]


@contextmanager
def computed() -> Iterator[list[tuple[str, tuple[int, ...]]]]:
    """The products (mm, addmm, the lab's own) made inside, with the shapes of what they give."""
    products: list[tuple[str, tuple[int, ...]]] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            name = str(func)
            if "mm" in name or "gptlab" in name or "linear" in name:
                results = result if isinstance(result, tuple) else (result,)
                products.extend((name, tuple(r.shape)) for r in results if isinstance(r, Tensor))
            return result

    with Watch():
        yield products


@pytest.mark.skipif(not linear.supported(), reason="the kernel needs a CPU with AVX512-BF16")
def test_a_small_rank_in_the_kernel_is_torchs() -> None:
    """Where a batch is so large that the kernel takes the adapter's own products."""
    torch.manual_seed(0)
    x, a = torch.randn(2816, 3072), torch.randn(16, 3072) / 50
    outputs = []
    for where in (fast_layers, torch.enable_grad):
        inputs, weight = x.clone().requires_grad_(), a.clone().requires_grad_()
        with where(), torch.autocast("cpu", torch.bfloat16):
            y = F.linear(inputs, weight)
            y.float().square().mean().backward()
        outputs.append((y.float(), inputs.grad, weight.grad))
    for ours, wanted in zip(*outputs, strict=True):
        assert (ours - wanted).norm() < 0.01 * wanted.norm()


def test_an_adapted_step_can_be_traced_without_memory() -> None:
    with FakeTensorMode():
        model = make_adapted(LoraSettings(rank=3, also_train=("biases",)), new_rows=3)
        loss_of(model, torch.zeros(2, CONTEXT, dtype=torch.int64)).backward()
        assert model.wte.rows.grad.shape == (3, 16)
        assert gradients(model).keys() == trainable(model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"targets": ("c_atn",)},
            r"lora\.targets has 'c_atn', which names nothing here \(did you mean 'attn\.c_attn'\?\); there is "
            r"attn\.c_attn, attn\.c_proj, mlp\.c_fc, mlp\.c_proj$",
        ),
        ({"targets": ("lm_head",)}, r"lora\.targets has 'lm_head', which names nothing here"),
        ({"targets": ("attn",)}, r"lora\.targets has 'attn', which names nothing here"),
        (
            {"also_train": ("ln_3",)},
            r"lora\.also_train has 'ln_3', .*did you mean 'ln_.'\?\); there is biases, layer_norms, wte, wpe, ln_1",
        ),
        ({"also_train": ("mlp.c_fc",)}, r"lora: mlp\.c_fc is in targets and in also_train"),
        ({"also_train": ("bias",)}, r"has 'bias', which names nothing here \(did you mean 'biases'\?\)"),
    ],
)
def test_names_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    model = make_model()
    with pytest.raises(UserError, match=message):
        add_lora(model, LoraSettings(**changes))
    assert lora_settings(model) is None
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_second_adapter_is_refused() -> None:
    with pytest.raises(UserError, match=r"has an adapter already: merge_lora\(model\) first"):
        add_lora(make_adapted(), LoraSettings())


@pytest.mark.parametrize("settings", [LoraSettings(), LoraSettings(also_train=("biases", "score"))])
def test_the_head_of_a_classifier_is_always_learned(settings: LoraSettings) -> None:
    model = as_classifier(make_model(), ("a", "b"))
    add_lora(model, settings)
    randomize(model)
    model.classify(model(some_tokens())[:, -1]).sum().backward()
    found = gradients(model)
    assert found.keys() == trainable(model)
    assert found["score.weight"].shape == (2, 16)
    assert trainable_counts(model)["head"] == 32
    merge_lora(model)
    assert type(model) is GPTClassifier
    assert [type(module) for module in model.modules()] == [
        type(module) for module in as_classifier(make_model(), ("a", "b")).modules()
    ]


def test_a_head_can_be_put_on_an_adapted_body() -> None:
    model = as_classifier(make_adapted(), ("a", "b"))
    assert lora_settings(model) == LoraSettings(rank=3)
    assert {name for name in trainable(model) if ".lora_" not in name} == {"score.weight"}


@tied
def test_a_classifier_learns_the_new_rows_of_its_only_table(tie_head: bool) -> None:
    model = as_classifier(make_model(tie_head=tie_head), ("a", "b"))
    add_lora(model, LoraSettings(rank=3))
    train_new_rows(model, VOCABULARY - 3)
    tokens = some_tokens()
    tokens[:, -1] = VOCABULARY - 1
    model.classify(model(tokens)[:, -1]).sum().backward()
    assert gradients(model)["wte.rows"].shape == (3, 16)
    assert trainable_counts(model)["embeddings"] == 3 * 16
    merge_lora(model)
    assert isinstance(model.wte, nn.Embedding)


@pytest.mark.parametrize("labels", [None, ("a", "b")])
def test_an_rnn_is_refused_by_name(labels: tuple[str, ...] | None) -> None:
    shape = RNNShape(VOCABULARY, context=CONTEXT, n_layer=1, n_embd=16, n_hidden=16, cell="gru")
    model = RNN(shape) if labels is None else RNNClassifier(shape, labels)
    with pytest.raises(UserError, match=r"lora: the model is an RNN \(gru\), and adapters .*leave \[lora\] out"):
        add_lora(model, LoraSettings())
    assert all(parameter.requires_grad for parameter in model.parameters())
    merge_lora(model)
    assert lora_settings(model) is None


@pytest.mark.parametrize(
    "tree", [{"rank": 0}, {"alpha": 0}, {"dropout": 1.0}, {"targets": []}, {"also_train": "biases"}, {"r": 8}]
)
def test_impossible_settings_are_named(tree: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(tree))):
        build(LoraSettings, tree, "recipe.toml")
