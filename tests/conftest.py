"""Fixtures that tests in several folders use."""

from __future__ import annotations

import os
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gptlab.environment import BEFORE_TORCH

# As the command line does it: without, tests take three times as long wherever something else runs beside them.
for _name, _value in BEFORE_TORCH.items():
    os.environ.setdefault(_name, _value)
if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: more threads only wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")


LONGEST = ("test_readme.py", "test_notebooks.py", "test_curves.py")
"""Files that take minutes: begun last, one of two workers would wait for the other."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Any]:
    """A hub on 127.0.0.1 that serves `hub.folder` (models/OWNER/NAME/…, datasets/OWNER/NAME/…), empty at first."""
    serve_hub = runpy.run_path(str(Path(__file__).with_name("hub_server.py")))["serve_hub"]
    with serve_hub(tmp_path / "hub") as server:
        yield server


@pytest.fixture
def hub_environment(hub: Any, tmp_path: Path) -> dict[str, str]:
    """The environment of a process whose hub is that one, with a cache of its own."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return {**ours, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
