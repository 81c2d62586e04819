"""MODEL is a path, a run, or a name on the hub; what is not found is said with where it was looked for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gptlab.errors import CheckpointError, DeviceError, ModelError, RunError, TokenizerError, UserError
from gptlab.model.adapter import save_adapter
from gptlab.model.classifier import REWARD, GPTClassifier, RNNClassifier, Task, as_classifier
from gptlab.model.folder import save_model
from gptlab.model.gpt import GPT
from gptlab.model.lora import LoraSettings, add_lora, freeze_body
from gptlab.model.rnn import RNN, RNNShape
from gptlab.run.base import weights_fingerprint
from gptlab.run.checkpoint import Base, TrainingState
from gptlab.run.open import find_model, load_weights, open_model, require_task
from gptlab.run.run import Run
from gptlab.text.tokenizer import Tokenizer


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(model: GPT, tokenizer: Tokenizer, state_at: Callable[[int], TrainingState]) -> Run:
    run = Run.create(Path("runs/mini-gpt"), {"name": "mini-gpt"}, {})
    for step in (1, 2, 3):
        run.save_checkpoint(step, model, tokenizer, state_at(step), keep=2, best=step == 2)
    return run


@pytest.fixture
def plain(model: GPT, tokenizer: Tokenizer) -> Path:
    """A Hugging Face folder that is no run's."""
    save_model(model, Path("models/plain"))
    tokenizer.save(Path("models/plain"))
    return Path("models/plain")


def test_a_run_is_its_best_or_the_checkpoint_asked_for(run: Run) -> None:
    assert find_model("mini-gpt") == find_model("runs/mini-gpt") == Path("runs/mini-gpt/checkpoints/000002")
    assert find_model("mini-gpt", checkpoint="last") == Path("runs/mini-gpt/checkpoints/000003")
    assert find_model("mini-gpt", checkpoint=2) == Path("runs/mini-gpt/checkpoints/000002")
    with pytest.raises(RunError, match="has no checkpoint 9; there is 2, 3"):
        find_model("mini-gpt", checkpoint=9)
    run.folder.parent.rename("elsewhere")
    assert find_model("mini-gpt", runs=Path("elsewhere")).parts[0] == "elsewhere"


def test_a_path_to_a_model_comes_before_a_run_of_that_name(run: Run, plain: Path) -> None:
    assert find_model("models/plain") == plain
    assert find_model(str(plain.absolute())) == plain.absolute()
    shutil.copytree(plain, "mini-gpt")
    assert find_model("mini-gpt") == Path("mini-gpt")
    shutil.rmtree("mini-gpt")
    Path("mini-gpt").mkdir()  # some folder of that name is no model
    assert find_model("mini-gpt") == Path("runs/mini-gpt/checkpoints/000002")


def test_a_damaged_checkpoint_is_not_opened(run: Run) -> None:
    folder = find_model("mini-gpt", checkpoint="last")
    os.truncate(folder / "model.safetensors", 500)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: has 500 bytes"):
        find_model(str(folder))
    with pytest.raises(CheckpointError, match=r"checkpoint 3 is damaged: .*; there is 2"):
        find_model("mini-gpt", checkpoint="last")


def test_what_is_no_model_is_refused(plain: Path) -> None:
    Path("empty").mkdir()
    Path("file").write_text("x")
    for name in ("empty", "file"):
        with pytest.raises(
            ModelError, match=rf"{name}: is no model: it has neither config\.json \(a model\), .* nor recipe"
        ):
            find_model(name)
    with pytest.raises(ModelError, match="models/plain: is no run here, so it has no checkpoint 'best'"):
        find_model("models/plain", checkpoint="best")


def test_what_is_not_found_is_said_with_where_and_the_nearest_run(run: Run) -> None:
    with pytest.raises(ModelError) as caught:
        find_model("./runs/mini-gtp")
    assert str(caught.value).startswith("./runs/mini-gtp: there is no folder runs/mini-gtp and no run ")
    assert str(caught.value).endswith(", and it is no name on the hub (OWNER/NAME)")
    with pytest.raises(ModelError, match=r"mini-gtp: .*so it has no checkpoint 3 \(did you mean 'mini-gpt'\?\)"):
        find_model("mini-gtp", checkpoint=3)


def test_an_open_model_is_ready(run: Run, model: GPT, tokenizer: Tokenizer) -> None:
    opened = open_model("mini-gpt", device="cpu")
    assert (opened.name, opened.folder) == ("mini-gpt", Path("runs/mini-gpt/checkpoints/000002"))
    assert not opened.model.training
    assert opened.require_tokenizer().fingerprint == tokenizer.fingerprint
    tokens = torch.tensor([tokenizer.encode("the cat")])
    with torch.no_grad():
        assert torch.equal(opened.model(tokens), model.eval()(tokens))
    with pytest.raises(DeviceError):
        open_model("mini-gpt", device="abacus")


def test_without_a_tokenizer_the_model_opens_and_says_what_to_put_where(plain: Path) -> None:
    for file in plain.glob("tokenizer*"):
        file.unlink()
    opened = open_model(str(plain), device="cpu")
    assert opened.tokenizer is None
    wanted = (
        r"models/plain: has a model but no tokenizer: put its tokenizer\.json there, or vocab\.json and merges\.txt"
    )
    with pytest.raises(TokenizerError, match=wanted):
        opened.require_tokenizer()


def test_a_tokenizer_larger_than_the_model_is_refused(plain: Path, tokenizer: Tokenizer) -> None:
    config = json.loads((plain / "tokenizer.json").read_text())
    config["added_tokens"].append({**config["added_tokens"][0], "id": tokenizer.vocab_size, "content": "<|user|>"})
    (plain / "tokenizer.json").write_text(json.dumps(config))
    with pytest.raises(TokenizerError, match="the tokenizer has 271 tokens, the model 270: they do not"):
        open_model(str(plain), device="cpu")


LABELS = ("no", "yes", "perhaps")
WRITES = "gptlab generate mine PROMPT writes with it, and gptlab train makes"
REWARDS = (
    "gptlab evaluate mine --on preferences:FILE asks it about pairs of answers, and --reward mine (in a recipe "
    "samples.reward) about what another model answers"
)


def make_rnn(tokenizer: Tokenizer, labels: tuple[str, ...] | None = None) -> Any:
    torch.manual_seed(0)
    model = RNN(RNNShape(tokenizer.vocab_size, context=16, n_layer=2, n_embd=16, n_hidden=16))
    return model if labels is None else as_classifier(model, labels)


def saved(model: Any, tokenizer: Tokenizer, name: str) -> Path:
    save_model(model, Path("models") / name, eos_id=tokenizer.eos_id)
    tokenizer.save(Path("models") / name)
    return Path("models") / name


def adapted(base: Path, labels: tuple[str, ...] | None = None) -> Any:
    """A model with an adapter that has learned something, over the one in `base`."""
    model: Any = load_weights(base)
    model = model if labels is None else as_classifier(model, labels)
    add_lora(model, LoraSettings(rank=2, also_train=("layer_norms",)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@torch.no_grad()
def answers(model: Any) -> torch.Tensor:
    return model.classify(model(torch.arange(24).reshape(2, 12))[:, -1])


@torch.no_grad()
def test_an_rnn_opens_as_a_gpt_does(tokenizer: Tokenizer) -> None:
    model = make_rnn(tokenizer).eval()
    opened = open_model(saved(model, tokenizer, "rnn"), device="cpu", task="language")
    assert type(opened.model) is RNN
    assert not opened.model.training
    assert opened.labels is None
    tokens = torch.arange(12)[None]
    assert torch.equal(opened.model.logits(opened.model(tokens)), model.logits(model(tokens)))


@pytest.mark.parametrize(("labels", "task"), [(LABELS, "classification"), (REWARD, "reward"), (("x",), "reward")])
@pytest.mark.parametrize("kind", [GPTClassifier, RNNClassifier])
def test_a_classifier_opens_with_its_labels(
    model: GPT, tokenizer: Tokenizer, kind: type, labels: tuple[str, ...], task: Task
) -> None:
    classifier = as_classifier(model, labels) if kind is GPTClassifier else make_rnn(tokenizer, labels)
    opened = open_model(saved(classifier, tokenizer, "answers"), device="cpu", task=task)
    assert type(opened.model) is kind
    assert (opened.labels, opened.task) == (labels, task)
    assert torch.equal(answers(opened.model), answers(classifier.eval()))


def test_a_model_of_the_other_kind_is_refused_with_the_verb_for_it(
    plain: Path, model: GPT, tokenizer: Tokenizer
) -> None:
    classifier = saved(as_classifier(model, LABELS), tokenizer, "answers")
    (classifier / "model.safetensors").unlink()  # no weights are read
    with pytest.raises(
        UserError, match="answers: is a classifier of 3 classes and writes no text; gptlab classify models/answers TEXT"
    ):
        open_model(classifier, device="cpu", task="language")
    (plain / "model.safetensors").unlink()
    with pytest.raises(
        UserError, match="plain: is a language model and has no classes; gptlab generate models/plain PROMPT"
    ):
        open_model(plain, device="cpu", task="classification")


@pytest.mark.parametrize(
    ("labels", "task", "words"),
    [
        (None, "classification", f"is a language model and has no classes; {WRITES} a classifier of it (start = MODEL, "
         'data.kind = "labels")'),
        (None, "reward", f"is a language model and gives no rewards; {WRITES} a reward model of it (start = MODEL, "
         'data.kind = "preferences", objective.kind = "reward")'),
        (LABELS, "language", "is a classifier of 3 classes and writes no text; gptlab classify mine TEXT asks it"),
        (LABELS, "reward", "is a classifier of 3 classes and gives no rewards; gptlab classify mine TEXT asks it"),
        (("LABEL_0",), "language", f"is a reward model and writes no text; {REWARDS}"),
        (REWARD, "classification", f"is a reward model and has no classes; {REWARDS}"),
    ],
)  # fmt: skip
def test_each_kind_is_refused_where_another_is_wanted(labels: tuple[str, ...] | None, task: Task, words: str) -> None:
    with pytest.raises(UserError) as caught:
        require_task(task, "mine", labels)
    assert str(caught.value) == f"mine: {words}"


@pytest.mark.parametrize(("labels", "task"), [(None, "language"), (LABELS, "classification"), (("x",), "reward")])
def test_a_model_of_the_kind_that_is_wanted_is_let_through(labels: tuple[str, ...] | None, task: Task) -> None:
    require_task(task, "mine", labels)


def test_a_reward_model_learned_by_lora_opens_merged_into_its_base(plain: Path, tokenizer: Tokenizer) -> None:
    model = adapted(plain, REWARD)
    run = Run.create(Path("runs/lora"), {"name": "lora"}, {})
    base = Base(str(plain.absolute()), plain, weights_fingerprint(plain), context=12)
    run.save_checkpoint(1, model, tokenizer, TrainingState(1, {}, {}, {}), keep=1, best=True, base=base)
    opened = open_model("lora", device="cpu", task="reward")
    assert (type(opened.model), opened.labels) == (GPTClassifier, REWARD)
    assert answers(opened.model).shape == (2, 1)
    torch.testing.assert_close(answers(opened.model), answers(model), atol=1e-5, rtol=1e-5)


def test_a_classifier_learned_by_lora_opens_merged_into_its_base(plain: Path, tokenizer: Tokenizer) -> None:
    """The base is a language model; its output layer is left behind."""
    model = adapted(plain, LABELS)
    run = Run.create(Path("runs/lora"), {"name": "lora"}, {})
    base = Base(str(plain.absolute()), plain, weights_fingerprint(plain), context=12)
    folder = run.save_checkpoint(1, model, tokenizer, TrainingState(1, {}, {}, {}), keep=1, best=True, base=base)
    assert {"adapter_model.safetensors", "labels.json", "tokenizer.json"} < {path.name for path in folder.iterdir()}
    torch.manual_seed(3)
    before = torch.get_rng_state()
    opened = open_model("lora", device="cpu", task="classification")
    assert torch.equal(torch.get_rng_state(), before)
    assert type(opened.model) is GPTClassifier
    assert opened.labels == LABELS
    assert opened.model.shape.context == 12
    torch.testing.assert_close(answers(opened.model), answers(model), atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="gptlab classify lora TEXT"):
        open_model("lora", device="cpu", task="language")
    again = load_weights(folder, merged=False).eval()
    assert torch.equal(answers(again), answers(model))


def test_a_base_that_is_a_classifier_lends_its_body(model: GPT, tokenizer: Tokenizer) -> None:
    base = saved(as_classifier(model, ("a", "b")), tokenizer, "answers")
    for number, labels in enumerate((("a", "b"), LABELS)):
        learned = adapted(base, labels)
        run = Run.create(Path(f"runs/lora-{number}"), {"name": "lora"}, {})
        found = Base(str(base.absolute()), base, weights_fingerprint(base), context=16)
        run.save_checkpoint(1, learned, tokenizer, TrainingState(1, {}, {}, {}), keep=1, best=True, base=found)
        opened = open_model(f"lora-{number}", device="cpu")
        assert opened.labels == labels
        torch.testing.assert_close(answers(opened.model), answers(learned), atol=1e-5, rtol=1e-5)


def test_an_adapter_over_an_rnn_is_refused(plain: Path, tokenizer: Tokenizer) -> None:
    model = adapted(plain)
    rnn = saved(make_rnn(tokenizer), tokenizer, "rnn")
    run = Run.create(Path("runs/lora"), {"name": "lora"}, {})
    base = Base(str(rnn.absolute()), rnn, weights_fingerprint(rnn), context=16)
    run.save_checkpoint(1, model, tokenizer, TrainingState(1, {}, {}, {}), keep=1, best=True, base=base)
    with pytest.raises(ModelError, match="is the adapter of a GPT, and its base is an RNN"):
        open_model("lora", device="cpu")


@pytest.mark.parametrize("frozen", [False, True])
def test_a_classifier_s_run_opens(
    model: GPT, tokenizer: Tokenizer, state_at: Callable[[int], TrainingState], frozen: bool
) -> None:
    """Also where only the head was learned: a checkpoint holds the whole model."""
    for number, classifier in enumerate((as_classifier(model, LABELS), make_rnn(tokenizer, LABELS))):
        if frozen:
            freeze_body(classifier)
        run = Run.create(Path(f"runs/classes-{number}"), {"name": "classes"}, {})
        run.save_checkpoint(1, classifier, tokenizer, state_at(1), keep=1, best=True)
        opened = open_model(f"classes-{number}", device="cpu")
        assert opened.labels == LABELS
        assert torch.equal(answers(opened.model), answers(classifier.eval()))


# The hub, served on 127.0.0.1. huggingface_hub reads its environment when it is imported: hence a process.

OPEN = """
import sys
from gptlab.errors import GptlabError
from gptlab.run.open import open_model
try:
    opened = open_model(sys.argv[1], device="cpu")
    print(opened.name, opened.require_tokenizer().fingerprint, opened.model.wte.weight.sum().item())
except GptlabError as error:
    print(type(error).__name__, error)
"""


def opened_from_hub(name: str, environment: dict[str, str]) -> str:
    command = [sys.executable, "-c", OPEN, name]
    done = subprocess.run(command, env=environment, text=True, capture_output=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("pickled", [False, True])
def test_a_name_on_the_hub_opens(
    hub: Any, hub_environment: dict[str, str], plain: Path, model: GPT, tokenizer: Tokenizer, pickled: bool
) -> None:
    repository = hub.folder / "models" / "acme" / "tiny"
    shutil.copytree(plain, repository)
    (repository / "onnx").mkdir()
    (repository / "onnx" / "model.onnx").write_bytes(bytes(1000))
    torch.save({**model.state_dict()}, repository / "pytorch_model.bin")
    if pickled:  # an old repository, in the library's layout
        from safetensors.torch import load_file

        torch.save(load_file(repository / "model.safetensors"), repository / "pytorch_model.bin")
        (repository / "model.safetensors").unlink()
    total = model.wte.weight.sum().item()
    assert opened_from_hub("acme/tiny", hub_environment) == f"acme/tiny {tokenizer.fingerprint} {total}"
    asked = [request for request in hub.requests if "resolve" in request]
    assert any("pytorch_model.bin" in request for request in asked) == pickled
    assert not any("onnx" in request for request in asked)


def test_what_kind_a_model_on_the_hub_is_costs_no_weights(
    hub: Any, hub_environment: dict[str, str], plain: Path
) -> None:
    shutil.copytree(plain, hub.folder / "models" / "acme" / "tiny")
    script = (
        "from gptlab.model.folder import read_labels\nfrom gptlab.run.open import find_model\n"
        "folder = find_model('acme/tiny', kind_only=True)\n"
        "print(read_labels(folder), *(path.name for path in folder.iterdir()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=hub_environment, text=True, capture_output=True, check=True
    )
    assert done.stdout.strip() == "None config.json"


def test_an_adapter_of_a_classifier_comes_from_the_hub_with_its_labels(
    hub: Any, hub_environment: dict[str, str], plain: Path, tokenizer: Tokenizer
) -> None:
    folder = hub.folder / "models" / "acme" / "answers"
    save_adapter(adapted(plain, LABELS), folder, base=str(plain.absolute()))
    tokenizer.save(folder)
    script = OPEN.replace("opened.model.wte.weight.sum().item()", "*opened.labels")
    done = subprocess.run(
        [sys.executable, "-c", script, "acme/answers"], env=hub_environment, text=True, capture_output=True, check=True
    )
    assert done.stdout.strip() == f"acme/answers {tokenizer.fingerprint} no yes perhaps"


def test_what_is_nowhere_is_said(hub: Any, hub_environment: dict[str, str], run: Run) -> None:
    (hub.folder / "models").mkdir(parents=True, exist_ok=True)
    said = opened_from_hub("mini-gtp", hub_environment)
    assert said.startswith(
        "ModelError mini-gtp: there is no folder mini-gtp and no run runs/mini-gtp (did you mean 'mini-gpt'?); the hub"
    )
