"""The lock files pin what pyproject.toml asks for, and the pins satisfy it."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith(("#", "-r"))]
    assert all(str(pin.specifier).startswith("==") and "+" not in str(pin.specifier) for pin in found)
    return {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in found}


def unsatisfied(asked: list[str], pinned: dict[str, str]) -> list[str]:
    wanted = map(Requirement, asked)
    return [str(one) for one in wanted if not one.specifier.contains(pinned.get(canonicalize_name(one.name), "0"))]


def test_the_lock_pins_the_project_and_the_hub_and_dev_the_other_extras() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    runtime = pins("requirements.lock")
    assert not unsatisfied(PROJECT["project"]["dependencies"] + extras["hub"], runtime)
    assert runtime["torch"] == "2.13.0"
    rest = [one for extra in extras.values() for one in extra]
    assert not unsatisfied(rest, runtime | pins("requirements-dev.lock"))


def test_the_dev_lock_pins_the_dev_group_beside_it() -> None:
    runtime, dev = pins("requirements.lock"), pins("requirements-dev.lock")
    assert not unsatisfied(PROJECT["dependency-groups"]["dev"], runtime | dev)
    assert not runtime.keys() & dev.keys()
    assert "-r requirements.lock" in (ROOT / "requirements-dev.lock").read_text(encoding="utf-8").splitlines()
