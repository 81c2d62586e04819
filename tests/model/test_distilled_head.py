"""The fused distillation against float64, torch's own autograd and closed forms."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gptlab.errors import ModelError
from gptlab.kernels import native
from gptlab.model import distilled_head, head
from gptlab.model.distilled_head import summed_distillation

ROWS, TIME, WIDTH, TEACHER_WIDTH, VOCABULARY = 3, 7, 5, 8, 11


@pytest.fixture(params=[1, 4 * VOCABULARY, 10**6], ids=["chunk of 1", "chunk of 4", "one chunk"])
def chunk(request, monkeypatch):
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", request.param)


@pytest.fixture(params=[1, 3 * VOCABULARY, 10**6], ids=["block of 1", "block of 3", "one block"])
def block(request, monkeypatch):
    monkeypatch.setattr(distilled_head, "BLOCK_ELEMENTS", request.param)


def example(dtype=torch.float64, spread=1.0):
    """hidden, weight, teacher_hidden, teacher_weight, targets, positions"""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return (spread * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()

    models = [normal(ROWS, TIME, WIDTH), normal(VOCABULARY, WIDTH),
              normal(ROWS, TIME, TEACHER_WIDTH), normal(VOCABULARY, TEACHER_WIDTH)]  # fmt: skip
    targets = torch.randint(VOCABULARY, (ROWS, TIME), generator=generator)
    return *models, targets, torch.randperm(ROWS * TIME, generator=generator)[:13].sort().values


def plain(hidden, weight, teacher_hidden, teacher_weight, targets, positions, *, alpha, temperature):
    """The same from all logits at once, by torch's functions."""
    student = F.linear(hidden.flatten(0, 1)[positions], weight)
    teacher = F.linear(teacher_hidden.flatten(0, 1)[positions], teacher_weight).detach()
    soft = F.log_softmax(student / temperature, dim=1)
    kl = F.kl_div(soft, F.softmax(teacher / temperature, dim=1), reduction="sum")
    cross_entropy = F.cross_entropy(student, targets.flatten()[positions], reduction="sum")
    return alpha * temperature**2 * kl + (1 - alpha) * cross_entropy, kl, cross_entropy


def gradients(loss, hidden, weight, *_):
    return torch.autograd.grad(loss, [hidden, weight])


@pytest.mark.usefixtures("chunk", "block")
@pytest.mark.parametrize(("alpha", "temperature"), [(0.5, 2.0), (0.8, 2.0), (1.0, 1.0), (0.3, 0.7), (0.0, 5.0)])
def test_sums_and_gradients_equal_the_plain_computation(alpha, temperature):
    case = example()
    fused, expected = (f(*case, alpha=alpha, temperature=temperature) for f in (summed_distillation, plain))
    for ours, theirs in zip(fused, expected, strict=True):
        assert ours.dtype == torch.float64
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    pairs = zip(gradients(fused[0] / 7, *case), gradients(expected[0] / 7, *case), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_alpha_0_is_the_cross_entropy():
    case = example()
    hidden, weight, _, _, targets, positions = case
    loss, _, cross_entropy = summed_distillation(*case, alpha=0.0, temperature=3.0)
    expected = head.summed_cross_entropy(hidden, weight, targets, positions)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(cross_entropy, expected, rtol=1e-12, atol=0)
    for ours, theirs in zip(gradients(loss, *case), gradients(expected, *case), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_from_itself_a_model_has_nothing_to_learn(dtype, temperature):
    hidden, weight, _, _, *where = example(dtype)
    loss, kl, _ = summed_distillation(hidden, weight, hidden, weight, *where, alpha=1.0, temperature=temperature)
    assert loss == kl == 0
    assert not any(gradient.any() for gradient in gradients(loss, hidden, weight))


@pytest.mark.parametrize("kernel", ["C++", "torch"])
def test_float32_is_exact_to_its_rounding(kernel):
    if kernel == "C++" and native.library("softmax") is None:
        pytest.skip(native.reason("softmax"))
    exact, case = example(), example(torch.float32)
    with native.torch_only("" if kernel == "C++" else "asked for"):
        found = summed_distillation(*case, alpha=0.7, temperature=2.0)
        ours = gradients(found[0], *case)
    expected = plain(*exact, alpha=0.7, temperature=2.0)
    for value, wanted in zip(found, expected, strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=0)
    for gradient, wanted in zip(ours, gradients(expected[0], *exact), strict=True):
        torch.testing.assert_close(gradient.double(), wanted, rtol=0, atol=1e-5)


def test_bfloat16_products_keep_a_float32_softmax():
    case = example(torch.float32)
    exact = summed_distillation(*case, alpha=0.5, temperature=2.0)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = summed_distillation(*case, alpha=0.5, temperature=2.0)
    for ours, theirs in zip(rounded, exact, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0)
    for ours, theirs in zip(gradients(rounded[0], *case), gradients(exact[0], *case), strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 0.02 * theirs.norm()


def test_probabilities_of_nought_and_one():
    case = example(torch.float32, spread=30.0)  # logits of up to some thousands
    loss, kl, cross_entropy = summed_distillation(*case, alpha=0.5, temperature=1.0)
    exact = plain(*(each.double() for each in case[:4]), *case[4:], alpha=0.5, temperature=1.0)
    for ours, theirs in zip((loss, kl, cross_entropy), exact, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=0)
    assert all(gradient.isfinite().all() for gradient in gradients(loss, *case))


def test_only_the_student_gets_gradients_and_its_head_only_where_it_is_free():
    free, frozen = example(), example()
    frozen[1].requires_grad_(False)
    for case in (free, frozen):
        loss, kl, cross_entropy = summed_distillation(*case, alpha=0.5, temperature=2.0)
        assert not kl.requires_grad
        assert not cross_entropy.requires_grad
        loss.backward()
        assert case[2].grad is None
        assert case[3].grad is None
    assert frozen[1].grad is None
    torch.testing.assert_close(free[0].grad, frozen[0].grad)


class Products(TorchDispatchMode):
    """Counts the products of matrices."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.name() in ("aten::mm", "aten::mm.out", "aten::addmm_")
        return func(*args, **(kwargs or {}))


def test_under_no_grad_nothing_but_the_logits_is_computed():
    case = example()
    with Products() as trained:
        expected = summed_distillation(*case, alpha=0.5, temperature=2.0)
    with Products() as scored, torch.no_grad():
        found = summed_distillation(*case, alpha=0.5, temperature=2.0)
    assert (trained.count, scored.count) == (4, 2)
    assert not found[0].requires_grad
    torch.testing.assert_close(found, tuple(value.detach() for value in expected))


def test_no_position_supervised_is_zero_and_has_zero_gradients():
    case = (*example()[:5], torch.empty(0, dtype=torch.int64))
    sums = summed_distillation(*case, alpha=0.5, temperature=2.0)
    assert [value.item() for value in sums] == [0, 0, 0]
    assert not any(gradient.any() for gradient in gradients(sums[0], *case))


def test_other_vocabularies_cannot_be_compared():
    hidden, weight, teacher_hidden, teacher_weight, *where = example()
    with pytest.raises(ModelError, match="student's output layer has 11 tokens, the teacher's 10"):
        summed_distillation(hidden, weight, teacher_hidden, teacher_weight[:-1], *where, alpha=0.5, temperature=2.0)
