"""Zero-shot scores against a plain computation by transformers in float64, closed forms, and what changes nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from gptlab.data.batch import pad_rows
from gptlab.data.choices import Item, Kind, read_choices
from gptlab.device import Precision
from gptlab.errors import ModelError
from gptlab.evaluation.choice import SCORES, evaluate_choices, evenly
from gptlab.evaluation.continuations import LogLikelihoods, log_likelihoods
from gptlab.model.folder import Model, save_model
from gptlab.model.gpt import GPT, GPTShape
from gptlab.model.head import summed_cross_entropy
from gptlab.model.rnn import RNN, RNNShape
from gptlab.text.tokenizer import Tokenizer

CPU, FLOAT32 = torch.device("cpu"), Precision("float32", torch.float32, "")
BFLOAT16 = Precision("bfloat16", torch.bfloat16, "")

GOOD = ["The cat sees itself.", "Two dogs see themselves.", "The dog sees itself.", "Many cats see themselves."]
BAD = ["The cat sees themselves.", "Two dogs see itself.", "The dog sees themselves.", "Many cats see itself."]
PASSAGES = ["The cat sees the dog and the dog sees the cat", "Two dogs and two cats  see\n\nthemselves", "Alone"]
ENDINGS = ["sees itself.", "see two dogs and many cats.", "x", "of many dogs, all of which see themselves, is one."]

CONTEXT = 40


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([*GOOD, *BAD, *PASSAGES] * 2, 300)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> GPT:
    """Of weights so large that it has opinions."""
    torch.manual_seed(0)
    model = GPT(GPTShape(tokenizer.vocab_size, CONTEXT, n_layer=2, n_head=2, n_embd=16, tie_head=False, dropout=0.5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def recurrent(tokenizer: Tokenizer) -> RNN:
    torch.manual_seed(0)
    return RNN(RNNShape(tokenizer.vocab_size, CONTEXT, n_layer=1, n_embd=16, n_hidden=16))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three tests, in their published forms."""
    folder = tmp_path_factory.mktemp("choices")
    pairs = [
        {"sentence_good": good, "sentence_bad": bad, "field": "f", "linguistics_term": good[:3], "UID": str(number)}
        for number, (good, bad) in enumerate(zip(GOOD, BAD, strict=True))
    ]
    beginnings = [
        {"activity_label": "Seeing", "ctx_a": text, "ctx_b": "he", "endings": ENDINGS, "label": number % 4}
        for number, text in enumerate([*GOOD, *PASSAGES])
    ]
    for name, records in {
        "blimp": pairs,
        "lambada": [{"text": text} for text in PASSAGES],
        "hellaswag": beginnings,
    }.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.fixture(scope="module")
def items(folder: Path) -> list[Item]:
    kinds: tuple[Kind, ...] = ("blimp", "lambada", "hellaswag")
    return [item for kind in kinds for item in read_choices(kind, folder / f"{kind}.jsonl")]


def scored(model: Model, tokenizer: Tokenizer, items: Sequence[Item], **keys: object) -> LogLikelihoods:
    settings = {"device": CPU, "precision": FLOAT32, "greedy": True, **keys}
    return log_likelihoods(model, tokenizer, items, **settings)  # type: ignore[arg-type]


def plainly(logits_of: object, tokenizer: Tokenizer, item: Item, continuation: str, context: int) -> tuple[float, bool]:
    """As lm-evaluation-harness does it: the whole is encoded, and what is beyond the context's ids is the continuation;
    the last context + 1 ids are read, and the last of these is only predicted."""
    before = item.context.rstrip()
    whole = tokenizer.encode(item.context + continuation)
    start = len(tokenizer.encode(before))
    if not before:
        whole, start = [tokenizer.eos_id, *whole], 1
    wanted = torch.tensor(whole[start:])
    logits = logits_of(torch.tensor([whole[-(context + 1) :][:-1]]))[0, -len(wanted) :]  # type: ignore[operator]
    log_probs = logits.double().log_softmax(dim=-1)
    return log_probs[range(len(wanted)), wanted].sum().item(), bool((logits.argmax(dim=-1) == wanted).all())


@pytest.mark.parametrize("batch_tokens", [1, 100, 8192])
def test_log_likelihoods_are_those_of_a_plain_computation(
    model: GPT, tokenizer: Tokenizer, items: list[Item], batch_tokens: int, tmp_path: Path
) -> None:
    save_model(model, tmp_path)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path).double().eval()
    greedy = [Item(item.context, (_favourite(theirs, tokenizer, item),), 0) for item in items if item.context]
    asked = [*items, *greedy]
    with torch.no_grad():
        expected = [
            plainly(lambda tokens: theirs(tokens).logits, tokenizer, item, continuation, CONTEXT)
            for item in asked
            for continuation in item.continuations
        ]
    found = scored(model, tokenizer, asked, batch_tokens=batch_tokens)
    assert found.log_probs == pytest.approx([nats for nats, _ in expected], abs=1e-4)
    assert found.greedy.tolist() == [hit for _, hit in expected]
    assert 0 < found.greedy.sum() < len(expected)
    longest = [max(len(tokenizer.encode(item.context + each)) for each in item.continuations) for item in asked]
    assert found.truncated == sum(length > CONTEXT + 1 for length in longest) > 0
    assert model.training  # as it was before


def _favourite(theirs: GPT2LMHeadModel, tokenizer: Tokenizer, item: Item) -> str:
    """The word of one token that the model would go on with."""
    ids = tokenizer.encode(item.context.rstrip())[-CONTEXT:]
    words = {number: tokenizer.decode([number]) for number in range(tokenizer.vocab_size)}
    logits = theirs(torch.tensor([ids])).logits[0, -1]
    return next(words[best] for best in logits.argsort(descending=True).tolist() if words[best].startswith(" "))


def test_a_recurrent_model_is_read_the_same_way(recurrent: RNN, tokenizer: Tokenizer, items: list[Item]) -> None:
    found = scored(recurrent, tokenizer, items).log_probs
    with torch.no_grad():
        expected = [
            plainly(lambda tokens: recurrent.logits(recurrent(tokens)), tokenizer, item, continuation, CONTEXT)[0]
            for item in items
            for continuation in item.continuations
        ]
    assert found == pytest.approx(expected, abs=1e-4)


def test_neither_neighbours_nor_order_matter(model: GPT, tokenizer: Tokenizer, items: list[Item]) -> None:
    together = scored(model, tokenizer, items)
    alone = [scored(model, tokenizer, [item]) for item in items]
    assert together.log_probs == pytest.approx(np.concatenate([each.log_probs for each in alone]), abs=1e-4)
    turned = scored(model, tokenizer, items[::-1])
    parts = np.split(together.log_probs, np.cumsum([len(item.continuations) for item in items])[:-1])
    assert turned.log_probs == pytest.approx(np.concatenate(parts[::-1]), abs=1e-4)
    assert turned.truncated == together.truncated == sum(each.truncated for each in alone)


def test_a_continuation_longer_than_the_context_is_read_in_pieces(tokenizer: Tokenizer) -> None:
    """Each token is scored once: a model that thinks all tokens alike gives each the same."""
    model = GPT(GPTShape(tokenizer.vocab_size, 4, n_layer=1, n_head=1, n_embd=8, tie_head=False))
    item = Item("The cat", (" sees two dogs, and many cats see themselves.",), 0)
    before, after = len(tokenizer.encode("The cat")), len(tokenizer.encode(item.continuations[0]))
    assert after > 8
    ids = tokenizer.encode(item.context + item.continuations[0])
    windows = [
        (max(0, end - 5), start, end) for start in range(before, len(ids), 4) for end in [min(start + 4, len(ids))]
    ]
    nats = 0.0
    for begin, start, end in windows:
        logits = model.logits(model(torch.tensor([ids[begin : end - 1]])))[0, start - end :]
        nats += logits.log_softmax(dim=-1)[range(end - start), ids[start:end]].sum().item()
    found = scored(model, tokenizer, [item])
    assert found.log_probs == pytest.approx([nats], abs=1e-4)
    assert found.truncated == 1
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert scored(model, tokenizer, [item]).log_probs == pytest.approx([-after * math.log(tokenizer.vocab_size)])


@pytest.mark.parametrize(("spare", "truncated"), [(0, 0), (-1, 1)])
def test_the_last_token_needs_no_place(tokenizer: Tokenizer, spare: int, truncated: int) -> None:
    """It is predicted and not read: EOS and a sentence of n tokens fit into a context of n."""
    context = len(tokenizer.encode(f" {GOOD[0]}")) + spare
    model = GPT(GPTShape(tokenizer.vocab_size, context, n_layer=1, n_head=1, n_embd=8))
    assert scored(model, tokenizer, [Item("", (f" {GOOD[0]}",), 0)]).truncated == truncated


def test_in_bfloat16_little_changes(model: GPT, tokenizer: Tokenizer, items: list[Item]) -> None:
    exact = scored(model, tokenizer, items).log_probs
    assert scored(model, tokenizer, items, precision=BFLOAT16).log_probs == pytest.approx(exact, rel=0.03)


def evaluate(kind: Kind, model: Model, tokenizer: Tokenizer, folder: Path, **keys: int) -> dict:
    place = folder / f"{kind}.jsonl"
    return evaluate_choices(kind, model, tokenizer, place, device=CPU, precision=FLOAT32, **keys)


def test_a_model_that_thinks_all_tokens_alike(tokenizer: Tokenizer, folder: Path) -> None:
    """It prefers what has the fewest tokens, or the fewest a character, and of equals the first."""
    model = GPT(GPTShape(tokenizer.vocab_size, 128, n_layer=1, n_head=1, n_embd=8, tie_head=False))
    with torch.no_grad():
        model.lm_head.weight.zero_()
    tokens = [len(tokenizer.encode(f" {ending}")) for ending in ENDINGS]
    shortest = min(range(4), key=lambda ending: tokens[ending])
    densest = min(range(4), key=lambda ending: tokens[ending] / len(ENDINGS[ending]))
    assert shortest != densest
    hellaswag = evaluate("hellaswag", model, tokenizer, folder)
    answers = [number % 4 for number in range(7)]
    assert hellaswag["accuracy"] == answers.count(shortest) / 7
    assert hellaswag["accuracy_normalised"] == answers.count(densest) / 7
    assert (hellaswag["chance"], hellaswag["items"], hellaswag["truncated"]) == (0.25, 7, 0)

    words = [len(tokenizer.encode(word)) for word in (" cat", "  see\n\nthemselves", " Alone")]
    lambada = evaluate("lambada", model, tokenizer, folder)
    assert lambada["perplexity"] == pytest.approx(tokenizer.vocab_size ** np.mean(words), rel=1e-4)
    assert (lambada["accuracy"], lambada["items"]) == (0, 3)

    blimp = evaluate("blimp", model, tokenizer, folder)
    first = [len(tokenizer.encode(f" {g}")) <= len(tokenizer.encode(f" {b}")) for g, b in zip(GOOD, BAD, strict=True)]
    assert blimp["accuracy"] == sum(first) / 4
    assert (blimp["chance"], blimp["items"]) == (0.5, 4)


def test_endings_are_divided_by_their_characters() -> None:
    """Neither by bytes nor with the space before them: either would prefer the first."""
    items = [Item("he", (" éé", " abcd", " x", " y"), 1)]
    log_probs = np.array([-2.0, -3.9, -5.0, -5.0])
    found = SCORES["hellaswag"](items, LogLikelihoods(log_probs, log_probs > 0, 0))
    assert (found["accuracy"], found["accuracy_normalised"]) == (0, 1)


def test_a_model_that_has_read_them_knows_them(tokenizer: Tokenizer, folder: Path) -> None:
    torch.manual_seed(0)
    model = GPT(GPTShape(tokenizer.vocab_size, CONTEXT, n_layer=1, n_head=2, n_embd=32))
    before = {kind: evaluate(kind, model, tokenizer, folder) for kind in ("blimp", "lambada")}
    texts = [[tokenizer.eos_id, *tokenizer.encode(f" {sentence}")] for sentence in GOOD]
    texts += [tokenizer.encode(passage) for passage in PASSAGES[:2]]
    batch = pad_rows([(ids[:-1], ids[1:]) for ids in texts], range(len(texts)))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(60):
        hidden = model(batch.tokens)
        summed_cross_entropy(hidden, model.head_weight, batch.targets, batch.positions).backward()
        optimizer.step()
        optimizer.zero_grad()
    blimp, lambada = (evaluate(kind, model, tokenizer, folder) for kind in ("blimp", "lambada"))
    assert blimp["accuracy"] == 1
    assert blimp["phenomena"] == {"Man": 1, "The": 1, "Two": 1}
    assert blimp["paradigms"] == {"0": 1, "1": 1, "2": 1, "3": 1}
    assert blimp["fields"] == {"f": 1}
    assert before["lambada"]["accuracy"] == 0
    assert lambada["accuracy"] == 2 / 3  # it has not read the third
    assert lambada["perplexity"] < before["lambada"]["perplexity"]


def test_the_interval_is_wilsons(model: GPT, tokenizer: Tokenizer, folder: Path) -> None:
    """Wilson (1927): the shares p for which the observed one is 1.96 standard errors away."""
    found, z, n = evaluate("hellaswag", model, tokenizer, folder), 1.959964, 7
    for name in ("accuracy", "accuracy_normalised"):
        share, low, high = (found[f"{name}{end}"] for end in ("", "_low", "_high"))
        for bound in (low, high):
            assert abs(share - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / n), abs=1e-6)
        assert low <= share <= high


def test_a_limit_chooses_evenly(model: GPT, tokenizer: Tokenizer, folder: Path) -> None:
    assert evenly(range(10), 4) == [0, 2, 5, 7]
    assert evenly(range(3), 0) == evenly(range(3), 5) == [0, 1, 2]
    told: list[tuple[int, int]] = []
    place = folder / "blimp.jsonl"
    found = evaluate_choices(
        "blimp", model, tokenizer, place, device=CPU, precision=FLOAT32, limit=2,
        on_batch=lambda *at: told.append(at),
    )  # fmt: skip
    assert found["items"] == 2
    assert found["paradigms"].keys() == {"0", "2"}
    assert told[-1] == (4, 4)


def test_damaged_weights_are_no_score(tokenizer: Tokenizer, folder: Path) -> None:
    model = GPT(GPTShape(tokenizer.vocab_size, CONTEXT, n_layer=1, n_head=1, n_embd=8))
    with torch.no_grad():
        model.ln_f.weight.fill_(math.nan)
    with pytest.raises(ModelError, match="not finite"):
        evaluate("blimp", model, tokenizer, folder)
