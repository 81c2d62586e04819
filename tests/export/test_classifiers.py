"""A classifier that is exported is, for transformers and for PEFT, the model it came from; its card's code runs. What
nobody else can read is refused by name."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from gptlab.errors import GptlabError, ModelError
from gptlab.export.checks import check_with_transformers
from gptlab.export.copies import ask, own_reader, prompts
from gptlab.export.export import export_model
from gptlab.export.source import find_source
from gptlab.model.adapter import save_adapter
from gptlab.model.classifier import GPTClassifier, as_classifier
from gptlab.model.folder import save_model
from gptlab.model.huggingface import load_model
from gptlab.model.lora import LoraSettings, add_lora
from gptlab.model.rnn import RNN, RNNShape
from gptlab.run.open import open_model
from gptlab.text.tokenizer import Tokenizer

LABELS = ("not a mill", "a “mill”", "perhaps")
TEXT = "Once upon a time there was a mill."


@pytest.fixture
def classifier(make_model: Callable[..., Path], tokenizer: Tokenizer) -> Path:
    model = as_classifier(load_model(make_model()), LABELS)
    with torch.no_grad():
        model.score.weight.normal_(0, 0.5)
    save_model(model, Path("classes"), eos_id=tokenizer.eos_id)
    tokenizer.save(Path("classes"))
    return Path("classes")


@pytest.fixture
def adapter(make_model: Callable[..., Path], tokenizer: Tokenizer) -> Path:
    """Over a language model."""
    base = make_model()
    model = as_classifier(load_model(base), LABELS)
    add_lora(model, LoraSettings(rank=2, also_train=("layer_norms",)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    save_adapter(model, Path("adapter"), base=str(base.absolute()))
    tokenizer.save(Path("adapter"))
    return Path("adapter")


@torch.no_grad()
def ours(folder: Path) -> Tensor:
    opened = open_model(folder, device="cpu", task="classification")
    assert isinstance(opened.model, GPTClassifier)
    ids = opened.require_tokenizer().encode(TEXT)
    return opened.model.classify(opened.model(torch.tensor([ids]))[:, -1])


@torch.no_grad()
def theirs(folder: Path, model: Any) -> Tensor:
    from transformers import AutoTokenizer

    return model.eval()(**AutoTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt")).logits


def test_transformers_reads_the_classifier(classifier: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    done = export_model(classifier, "out")
    model = AutoModelForSequenceClassification.from_pretrained(done.folder)
    assert model.config.id2label == dict(enumerate(LABELS))
    torch.testing.assert_close(theirs(done.folder, model), ours(classifier), rtol=0, atol=1e-4)
    assert set(done.files) == {
        "README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip
    assert [check.partition(":")[0] for check in done.checks] == ["read by gptlab", "read by transformers"]
    assert not any("text" in check for check in done.checks), "it writes none"


def test_peft_reads_the_adapter(adapter: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    done = export_model(adapter, "out")
    assert {"adapter_config.json", "adapter_model.safetensors", "labels.json"} < set(done.files)
    base = AutoModelForSequenceClassification.from_pretrained("plain", num_labels=3)
    torch.testing.assert_close(
        theirs(done.folder, PeftModel.from_pretrained(base, done.folder)), ours(adapter), rtol=0, atol=1e-4
    )
    assert done.checks[1].startswith("read by transformers and PEFT: ")


def test_an_adapter_is_merged(adapter: Path) -> None:
    done = export_model(adapter, "out", merge=True)
    assert done.checks[0].startswith("merged into its base: logits differ by at most ")
    assert "model.safetensors" in done.files
    assert open_model(done.folder, device="cpu").labels == LABELS
    torch.testing.assert_close(ours(done.folder), ours(adapter), rtol=0, atol=1e-4)


@pytest.mark.parametrize("merge", [None, False, True], ids=["whole", "adapter", "merged"])
def test_its_card_says_what_it_is_and_its_code_runs(request: pytest.FixtureRequest, merge: bool | None) -> None:
    model = request.getfixturevalue("classifier" if merge is None else "adapter")
    folder = export_model(model, "out", merge=bool(merge)).folder
    _, fields, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(fields)["pipeline_tag"] == "text-classification"
    assert "How probable it is that a text is each of these: `not a mill`, `a “mill”`, `perhaps`." in text
    assert 'gptlab classify out "Once upon' in text
    assert "\n\n\n" not in text
    head = 3 * 32
    counted = int(re.search(r"is a GPT of ([\d,]+) parameters", text)[1].replace(",", ""))
    assert counted == sum(p.numel() for p in load_model(Path("plain")).parameters()) + head
    (code,) = re.findall("```python\n(.*?)```", text, re.DOTALL)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    wanted = dict(zip(LABELS, ours(model).softmax(-1)[0].tolist(), strict=True))
    found = {each["label"]: each["score"] for each in eval(printed.getvalue())}
    assert found == pytest.approx(wanted, abs=1e-4)


def test_a_copy_with_other_classes_is_noticed(classifier: Path) -> None:
    source = find_source(str(classifier), runs=Path("runs"), checkpoint=None)
    model = source.load()
    answers = ask(own_reader(model, source.end_id), prompts(source.tokenizer, None, 64), 64)
    assert [len(logits) for logits in answers.logits] == [1, 1, 1]
    shutil.copytree(classifier, "copy")
    config = json.loads(Path("copy/config.json").read_text())
    turned = {"id2label": dict(zip("012", LABELS[::-1], strict=True))}
    Path("copy/config.json").write_text(json.dumps(config | turned))
    with pytest.raises(GptlabError, match=r"read by transformers: its classes are .*, the model's "):
        check_with_transformers(Path("copy"), source, answers)


@pytest.mark.parametrize("kind", ["classifier", "adapter"])
def test_llama_cpp_has_no_classifiers(request: pytest.FixtureRequest, kind: str) -> None:
    model = request.getfixturevalue(kind)
    with pytest.raises(ModelError, match=f"{model}: is a classifier, and llama.cpp's GPT-2 can only write; .*huggingf"):
        export_model(model, "out", format="gguf")
    assert not Path("out").exists()


@pytest.mark.parametrize("labels", [None, LABELS])
def test_an_rnn_is_refused_by_name(tokenizer: Tokenizer, labels: tuple[str, ...] | None) -> None:
    model = RNN(RNNShape(tokenizer.vocab_size, context=16, n_layer=1, n_embd=16, n_hidden=16))
    save_model(model if labels is None else as_classifier(model, labels), Path("rnn"))
    tokenizer.save(Path("rnn"))
    for format in ("huggingface", "gguf"):
        with pytest.raises(
            ModelError, match=r"rnn: is an RNN, and neither transformers nor llama\.cpp has such a model"
        ):
            export_model("rnn", "out", format=format)
    assert os.listdir() == ["rnn"]
