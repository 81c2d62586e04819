"""A name on the hub becomes a folder here, against a hub that the test serves on 127.0.0.1.

huggingface_hub reads its environment when it is imported, so what asks that hub runs in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gptlab.hub import cache_folder, is_hub_name

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def run(hub: Any, hub_environment: dict[str, str]) -> Any:
    """Runs Python with gptlab.hub's names and gives what it prints; of a GptlabError, its class and message."""
    files = hub.folder / "models" / "acme" / "tiny"
    files.mkdir(parents=True)
    (files / "config.json").write_text('{"n_layer": 2}')
    (files / "weights.bin").write_bytes(bytes(range(256)) * 100)
    (hub.folder / "models" / "acme" / "gated-tiny").mkdir()

    def run(expression: str, **environment: str) -> str:
        code = (
            "from gptlab.errors import GptlabError\nfrom gptlab.hub import *\n"
            f"try: print({expression})\nexcept GptlabError as error: print(type(error).__name__, error)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], env={**hub_environment, **environment}, text=True, capture_output=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


def test_only_the_files_asked_for_are_loaded_and_only_once(hub: Any, run: Any) -> None:
    folder = Path(run("download_files('acme/tiny', ['*.json'])"))
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert json.loads((folder / "config.json").read_text()) == {"n_layer": 2}
    assert COMMIT in folder.parts

    hub.requests.clear()
    assert Path(run("download_files('acme/tiny', ['*.json'])")) == folder
    assert not [request for request in hub.requests if "/resolve/" in request]


def test_without_a_network_the_cache_is_enough(run: Any) -> None:
    folder = run("download_files('acme/tiny', ['config.json'])")
    assert run("download_files('acme/tiny', ['config.json'])", HF_HUB_OFFLINE="1") == folder
    assert run("download_files('acme/tiny', ['config.json'])", HF_ENDPOINT="http://127.0.0.1:9") == folder


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_without_a_network_and_a_cache_it_is_said(run: Any, environment: dict[str, str]) -> None:
    said = run("download_files('acme/tiny', ['config.json'])", **environment)
    assert said.startswith("GptlabError the model acme/tiny could not be read from the hub")
    assert "not in its cache" in said


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("download_files('acme/none', ['*'])", "'acme/none' is neither a path here nor a model on the hub"),
        ("download_files('acme/tiny', ['*'], kind='dataset')", "'acme/tiny' is neither a path here nor a dataset"),
        ("download_files('acme/tiny', ['*'], revision='v9')", "no such revision"),
        ("download_files('acme/gated-tiny', ['*'])", "the model acme/gated-tiny is gated: accept its terms"),
        ("download_files('acme/tiny', ['vocab.json'])", "none of the files looked for: vocab.json"),
    ],
)
def test_what_the_hub_refuses_is_named(run: Any, call: str, message: str) -> None:
    said = run(call)
    assert said.startswith("UserError")
    assert message in said


def test_the_package_missing_is_said_with_its_cure(run: Any) -> None:
    hidden = "__import__('sys').modules.__setitem__('huggingface_hub', None)"
    assert "pip install 'gptlab[hub]'" in run(f"{hidden} or download_files('acme/tiny', ['*'])")


def test_a_revision_is_resolved_to_its_commit(hub: Any, run: Any) -> None:
    assert run("resolve_revision('acme/tiny')") == COMMIT
    assert run("resolve_revision('acme/tiny', revision='main')") == COMMIT
    hub.requests.clear()
    assert run(f"resolve_revision('acme/tiny', revision='{COMMIT}')") == COMMIT
    assert hub.requests == [], "a commit needs no network"


def test_names() -> None:
    assert all(map(is_hub_name, ["gpt2", "microsoft/DialoGPT-large", "EleutherAI/pythia-1.4b"]))
    assert not any(map(is_hub_name, ["./gpt2", "~/gpt2", "/gpt2", "a/b/c", "a/", "", "..", "a b"]))


def test_importing_it_imports_nothing_of_the_hub() -> None:
    code = "import sys, gptlab.hub; assert not {'huggingface_hub', 'datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTLAB_CACHE", "/big/disk")
    assert cache_folder() == Path("/big/disk")
    monkeypatch.delenv("GPTLAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/gptlab")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache/gptlab"
