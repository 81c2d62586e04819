"""The output layer and its loss alone, forward and backward: 4,096 positions, GPT-2's vocabulary, milliseconds.

    plain       F.linear, then F.cross_entropy
    torch's     F.linear_cross_entropy in chunks (torch 2.13 and later)
    Liger       its fused kernel (CUDA, where liger-kernel is installed)
    ours torch  the lab's head in pure torch; ours C++ with the kernel it builds

float32, and bf16 as training has it: products in bfloat16, weights and softmax in float32. Beside the times stand the
largest differences from float64 over 512 positions, relative to the largest value: of the loss, of the gradient of the
hidden states, of the gradient of the weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from common import Case, Variant, ours, parser, run
from lab import as_in_a_run
from models import VOCABULARY
from worker import Work

if TYPE_CHECKING:
    from torch import Tensor

POSITIONS, ROW = 4096, 128
CHECKED_POSITIONS = 512

Loss = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]
"""(hidden (n, width), weight (vocabulary, width), targets (n,)) → the mean of −log p(target)."""


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    import torch.nn.functional as F

    return F.cross_entropy(F.linear(hidden, weight), targets)


def torch_fused(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Autocast does not reach it, so what it multiplies is rounded before it."""
    import torch
    import torch.nn.functional as F
    from torch.nn import LinearCrossEntropyOptions

    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    return F.linear_cross_entropy(hidden, weight, targets, options=LinearCrossEntropyOptions())


def liger(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from liger_kernel.transformers.functional import (  # type: ignore[import-not-found]
        liger_fused_linear_cross_entropy,
    )

    return liger_fused_linear_cross_entropy(hidden, weight, targets)


def fused(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    import torch

    from gptlab.model.head import summed_cross_entropy

    positions = torch.arange(len(hidden), device=hidden.device)
    rows = hidden.view(-1, ROW, hidden.shape[1])
    return summed_cross_entropy(rows, weight, targets.view(-1, ROW), positions) / len(hidden)


def work(loss: Loss, vocabulary: int, width: int, positions: int, precision: str, device: str) -> Work:
    import torch

    bf16 = precision == "bf16"
    if loss is fused:
        as_in_a_run(device, "bfloat16" if bf16 else "float32")
    torch.manual_seed(0)
    hidden = torch.randn(positions, width, device=device, requires_grad=True)
    weight = (0.02 * torch.randn(vocabulary, width, device=device)).requires_grad_()
    targets = torch.randint(vocabulary, (positions,), device=device)

    def step() -> None:
        hidden.grad = weight.grad = None
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            value = loss(hidden, weight, targets)
        value.backward()

    def differences() -> dict[str, float]:
        few = slice(0, min(CHECKED_POSITIONS, positions))

        def values(loss: Loss, dtype: torch.dtype, autocast: bool) -> list[Tensor]:
            states, head = (x.detach().to(dtype).requires_grad_() for x in (hidden[few], weight))
            with torch.autocast(device, torch.bfloat16, enabled=autocast):
                value = loss(states, head, targets[few])
            return [value.detach(), *torch.autograd.grad(value, (states, head))]

        found, exact = values(loss, torch.float32, bf16), values(plain, torch.float64, False)
        names = ("loss_difference", "hidden_gradient_difference", "weight_gradient_difference")
        return {
            name: float((a.double() - b).abs().max() / b.abs().max())
            for name, a, b in zip(names, found, exact, strict=True)
        }

    return Work(step, facts=differences, cuda=device == "cuda")


def variants(device: str, **size: Any) -> list[Variant]:
    """`size`: the other arguments of `work`."""
    import torch.nn.functional as F

    def arguments(loss: Loss) -> dict[str, Any]:
        return {"loss": loss, "device": device, **size}

    older = "" if hasattr(F, "linear_cross_entropy") else "this torch has none"
    peers = [
        Variant("plain", work, arguments(plain)),
        Variant("torch's", work, arguments(torch_fused), left_out=older),
    ]
    if device == "cuda":
        peers.append(Variant("Liger", work, arguments(liger), needs=("liger_kernel",)))
        return [*peers, ours("", work, arguments(fused))]
    in_torch = ours("torch", work, arguments(fused), GPTLAB_KERNELS="torch")
    return [*peers, in_torch, ours("C++", work, arguments(fused))]


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = made.parse_args()
    positions, vocabulary, widths = (ROW, 4096, (64,)) if options.quick else (POSITIONS, VOCABULARY, (128, 256, 768))
    cases = [
        Case(
            f"d = {width}, {precision}", "ms",
            variants(options.device, vocabulary=vocabulary, width=width, positions=positions, precision=precision),
            ("plain",), steps=2,
        )
        for width in widths
        for precision in ("float32", "bf16")
    ]  # fmt: skip
    run(cases, options, f"the head and its loss, forward and backward: {positions} positions, V {vocabulary}; ms")


if __name__ == "__main__":
    main()
