"""Exported to the hub and opened from there again: a hub that the test serves on 127.0.0.1.

huggingface_hub reads its environment when it is imported, so what asks that hub runs in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptlab.run.open import open_model

CODE = """
import json, sys
sys.modules["transformers"] = None  # as where it is not installed
from gptlab.errors import GptlabError
from gptlab.export.export import export_model
from gptlab.hub import check_upload, upload_folder
from gptlab.run.open import open_model
from pathlib import Path
def read(name):
    opened = open_model(name, device="cpu")
    return [opened.require_tokenizer().fingerprint, opened.model.wte.weight.sum().item(), opened.template is not None]
try:
    print(json.dumps(eval(sys.argv[1])))
except GptlabError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


@pytest.fixture
def on_hub(hub: Any, hub_environment: dict[str, str]) -> Callable[..., Any]:
    """Evaluates an expression where the hub is that one, and a token is known that may write; of a GptlabError, its
    class and message."""
    hub.folder.mkdir()
    known = {**hub_environment, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_may_write"}

    def evaluate(expression: str, **environment: str) -> Any:
        command = [sys.executable, "-c", CODE, expression]
        done = subprocess.run(command, env={**known, **environment}, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return evaluate


def export(model: Path, to: str, **options: Any) -> str:
    return f"export_model({str(model)!r}, {to!r}, push='me/mine', **{options!r}).address"


def test_what_was_pushed_opens_from_there(
    hub: Any, on_hub: Callable[..., Any], make_model: Callable[..., Path]
) -> None:
    model = make_model(template="chatml")
    assert on_hub(export(model, "out")) == f"{hub.endpoint}/me/mine"
    pushed = hub.folder / "models" / "me" / "mine"
    assert {path.name: path.read_bytes() for path in pushed.iterdir()} == {
        path.name: path.read_bytes() for path in Path("out").iterdir()
    }
    (asked,) = hub.created
    assert asked["name"] == "mine"
    assert asked.get("visibility") == "private" or asked.get("private") is True
    opened = open_model(model, device="cpu")
    total = opened.model.wte.weight.sum().item()
    assert on_hub("read('me/mine')") == [opened.require_tokenizer().fingerprint, total, True]


def test_a_second_push_takes_the_place_of_the_first(
    hub: Any, on_hub: Callable[..., Any], make_adapter: Callable[..., Path]
) -> None:
    """Were the adapter's files left beside the model's, transformers would put the adapter on it once more."""
    pushed = hub.folder / "models" / "me" / "mine"
    pushed.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors", "pytorch_model.bin", "chat_template.jinja"):
        (pushed / name).write_text("old")
    (pushed / "notes.txt").write_text("mine")
    adapter = make_adapter()
    assert on_hub(export(adapter, "out", merge=True)) == f"{hub.endpoint}/me/mine"
    assert {path.name for path in pushed.iterdir()} == {*(path.name for path in Path("out").iterdir()), "notes.txt"}
    assert hub.created == [], "it was there"

    assert on_hub(export(adapter, "file", format="gguf")) == f"{hub.endpoint}/me/mine"
    assert {"model.gguf", "model.safetensors", "notes.txt"} < {path.name for path in pushed.iterdir()}
    assert 'Llama.from_pretrained("me/mine", "model.gguf")' in (pushed / "README.md").read_text()


def test_an_adapter_to_a_base_that_only_this_machine_has_is_not_pushed(
    hub: Any, on_hub: Callable[..., Any], make_adapter: Callable[..., Path]
) -> None:
    kind, said = on_hub(export(make_adapter(), "out"))
    assert kind == "UserError"
    assert said.startswith("me/mine: nobody could read this adapter from the hub, for its base is ")
    assert said.endswith("push the two as one model (--merge)")
    assert not Path("out").exists()
    assert hub.requests == []


def test_an_adapter_to_a_base_on_the_hub(
    hub: Any, on_hub: Callable[..., Any], make_adapter: Callable[..., Path]
) -> None:
    adapter = make_adapter()
    (hub.folder / "models" / "acme").mkdir(parents=True)
    Path("plain").rename(hub.folder / "models" / "acme" / "base")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "acme/base"}))
    assert on_hub(export(adapter, "out")) == f"{hub.endpoint}/me/mine"
    assert json.loads(Path("out/adapter_config.json").read_text())["base_model_name_or_path"] == "acme/base"
    assert 'base_model: "acme/base"\n' in Path("out/README.md").read_text()
    assert on_hub("read('me/mine')") == on_hub(f"read({str(adapter)!r})")


@pytest.mark.parametrize(
    ("environment", "kind", "wanted", "remains"),
    [
        (
            {"HF_TOKEN": ""},
            "UserError",
            "me/mine: the hub takes uploads from those it knows: run `hf auth login`",
            False,
        ),
        ({"HF_TOKEN": "hf_may_read"}, "UserError", "does not let this token write there: ", True),
        (
            {"HF_ENDPOINT": "http://127.0.0.1:9"},
            "GptlabError",
            "me/mine could not be uploaded to the hub at http",
            True,
        ),
    ],
    ids=["no token", "a token that may not write", "no network"],
)
def test_what_the_hub_refuses_is_said(
    on_hub: Callable[..., Any], make_model: Callable[..., Path], environment: dict[str, str], kind: str, wanted: str,
    remains: bool,
) -> None:  # fmt: skip
    said = on_hub(export(make_model(), "out"), **environment)
    assert said[0] == kind
    assert wanted in said[1]
    assert Path("out/model.safetensors").exists() == remains
    assert said[1].endswith(f"to upload it: hf upload me/mine {Path('out').absolute()}") == remains


def test_without_transformers_it_is_said(on_hub: Callable[..., Any], make_model: Callable[..., Path]) -> None:
    make_model()
    assert on_hub("export_model('plain', 'out').checks") == [
        "read by gptlab: logits are equal, greedy text is equal",
        "transformers is not installed here: not read by it",
    ]


def test_the_package_missing_is_said_with_its_cure(on_hub: Callable[..., Any]) -> None:
    hidden = "__import__('sys').modules.__setitem__('huggingface_hub', None)"
    assert on_hub(f"{hidden} or check_upload('me/mine')") == [
        "UserError", "uploading to the hub needs: pip install 'gptlab[hub]'",
    ]  # fmt: skip
