"""A teacher of classes says once what it thinks of every text; one of language must read as its student does."""

import threading

import numpy as np
import pytest
import torch

from gptlab.data.labels import rows_of_texts
from gptlab.device import Precision
from gptlab.errors import GptlabError, TokenizerError, UserError
from gptlab.model.adapter import save_adapter
from gptlab.model.classifier import GPTClassifier, RNNClassifier, as_classifier
from gptlab.model.folder import save_model
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.lora import LoraSettings, add_lora
from gptlab.model.rnn import RNN, RNNShape
from gptlab.run.open import open_model
from gptlab.text.tokenizer import Tokenizer
from gptlab.training.teaching import check_language_teacher, taught_rows

LABELS = ("no", "yes", "perhaps")
TEXTS = [(f"the {noun} {verb}" + " and then" * n,) for n, noun in enumerate(("cat", "dog", "bird")) for verb in
         ("runs", "sleeps", "sees the tree", "is")]  # fmt: skip
FLOAT32, BFLOAT16 = (Precision(name, getattr(torch, name), "") for name in ("float32", "bfloat16"))


@pytest.fixture(scope="module")
def tokenizers():
    """The teacher's and its student's."""
    text = " ".join(text for (text,) in TEXTS)
    return Tokenizer.train([text], 280), Tokenizer.train([text], 257)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "teachers"


def kept(cache):
    """What is in the cache: files of logits."""
    return sorted(cache.glob("*/logits.npy"))


@pytest.fixture(params=["gpt", "rnn"])
def kind(request):
    return request.param


def make_teacher(folder, tokenizer, kind="gpt", labels=LABELS, seed=0):
    torch.manual_seed(seed)
    if kind == "gpt":
        shape = GPTShape(vocab_size=tokenizer.vocab_size, context=12, n_layer=1, n_head=2, n_embd=8)
        model = GPTClassifier(shape, labels)
    else:
        shape = RNNShape(vocab_size=tokenizer.vocab_size, context=12, n_layer=1, n_embd=8, n_hidden=8)
        model = RNNClassifier(shape, labels)
    with torch.no_grad():
        model.score.weight.mul_(50)  # so that texts differ
    save_model(model, folder)
    tokenizer.save(folder)
    return open_model(folder, device="cpu", task="classification")


def rows_of(texts, tokenizer, labels=LABELS):
    return rows_of_texts(texts, tokenizer, context=64, labels=labels, separator="\n")


def ask(teacher, rows, precision=FLOAT32):
    """The teacher's logits of each of the rows."""
    taught = taught_rows(teacher, {"train": rows}, separator="\n", precision=precision)["train"]
    batch = taught.batch(np.arange(len(rows)))
    return batch.values["teacher"][batch.rows.argsort()]


def test_each_row_has_what_the_teacher_says_of_its_text_alone(tmp_path, tokenizers, kind):
    teacher = make_teacher(tmp_path / "teacher", tokenizers[0], kind)
    splits = {"train": rows_of(TEXTS, tokenizers[1]), "validation": rows_of(TEXTS[5:8], tokenizers[1])}
    taught = taught_rows(teacher, splits, separator="\n", precision=FLOAT32)
    for split, texts in {"train": TEXTS, "validation": TEXTS[5:8]}.items():
        numbers = np.arange(len(texts))[::-1]
        batch = taught[split].batch(numbers)
        plain = splits[split].batch(numbers)
        assert torch.equal(batch.tokens, plain.tokens)  # the student's own
        assert torch.equal(batch.targets, plain.targets)
        assert (len(taught[split]), taught[split].context) == (len(texts), splits[split].context)
        for number, found in zip(batch.rows, batch.values["teacher"], strict=True):
            alone = rows_of_texts([texts[number]], tokenizers[0], context=12, labels=LABELS, separator="\n")
            one = alone.batch(np.array([0]))
            with torch.no_grad():
                hidden = teacher.model(one.tokens).flatten(0, 1)[one.positions]
                torch.testing.assert_close(found, teacher.model.classify(hidden)[0], rtol=1e-5, atol=1e-5)


def test_it_is_asked_once_for_the_same_texts(tmp_path, tokenizers, cache):
    teacher, rows = make_teacher(tmp_path / "teacher", tokenizers[0]), rows_of(TEXTS, tokenizers[1])
    first = ask(teacher, rows)
    with torch.no_grad():
        teacher.model.score.weight.zero_()  # who asks now would hear nothing
    assert torch.equal(ask(teacher, rows), first)
    assert torch.equal(ask(teacher, rows_of(TEXTS, tokenizers[0])), first)  # whatever the student reads them with
    assert len(kept(cache)) == 1


def test_whatever_the_logits_depend_on_has_logits_of_its_own(tmp_path, tokenizers, cache):
    teacher, rows = make_teacher(tmp_path / "teacher", tokenizers[0]), rows_of(TEXTS, tokenizers[1])
    ask(teacher, rows)
    ask(teacher, rows, BFLOAT16)
    ask(teacher, rows_of(TEXTS[1:], tokenizers[1]))
    ask(make_teacher(tmp_path / "other weights", tokenizers[0], seed=1), rows)
    ask(make_teacher(tmp_path / "other tokens", tokenizers[1]), rows)
    assert len(kept(cache)) == 5
    ask(make_teacher(tmp_path / "the same", tokenizers[0]), rows)
    assert len(kept(cache)) == 5


def test_an_adapters_logits_are_those_of_its_base_too(tmp_path, tokenizers, cache):
    base, folder, rows = tmp_path / "base", tmp_path / "adapter", rows_of(TEXTS, tokenizers[1])
    torch.manual_seed(0)
    model = GPT(GPTShape(vocab_size=tokenizers[0].vocab_size, context=12, n_layer=1, n_head=2, n_embd=8))
    save_model(model, base)
    adapted = as_classifier(model, LABELS)
    add_lora(adapted, LoraSettings(rank=2, alpha=4))
    save_adapter(adapted, folder, base=str(base))
    tokenizers[0].save(folder)
    first = ask(open_model(folder, device="cpu", task="classification"), rows)
    save_model(GPT(model.shape), base)  # other weights, and the same adapter
    second = ask(open_model(folder, device="cpu", task="classification"), rows)
    assert len(kept(cache)) == 2
    assert not torch.equal(first, second)


@pytest.mark.parametrize("damage", ["cut", "changed", "another shape", "no manifest"])
def test_what_is_damaged_is_made_anew(tmp_path, tokenizers, cache, damage):
    teacher, rows = make_teacher(tmp_path / "teacher", tokenizers[0]), rows_of(TEXTS, tokenizers[1])
    expected = ask(teacher, rows)
    [file] = kept(cache)
    content = file.read_bytes()
    if damage == "cut":
        file.write_bytes(content[:-3])
    elif damage == "changed":
        file.write_bytes(content[:-1] + b"\x00")
    elif damage == "another shape":
        np.save(file, np.zeros((3, 2), dtype=np.float32))
    else:
        (file.parent / "manifest.json").unlink()
    assert torch.equal(ask(teacher, rows), expected)
    assert file.read_bytes() == content


def test_of_two_who_want_the_same_one_asks(tmp_path, tokenizers):
    teacher, rows = make_teacher(tmp_path / "teacher", tokenizers[0]), rows_of(TEXTS, tokenizers[1])
    calls, found, together = [], [], threading.Barrier(2)
    teacher.model.register_forward_hook(lambda *_: calls.append(1))

    def one():
        together.wait()
        found.append(ask(teacher, rows))

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert torch.equal(*found)
    assert len(calls) == 1


def test_labels_in_another_order_are_put_in_the_students(tmp_path, tokenizers, cache):
    teacher = make_teacher(tmp_path / "teacher", tokenizers[0])
    order = [2, 0, 1]
    turned = ask(teacher, rows_of(TEXTS, tokenizers[1], [LABELS[place] for place in order]))
    assert torch.equal(turned, ask(teacher, rows_of(TEXTS, tokenizers[1]))[:, order])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("no", "yes", "never"), "it lacks 'never'; only it has 'perhaps'"),
        (("no", "yes"), "than the data: only it has 'perhaps'"),
        ((*LABELS, *"abcdef"), "it lacks 'a', 'b', 'c', 'd', 'e' and 1 more"),
    ],
)
def test_other_labels_are_an_error_that_names_them(tmp_path, tokenizers, labels, message):
    teacher = make_teacher(tmp_path / "teacher", tokenizers[0])
    with pytest.raises(UserError, match=message):
        ask(teacher, rows_of(TEXTS, tokenizers[1], labels))


def test_a_teacher_without_a_tokenizer_reads_nothing(tmp_path, tokenizers):
    make_teacher(tmp_path / "teacher", tokenizers[0])
    (tmp_path / "teacher" / "tokenizer.json").unlink()
    teacher = open_model(tmp_path / "teacher", device="cpu", task="classification")
    with pytest.raises(TokenizerError, match="has a model but no tokenizer"):
        ask(teacher, rows_of(TEXTS, tokenizers[1]))


def test_a_cache_that_cannot_be_written_is_an_error_that_says_where(tmp_path, tokenizers, monkeypatch):
    teacher = make_teacher(tmp_path / "teacher", tokenizers[0])
    (tmp_path / "file").touch()
    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path / "file"))
    with pytest.raises(GptlabError, match=r"cannot be written: .*GPTLAB_CACHE"):
        ask(teacher, rows_of(TEXTS, tokenizers[1]))


def language_teacher(folder, tokenizer, *, recurrent=False, extra=0):
    """A teacher with a context of 12, its output layer `extra` tokens larger than its tokenizer."""
    vocab_size = tokenizer.vocab_size + extra
    if recurrent:
        model = RNN(RNNShape(vocab_size=vocab_size, context=12, n_layer=1, n_embd=8, n_hidden=8))
    else:
        model = GPT(GPTShape(vocab_size=vocab_size, context=12, n_layer=1, n_head=2, n_embd=8))
    save_model(model, folder)
    tokenizer.save(folder)
    return open_model(folder, device="cpu", task="language")


def test_a_teacher_of_language_reads_the_students_tokens_and_rows(tmp_path, tokenizers):
    teacher = language_teacher(tmp_path / "gpt", tokenizers[0], extra=4)
    check_language_teacher(teacher, tokenizers[0], context=12)
    check_language_teacher(teacher, tokenizers[0], context=5, vocab_size=284)
    recurrent = language_teacher(tmp_path / "rnn", tokenizers[0], recurrent=True)
    check_language_teacher(recurrent, tokenizers[0], context=40)  # it reads on for as long as wanted
    with pytest.raises(UserError, match="reads 12 tokens at once, the student's rows have 13"):
        check_language_teacher(teacher, tokenizers[0], context=13)
    with pytest.raises(UserError, match="output layer of 284 tokens, the student of 280"):
        check_language_teacher(teacher, tokenizers[0], context=12, vocab_size=280)


def test_another_tokenizer_is_an_error_that_says_in_what(tmp_path, tokenizers):
    ours, smaller = tokenizers
    teacher = language_teacher(tmp_path / "gpt", ours)
    others = Tokenizer.train(["zebra zonk quux wobble flummox gizmo whizz " * 30], ours.vocab_size)
    assert others.vocab_size == ours.vocab_size
    for tokenizer, message in {
        smaller: "the teacher has 280 tokens, the student 257",
        ours.with_special_tokens(
            ["<|user|>"]
        ): r"only the student has the special tokens '<\|user\|>'; the teacher has 280",
        others: "as many, but others",
    }.items():
        with pytest.raises(TokenizerError, match=f"reads other tokens than its student: .*{message}"):
            check_language_teacher(teacher, tokenizer, context=12)
