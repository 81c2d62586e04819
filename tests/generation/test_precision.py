from __future__ import annotations

import pytest
import torch

from gptlab.generation.precision import dequantised
from gptlab.kernels.decode import Precision, rounded
from gptlab.model.gpt import GPT, GPTShape


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize("tie_head", [True, False])
def test_only_products_are_rounded(precision: Precision, tie_head: bool) -> None:
    """A tied head is untied: as a product it is rounded, as an embedding it is not."""
    model = GPT(GPTShape(vocab_size=61, context=24, n_layer=2, n_head=2, n_embd=16, tie_head=tie_head))
    twin = dequantised(model, precision)
    ours = model.state_dict()
    for name, tensor in twin.state_dict().items():
        product = name == "lm_head.weight" or (name.endswith("weight") and ".c_" in name)
        expected = rounded(ours[name], precision).restored() if product else ours[name]
        assert torch.equal(tensor, expected), name
        assert product != torch.equal(tensor, ours[name]), name
    assert (twin.lm_head.weight is twin.wte.weight) == twin.shape.tie_head is False
    assert model.shape.tie_head == (model.lm_head.weight is model.wte.weight) == tie_head


def test_float32_is_a_copy() -> None:
    model = GPT(GPTShape(vocab_size=61, context=24, n_layer=2, n_head=2, n_embd=16))
    twin = dequantised(model, "float32")
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(model.logits(model(tokens)), twin.logits(twin(tokens)))
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in twin.parameters()}
