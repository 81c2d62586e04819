"""Memory that is refused is said in one message, whatever was being done."""

import pytest
import torch

from gptlab.errors import MemoryLimitError
from gptlab.training.fit import memory_errors


def test_memory_that_the_system_refuses_is_named_with_what_helps():
    with (
        pytest.raises(MemoryLimitError, match=r"(?s)memory is not enough: .*allocate.*What helps.*8bit"),
        memory_errors(),
    ):
        torch.empty(2**60, dtype=torch.uint8)


def test_memory_that_a_gpu_refuses_is_named_too():
    with pytest.raises(MemoryLimitError, match="CUDA out of memory"), memory_errors():
        raise torch.OutOfMemoryError("CUDA out of memory.")


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), memory_errors():
        torch.ones(2, 3) @ torch.ones(2, 3)
