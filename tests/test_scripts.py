"""The scripts make their environment once, again when what it is made from changes, and say what they lack.

They run for real, in a checkout of their own; only Python is a shell script here that notes how it was called.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON = """#!/bin/sh
printf '%s\\n' "$*" >>"$CALLS"
case "$*" in
    *"-m venv"*) for last; do :; done; mkdir -p "$last/bin"; cp "$0" "$last/bin/python"; cp "$0" "$last/bin/gptlab" ;;
    *"-m pip install"*) exit "${PIP_ENDS_WITH:-0}" ;;
    *"-m ruff check"*) exit "${RUFF_ENDS_WITH:-0}" ;;
    *"-m pytest"*) exit "${PYTEST_ENDS_WITH:-0}" ;;
    *version_info*) exit "${IS_OLD:-0}" ;;
    *ensurepip*) exit "${HAS_NO_VENV:-0}" ;;
    --version) echo "Python 3.9.9" ;;
esac
"""

FAST = "-m pytest -n 2 --dist loadfile -m not slow"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the scripts are POSIX sh")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "a checkout"
    for folder in ("script", ".ci"):
        shutil.copytree(ROOT / folder, root / folder)
    for name in ("requirements.lock", "requirements-dev.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    (tmp_path / "python").write_text(PYTHON, encoding="utf-8")
    (tmp_path / "python").chmod(0o755)
    return root


def run(checkout: Path, script: str, *arguments: str, **changes: str) -> tuple[int, str, list[str]]:
    """(exit code, what was said on stderr, how Python and gptlab were called)."""
    calls = checkout.parent / "calls"
    calls.write_text("", encoding="utf-8")
    environment = {**os.environ, "PYTHON": str(checkout.parent / "python"), "CALLS": str(calls), **changes}
    command = [str(checkout / script), *arguments]
    result = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=60)
    return result.returncode, result.stderr, calls.read_text(encoding="utf-8").splitlines()


def installs(calls: list[str]) -> int:
    return sum("pip install" in call for call in calls)


def test_the_first_run_installs_and_the_second_does_not(checkout: Path) -> None:
    code, said, calls = run(checkout, "script/quickstart", "--minutes", "1")
    assert (code, installs(calls), calls[-1]) == (0, 2, "quickstart --minutes 1")
    assert any("-r" in call and "requirements.lock" in call for call in calls)
    assert any("--no-deps -e" in call for call in calls)
    assert "installing" in said
    assert run(checkout, "script/quickstart") == (0, "", ["quickstart"])


@pytest.mark.parametrize("name", ["requirements.lock", "pyproject.toml"])
def test_a_change_installs_again_into_the_same_environment(checkout: Path, name: str) -> None:
    run(checkout, "script/quickstart")
    with (checkout / name).open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    code, _, calls = run(checkout, "script/quickstart")
    assert (code, installs(calls)) == (0, 2)
    assert not any("-m venv" in call for call in calls)


def test_a_moved_checkout_installs_again(checkout: Path) -> None:
    """An editable installation points to where the checkout was."""
    run(checkout, "script/quickstart")
    moved = checkout.rename(checkout.parent / "elsewhere")
    assert installs(run(moved, "script/quickstart")[2]) == 2


def test_an_installation_that_failed_is_tried_again(checkout: Path) -> None:
    code, said, calls = run(checkout, "script/quickstart", PIP_ENDS_WITH="1")
    assert code == 1
    assert "installing failed" in said
    assert calls[-1] != "quickstart"
    assert installs(run(checkout, "script/quickstart")[2]) == 2


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"PYTHON": "python-that-is-not"}, "there is no python-that-is-not here"),
        ({"IS_OLD": "1"}, "is Python 3.9.9, wanted 3.11 or newer"),
        ({"HAS_NO_VENV": "1"}, "apt install python3-venv"),
    ],
)
def test_what_is_missing_is_said(checkout: Path, changes: dict[str, str], told: str) -> None:
    code, said, calls = run(checkout, "script/quickstart", **changes)
    assert (code, installs(calls)) == (1, 0)
    assert told in said
    assert not (checkout / ".venv").exists()


def test_slow_tests_are_left_out_unless_all_are_asked_for(checkout: Path) -> None:
    assert run(checkout, "script/test", "-k", "gpt")[2][-1] == f"{FAST} -k gpt"
    assert run(checkout, "script/test", "--all", "-x")[2][-1] == "-m pytest -x"


def test_lint_runs_all_three(checkout: Path) -> None:
    run(checkout, "script/lint")
    assert run(checkout, "script/lint")[2] == ["-m ruff check .", "-m ruff format --check .", "-m mypy"]


def test_continuous_integration_fails_where_anything_fails(checkout: Path) -> None:
    assert run(checkout, ".ci/run", CI="")[2][-1] == FAST
    code, said, _ = run(checkout, ".ci/run", CI="true")
    assert code == 1
    assert "../shared/data is missing" in said
    (checkout.parent / "shared" / "data").mkdir(parents=True)
    assert run(checkout, ".ci/run", CI="true")[0] == 0
    assert run(checkout, ".ci/run", CI="true", RUFF_ENDS_WITH="1")[0] == 1
    assert run(checkout, ".ci/run", CI="true", PYTEST_ENDS_WITH="1")[0] == 1


def test_the_scripts_are_valid_posix_shell() -> None:
    for script in sorted((ROOT / "script").iterdir()):
        subprocess.run(["sh", "-n", str(script)], check=True)
        assert script.name == "environment" or os.access(script, os.X_OK)
