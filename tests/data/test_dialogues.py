"""Dialogues as rows: which tokens are learned, what is cut, dropped and held out, and whether the cache is right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.data.batch import IGNORE, make_batch
from gptlab.data.dialogue_rows import DialogueRows
from gptlab.data.dialogue_sources import DialogueSourceSettings
from gptlab.data.dialogues import Dialogues, DialogueSettings, prepare_dialogues, read_all
from gptlab.data.reading import PrepareProgress
from gptlab.data.row_file import KEPT_PROMPTS
from gptlab.data.windows import TrainingWindows
from gptlab.errors import DataError, GptlabError, RecipeError, TokenizerError
from gptlab.settings import build, plain
from gptlab.text.dialogue import Message, Template
from gptlab.text.tokenizer import Tokenizer

WORDS = ["the", "of", "and", "a", "to", "in", "he", "have", "it", "that", "for", "they", "with", "not", "on", "she"]
EOS = "<|endoftext|>"


def words(number: int, count: int = 6) -> str:
    """A text that no other number has."""
    random = np.random.default_rng(number)
    return " ".join(random.choice(WORDS, size=count)) + f" {number}."


def dialogue(number: int, turns: int = 2) -> list[str]:
    return [words(10 * number + turn) for turn in range(turns)]


def entries(texts: Sequence[str], system: str | None = None) -> list[dict[str, str]]:
    head = [] if system is None else [{"role": "system", "content": system}]
    return head + [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def write(path: Path, dialogues: Sequence[Any]) -> Path:
    """As `messages`, of lists of texts or of entries."""
    records = [each if each and isinstance(each[0], dict) else entries(each) for each in dialogues]
    path.write_text("".join(json.dumps({"messages": record}) + "\n" for record in records))
    return path


def settings_of(*sources: Path | dict[str, Any], **sections: Any) -> DialogueSettings:
    trees = [each if isinstance(each, dict) else {"path": str(each)} for each in sources]
    return build(DialogueSettings, {"sources": trees, **sections}, "recipe.toml")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([words(n, 30) for n in range(200)], 400).with_special_tokens(["<|im_start|>", "<|im_end|>"])


@pytest.fixture
def prepare(tokenizer: Tokenizer, tmp_path: Path) -> Callable[..., Dialogues]:
    """Prepares in a cache of the test's own. Validation is one dialogue that is nowhere else, unless it is given."""
    held = write(tmp_path / "held.jsonl", [["Q", "A"]])

    def call(*sources: Any, template: str = "eos", context: int = 256, **sections: Any) -> Dialogues:
        options = {key: sections.pop(key) for key in ("seed", "on_progress") if key in sections}
        sections.setdefault("validation", {"sources": [{"path": str(held)}]})
        return prepare_dialogues(
            settings_of(*sources, **sections), tokenizer, Template.named(template, EOS), context=context,
            cache=tmp_path / "cache", **options,
        )  # fmt: skip

    return call


def row(rows: DialogueRows, number: int) -> tuple[list[int], list[int]]:
    """(ids, targets) of a row, as a batch of its own."""
    batch = rows.batch(np.array([number]))
    return batch.tokens[0].tolist(), batch.targets[0].tolist()


def expected(tokenizer: Tokenizer, *parts: tuple[str | int, bool]) -> tuple[list[int], list[int]]:
    """(ids, targets) of texts (or ids) each of which is learned or not."""
    ids: list[int] = []
    learned: list[bool] = []
    for part, is_learned in parts:
        ids += [part] if isinstance(part, int) else tokenizer.encode(part)
        learned += [is_learned] * (len(ids) - len(learned))
    return ids[:-1], [id if wanted else IGNORE for id, wanted in zip(ids[1:], learned[1:], strict=True)]


def texts(tokenizer: Tokenizer, rows: DialogueRows) -> list[str]:
    """What stands in each row, its last token (which is only a target) among it."""
    found = []
    for number in range(len(rows)):
        ids, targets = row(rows, number)
        found.append(tokenizer.decode([*ids, targets[-1]]))
    return found


# ---- what is learned

TURNS = ["Hi there", "Hello.", "Who are you?", "Nobody 🙂"]


def test_turns_closed_by_eos(tokenizer: Tokenizer, prepare: Any, tmp_path: Path) -> None:
    rows = prepare(write(tmp_path / "a.jsonl", [TURNS])).train
    end = tokenizer.eos_id
    assert row(rows, 0) == expected(
        tokenizer,
        ("Hi there", False), (end, False), ("Hello.", True), (end, True),
        ("Who are you?", False), (end, False), ("Nobody 🙂", True), (end, True),
    )  # fmt: skip


def test_hh(tokenizer: Tokenizer, prepare: Any, tmp_path: Path) -> None:
    rows = prepare(write(tmp_path / "a.jsonl", [TURNS]), template="hh").train
    end = tokenizer.eos_id
    assert row(rows, 0) == expected(
        tokenizer,
        ("\n\nHuman: Hi there\n\nAssistant:", False), (" Hello.", True), (end, True),
        ("\n\nHuman: Who are you?\n\nAssistant:", False), (" Nobody 🙂", True), (end, True),
    )  # fmt: skip


def test_chatml(tokenizer: Tokenizer, prepare: Any, tmp_path: Path) -> None:
    """What stands behind the last answer is left out: nothing of it is learned."""
    path = write(tmp_path / "a.jsonl", [entries(["Hi", "Hello."], system="Be kind")])
    start, end = (tokenizer.special_tokens[name] for name in ("<|im_start|>", "<|im_end|>"))
    assert row(prepare(path, template="chatml").train, 0) == expected(
        tokenizer,
        (start, False), ("system\nBe kind", False), (end, False), ("\n", False),
        (start, False), ("user\nHi", False), (end, False), ("\n", False),
        (start, False), ("assistant\n", False), ("Hello.", True), (end, True),
    )  # fmt: skip


def test_everything(tokenizer: Tokenizer, prepare: Any, tmp_path: Path) -> None:
    rows = prepare(write(tmp_path / "a.jsonl", [TURNS]), learn="everything").train
    parts = [part for text in TURNS for part in ((text, True), (tokenizer.eos_id, True))]
    assert row(rows, 0) == expected(tokenizer, (tokenizer.eos_id, False), *parts)


def test_a_special_tokens_name_is_text(tokenizer: Tokenizer, prepare: Any, tmp_path: Path) -> None:
    rows = prepare(write(tmp_path / "a.jsonl", [["Say <|endoftext|>", "<|endoftext|> and more"]])).train
    ids, targets = row(rows, 0)
    assert ids.count(tokenizer.eos_id) == 1
    assert targets.count(tokenizer.eos_id) == 1


def test_an_unanswered_turn_is_left_out_and_counted(tokenizer: Tokenizer, prepare: Any, tmp_path: Path) -> None:
    dialogues = prepare(write(tmp_path / "a.jsonl", [TURNS[:3], TURNS]))
    assert texts(tokenizer, dialogues.train)[0] == f"Hi there{EOS}Hello.{EOS}"
    assert dialogues.table[0].unanswered == 1
    assert "1 unanswered last turns" in dialogues.table[0].dropped


def test_history_of_answers(tokenizer: Tokenizer, prepare: Any, tmp_path: Path) -> None:
    """A row an answer; the answers before it are its context and are not learned."""
    path = write(tmp_path / "a.jsonl", [entries(TURNS, system="Be kind")])
    tree = {"path": str(path)}
    rows = prepare(tree, template="chatml", history=3).train
    assert len(rows) == 2
    start, end = (tokenizer.special_tokens[name] for name in ("<|im_start|>", "<|im_end|>"))

    def turn(role: str, text: str) -> list[tuple[str | int, bool]]:
        return [(start, False), (f"{role}\n{text}", False), (end, False), ("\n", False)]

    assert row(rows, 1) == expected(
        tokenizer, *turn("system", "Be kind"), *turn("user", TURNS[0]),
        (start, False), ("assistant\n", False), (TURNS[1], False), (end, False), ("\n", False),
        *turn("user", TURNS[2]), (start, False), ("assistant\n", False), (TURNS[3], True), (end, True),
    )  # fmt: skip
    rows = prepare(tree, template="chatml", history=1).train
    assert row(rows, 1) == expected(
        tokenizer, *turn("system", "Be kind"),
        *turn("user", TURNS[2]), (start, False), ("assistant\n", False), (TURNS[3], True), (end, True),
    )  # fmt: skip


def test_history_of_equals(tokenizer: Tokenizer, prepare: Any, tmp_path: Path) -> None:
    """Every utterance from the second on is an answer; who says it follows from it."""
    path = tmp_path / "a.txt"
    path.write_text("one __eou__ two __eou__ three __eou__\n")
    source = {"path": str(path), "format": "dailydialog"}
    rows = prepare(source, history=2)
    assert texts(tokenizer, rows.train) == [f"one{EOS}two{EOS}", f"one{EOS}two{EOS}three{EOS}"]
    end = tokenizer.eos_id
    assert row(rows.train, 1) == expected(
        tokenizer, ("one", False), (end, False), ("two", False), (end, False), ("three", True), (end, True)
    )
    assert rows.table[0].unanswered == 0
    assert texts(tokenizer, prepare(source, history=1).train)[1] == f"two{EOS}three{EOS}"
    hh = texts(tokenizer, prepare(source, history=2, template="hh").train)
    assert hh == [
        f"\n\nHuman: one\n\nAssistant: two{EOS}",
        f"\n\nAssistant: one{EOS}\n\nHuman: two\n\nAssistant: three{EOS}",
    ]


def test_a_template_that_wants_a_user_to_begin(tokenizer: Tokenizer, prepare: Any, tmp_path: Path) -> None:
    template = tmp_path / "strict.jinja"
    template.write_text(
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.role }}: {{ m.content }}"
        "{{ eos_token if m.role == 'assistant' else ' ' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    path = tmp_path / "a.txt"
    path.write_text("one __eou__ two __eou__ three __eou__\n")
    rows = prepare({"path": str(path), "format": "dailydialog"}, history=2, template=str(template)).train
    assert texts(tokenizer, rows) == [f"user: one assistant: two{EOS}", f"user: two assistant: three{EOS}"]


# ---- what does not fit


def test_over_long_rows_lose_their_first_turns(tokenizer: Tokenizer, prepare: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [dialogue(1, turns=8), dialogue(2, turns=2)])
    whole = prepare(path, context=10_000)
    lengths = [len(row(whole.train, n)[0]) for n in range(2)]
    assert whole.train.max_length == lengths[0]
    assert whole.table[0].percentiles == [min(lengths), max(lengths), max(lengths), max(lengths)]
    assert (whole.table[0].cut, whole.table[0].too_long) == (0, 0)
    assert prepare(path, context=lengths[0]).table[0].cut == 0, "it fits exactly"

    cut = prepare(path, context=lengths[0] - 1)
    assert (cut.table[0].cut, cut.table[0].too_long, cut.table[0].rows) == (1, 0, 2)
    assert cut.table[0].percentiles == whole.table[0].percentiles, "they are of the rows before cutting"
    turns = dialogue(1, turns=8)
    assert texts(tokenizer, cut.train)[0] == "".join(turn + EOS for turn in turns[2:])
    assert any("longer than the context: 1 lose their first turns, 0 are dropped" in text for text in cut.warnings)
    for context in range(lengths[1], lengths[0]):
        found = texts(tokenizer, prepare(path, context=context).train)[0]
        kept = next(n for n in (2, 4, 6) if found == "".join(turn + EOS for turn in turns[n:]))
        longer = "".join(turn + EOS for turn in turns[kept - 2 :])
        assert len(tokenizer.encode(longer, special=True)) - 1 > context, "no more would have fitted"


def test_a_system_message_stays(tokenizer: Tokenizer, prepare: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [entries(dialogue(1, turns=4), system="Be kind")])
    length = prepare(path, template="chatml", context=1000).train.max_length
    [text] = texts(tokenizer, prepare(path, template="chatml", context=length - 1).train)
    asked, answered = dialogue(1, turns=4)[2:]
    assert text == (
        "<|im_start|>system\nBe kind<|im_end|>\n"
        f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n{answered}<|im_end|>"
    )


def test_what_cannot_be_cut_is_dropped_and_counted(prepare: Any, tmp_path: Path) -> None:
    long = [*dialogue(3), "Why?", words(77, count=200)]
    path = write(tmp_path / "a.jsonl", [dialogue(1), long, dialogue(2)])
    dialogues = prepare(path, context=40)
    counts = dialogues.table[0]
    assert (counts.dialogues, counts.rows, counts.too_long, counts.cut) == (2, 2, 1, 0)
    assert "1 rows too long" in counts.dropped
    with pytest.raises(DataError, match=r"'b\.jsonl' gives train no row: 1 rows too long\. Mend it or take it out"):
        prepare(write(tmp_path / "b.jsonl", [long]), context=40)


# ---- batches


def test_a_batch_is_padded_and_sorted_by_length(tokenizer: Tokenizer, prepare: Any, tmp_path: Path) -> None:
    rows = prepare(
        write(tmp_path / "a.jsonl", [dialogue(n, turns=2 * (1 + n % 3)) for n in range(20)]), context=500
    ).train
    numbers = np.array([3, 17, 2, 8, 9])
    batch = rows.batch(numbers, epoch=5)
    alone = {int(n): row(rows, int(n)) for n in numbers}
    lengths = [len(alone[n][0]) for n in batch.rows.tolist()]
    assert sorted(batch.rows.tolist()) == sorted(numbers.tolist())
    assert lengths == sorted(lengths, reverse=True)
    for ids, targets, number in zip(batch.tokens.tolist(), batch.targets.tolist(), batch.rows.tolist(), strict=True):
        length = len(alone[number][0])
        assert (ids[:length], targets[:length]) == alone[number]
        assert ids[length:] == [0] * (batch.tokens.shape[1] - length)
        assert set(targets[length:]) <= {IGNORE}
    reference = make_batch(batch.tokens, batch.targets, batch.rows)
    assert torch.equal(batch.positions, reference.positions)
    assert batch.weight == (batch.targets != IGNORE).sum() == sum(rows.batch(np.array([n])).weight for n in numbers)


def test_what_is_scored_and_by_which_text(tokenizer: Tokenizer, prepare: Any, tmp_path: Path) -> None:
    dialogues = [["Zoë?", "Yes, Zoë."], ["a b", "c  d\ne", "f", "🙂"]]
    path = write(tmp_path / "a.jsonl", dialogues)
    for template in ("eos", "hh"):
        rows = prepare(path, template=template).train
        assert rows.text_bytes == sum(len(text.encode()) for text in ("Yes, Zoë.", "c  d\ne", "🙂"))
        assert rows.words == 2 + 3 + 1
        assert rows.context == 256
        weights = [rows.batch(np.array([n])).weight for n in range(len(rows))]
        assert rows.scored == sum(weights) == len(rows.targets_array())
        targets = [t for n in range(len(rows)) for t in row(rows, n)[1] if t != IGNORE]
        assert rows.targets_array().tolist() == targets
    rows = prepare(path, learn="everything").train
    assert rows.text_bytes == sum(len(text.encode()) for texts in dialogues for text in texts)
    assert rows.words == 1 + 2 + 2 + 3 + 1 + 1
    rows = prepare({"path": str(path), "format": "messages"}, history=9).train
    assert (len(rows), rows.words) == (3, 2 + 3 + 1), "each answer once"


# ---- joined


def joined(tokenizer: Tokenizer, dialogues: Sequence[Sequence[str]], closer: str = "") -> tuple[np.ndarray, np.ndarray]:
    """The ids of all of them, and which belong to an answer, by the template `eos`."""
    ids, learned = [], []
    for texts in dialogues:
        for n, text in enumerate(texts):
            turn = [*tokenizer.encode(text), tokenizer.eos_id]
            ids += turn
            learned += [n % 2 == 1] * len(turn)
    return np.array(ids), np.array(learned)


@settings(deadline=None, max_examples=20)
@given(context=st.integers(2, 60), seed=st.integers(0, 2**40), epoch=st.integers(0, 3))
def test_joined_training_is_a_ring(
    tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory, context: int, seed: int, epoch: int
) -> None:
    folder = tmp_path_factory.getbasetemp()
    dialogues = [dialogue(n, turns=2 + 2 * (n % 2)) for n in range(5)]
    tree = settings_of(
        write(folder / "ring.jsonl", dialogues), pack=True,
        validation={"sources": [{"path": str(write(folder / "ring-held.jsonl", [dialogue(99)]))}]},
    )  # fmt: skip
    template = Template.named("eos", EOS)
    rows = prepare_dialogues(tree, tokenizer, template, context=context, seed=seed, cache=folder / "ring").train
    ids, learned = joined(tokenizer, dialogues)
    assert len(rows) == len(ids) // context
    assert rows.scored == learned.sum()
    assert rows.max_length == context
    for number in range(len(rows)):
        batch = rows.batch(np.array([number]), epoch)
        time = batch.tokens.shape[1]
        shift = TrainingWindows(rows.file, context, seed).shift(epoch)
        place = (shift + number * context + np.arange(context + 1)) % len(ids)
        targets = np.where(learned[place[1:]], ids[place[1:]], IGNORE)
        assert batch.tokens[0].tolist() == ids[place[:time]].tolist()
        assert batch.targets[0].tolist() == targets[:time].tolist()
        assert set(targets[time:]) <= {IGNORE}, "nothing that is learned is cut off"
        assert batch.weight == (targets != IGNORE).sum()


def test_joined_validation_scores_each_answer_once(tokenizer: Tokenizer, prepare: Any, tmp_path: Path) -> None:
    dialogues = [dialogue(n, turns=2 + 2 * (n % 2)) for n in range(5)]
    held = {"sources": [{"path": str(write(tmp_path / "held.jsonl", dialogues))}]}
    path = write(tmp_path / "a.jsonl", [dialogue(50)])
    ids, learned = joined(tokenizer, dialogues)
    for context in (3, 17):
        rows = prepare(path, pack=True, validation=held, context=context).validation
        found = [t for n in range(len(rows)) for t in rows.batch(np.array([n])).targets.reshape(-1).tolist()]
        assert [t for t in found if t != IGNORE] == ids[learned].tolist() == rows.targets_array().tolist()
        assert rows.scored == learned.sum()
        rows = prepare(path, pack=True, learn="everything", validation=held, context=context).validation
        found = [t for n in range(len(rows)) for t in rows.batch(np.array([n])).targets.reshape(-1).tolist()]
        assert [t for t in found if t != IGNORE] == ids.tolist()
        assert row(rows, 0)[0] == [tokenizer.eos_id, *ids[: context - 1].tolist()]


def test_joined_dialogues_are_divided_by_eos(tokenizer: Tokenizer, prepare: Any, tmp_path: Path) -> None:
    """Where the template itself does not end with it; that EOS is no answer's."""
    dialogues = prepare(write(tmp_path / "a.jsonl", [["q", "a"]]), pack=True, template="chatml", context=8)
    file = dialogues.train.file
    assert tokenizer.decode(file.tokens) == f"<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n{EOS}"
    assert tokenizer.decode(file.tokens[file.learned]) == "a<|im_end|>"
    assert dialogues.table[0].cut == dialogues.table[0].too_long == 0, "windows go on where a row would end"


# ---- which split


def test_a_share_by_dialogue(tokenizer: Tokenizer, prepare: Any, tmp_path: Path) -> None:
    all_texts = [dialogue(n % 400) for n in range(500)]  # 100 of them twice
    dialogues = prepare(write(tmp_path / "a.jsonl", all_texts), validation={"share": 0.1}, test={"share": 0.2})
    train, validation, test = (texts(tokenizer, r) for r in (dialogues.train, dialogues.validation, dialogues.test))
    assert not set(train) & set(validation)
    assert not set(train) & set(test)
    assert not set(validation) & set(test)
    assert len(train) == len(set(train))
    assert len(validation) > len(set(validation)), "scored as they are"
    assert set(train) | set(validation) | set(test) == {f"{q}{EOS}{a}{EOS}" for q, a in all_texts}
    assert 30 < len(validation) < 75
    assert 70 < len(test) < 130
    counts = {row.split: row for row in dialogues.table}
    assert counts["train"].duplicates == 500 - len(train) - len(validation) - len(test)
    assert f"{counts['train'].duplicates} duplicates of dialogues before them" in counts["train"].dropped
    again = prepare(tmp_path / "a.jsonl", validation={"share": 0.1}, test={"share": 0.2}, seed=1)
    assert set(texts(tokenizer, again.validation)) != set(validation)


def test_one_form_or_another_is_the_same_dialogue(tokenizer: Tokenizer, prepare: Any, tmp_path: Path) -> None:
    own = write(tmp_path / "a.jsonl", [dialogue(n) for n in range(40)])
    other = tmp_path / "b.txt"
    other.write_text("".join(" __eou__ ".join(dialogue(n)) + " __eou__\n" for n in range(30, 60)))
    dialogues = prepare(own, {"path": str(other), "format": "dailydialog"}, validation={"share": 0.2})
    assert not set(texts(tokenizer, dialogues.train)) & set(texts(tokenizer, dialogues.validation))
    assert dialogues.table[-1].name == "b.txt"
    in_training = {row.name: row for row in dialogues.table if row.split == "train"}
    assert in_training["b.txt"].duplicates > 0


def test_a_small_source_still_gives_validation_a_row(prepare: Any, tmp_path: Path) -> None:
    for count in (2, 5, 19, 25):
        path = write(tmp_path / f"{count}.jsonl", [dialogue(1000 * count + n) for n in range(count)])
        for seed in range(5):
            dialogues = prepare(
                path, validation={"share": 0.01}, test={"share": 0.01} if count > 2 else None, seed=seed
            )
            assert len(dialogues.validation) >= 1
            assert dialogues.test is None or len(dialogues.test) >= 1
            assert len(dialogues.train) + len(dialogues.validation) + len(dialogues.test or ()) == count
    with pytest.raises(
        DataError, match=r"validation is empty: a share of 0\.01 of the training dialogues gives no row"
    ):
        prepare(write(tmp_path / "1.jsonl", [dialogue(1)]), validation={"share": 0.01})


def test_overlap_with_what_is_held_out(tokenizer: Tokenizer, prepare: Any, tmp_path: Path) -> None:
    held = {"sources": [{"path": str(write(tmp_path / "held.jsonl", [dialogue(5), dialogue(6), dialogue(500)]))}]}
    path = write(tmp_path / "a.jsonl", [dialogue(n) for n in (1, 5, 2, 6, 5, 3)])
    found = r"^3 training dialogue\(s\) also stand in validation or test; one, of the source 'a\.jsonl', starts "
    with pytest.raises(DataError, match=found) as error:
        prepare(path, validation=held)
    assert repr(dialogue(5)[0]) in str(error.value)
    assert 'data.overlap = "drop"' in str(error.value)
    dialogues = prepare(path, validation=held, overlap="drop")
    assert len(dialogues.train) == 3
    assert len(dialogues.validation) == 3
    assert dialogues.table[0].overlapping == 3
    assert "3 also in validation or test" in dialogues.table[0].dropped


# ---- bad rows


def test_bad_rows_are_counted_by_cause_with_their_lines(prepare: Any, tmp_path: Path) -> None:
    good = [entries(dialogue(n)) for n in range(300)]
    bad = [entries(["only asked"]), entries(["a", ""]), entries(dialogue(1))[::-1]]
    path = write(tmp_path / "a.jsonl", [*good[:10], *bad, *good[10:]])
    dialogues = prepare(path, bad_rows=0.01)
    counts = dialogues.table[0]
    assert counts.bad == {"no answer": 1, "an empty message": 1, "roles out of order": 1}
    assert counts.bad_at == {
        "no answer": ["line 11"],
        "an empty message": ["line 12"],
        "roles out of order": ["line 13"],
    }
    assert counts.rows == 300
    assert "1 bad (no answer), 1 bad (an empty message)" in counts.dropped
    assert dialogues.warnings == [
        "the source 'a.jsonl' has 3 bad rows, which are left out: no answer: 1 (line 11); an empty message: 1 (line "
        "12); roles out of order: 1 (line 13)"
    ]
    with pytest.raises(
        DataError, match=r"source 'a\.jsonl': 3 of 303 rows are bad, no answer: 1 \(line 11\).*at most 0\.005"
    ):
        prepare(path, bad_rows=0.005)
    assert not list((tmp_path / "cache").rglob("*.partial")), "nothing is left of what failed"


def test_what_the_template_refuses_is_an_error(prepare: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [entries(["Hi", "Hello"], system="Be kind")])
    with pytest.raises(DataError, match=r"the source 'a\.jsonl': a dialogue that begins 'Be kind'.*no system messages"):
        prepare(path, template="hh")


def test_far_less_than_the_limit_is_a_warning(prepare: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [dialogue(1)])
    dialogues = prepare({"path": str(path), "limit_dialogues": 5000})
    assert dialogues.warnings == [
        "the source 'a.jsonl' gave 1 dialogues, of 5,000 that limit_dialogues allows: is its path, format or column "
        "the right one?"
    ]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"pack": True, "history": 2}, "history = 2 takes them apart: choose one"),
        ({"learn": "answer"}, "did you mean 'answers'"),
        ({"history": -1}, "history = -1"),
        ({"bad_rows": 2}, "bad_rows = 2"),
        ({"templat": "hh"}, "did you mean 'template'"),
        ({"validation": {}}, "give either share = 0.05"),
        ({"validation": {"share": 0.6}, "test": {"share": 0.4}}, "leave nothing to train on"),
        ({"validation": {"sources": [{"path": "b", "formt": "hh"}]}}, r"validation\.sources\.0\.formt.*mean 'format'"),
        ({"sources": []}, "wanted at least 1"),
        ({"sources": [{"path": "a", "name": "x"}, {"path": "b", "name": "x"}]}, "two sources are named 'x'"),
    ],
)  # fmt: skip
def test_impossible_settings(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build(DialogueSettings, {"sources": [{"path": "a"}], **sections}, "recipe.toml")


def test_settings_survive_being_written() -> None:
    settings = settings_of({"hub": "a/b", "format": "turns"}, learn="everything", test={"share": 0.1})
    assert build(DialogueSettings, plain(settings), "recipe.toml") == settings
    assert settings.validation.share == 0.05


def test_a_tokenizer_without_the_templates_end(tmp_path: Path) -> None:
    plain_tokenizer = Tokenizer.train([words(1)], 300)
    with pytest.raises(TokenizerError, match=r"<\|im_end\|>"):
        prepare_dialogues(
            settings_of(tmp_path / "a.jsonl"), plain_tokenizer, Template.named("chatml", EOS), context=8, cache=tmp_path
        )


# ---- the cache


def test_it_is_prepared_once(prepare: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [dialogue(n) for n in range(30)])
    first = prepare(path, validation={"share": 0.2})
    stamp = (first.folder / "counts.json").stat().st_mtime_ns
    assert first.folder.parent == tmp_path / "cache" / "dialogues"
    again = prepare(path, validation={"share": 0.2})
    assert (again.folder, again.fingerprints, again.table) == (first.folder, first.fingerprints, first.table)
    assert (first.folder / "counts.json").stat().st_mtime_ns == stamp
    assert again.validation.prompts(3) == first.validation.prompts(3)
    assert not (tmp_path / "cache" / "dialogues" / first.folder.name).with_suffix(".partial").exists()
    others = [
        prepare(path, validation={"share": 0.2}, **change).folder
        for change in (
            {"context": 255}, {"template": "hh"}, {"seed": 1}, {"learn": "everything"}, {"history": 1}, {"pack": True},
            {"overlap": "drop"},
        )
    ]  # fmt: skip
    assert len({first.folder, *others}) == 8
    os.utime(path, ns=(1, 1))
    assert prepare(path, validation={"share": 0.2}).folder != first.folder
    assert prepare(path, validation={"share": 0.2}).fingerprints == first.fingerprints, "the rows are the same"


@pytest.mark.parametrize("name", ["train.tokens", "train.learned", "train.starts", "validation.prompts", "counts.json"])
@pytest.mark.parametrize("damage", ["a bit", "cut", "gone"])
def test_what_is_damaged_is_made_again(prepare: Any, tmp_path: Path, name: str, damage: str) -> None:
    path = write(tmp_path / "a.jsonl", [dialogue(n) for n in range(9)])
    first = prepare(path)
    file = first.folder / name
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content[:-1] if damage == "cut" else bytes([content[0] ^ 1]) + content[1:])
    again = prepare(path)
    assert file.read_bytes() == content
    assert again.fingerprints == first.fingerprints


def test_another_process_is_waited_for(prepare: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [dialogue(n) for n in range(9)])
    folder = prepare(path).folder
    (folder / "counts.json").unlink()
    waits: list[PrepareProgress] = []
    lock = FileLock(folder.with_suffix(".lock"))
    with lock:
        thread = threading.Thread(target=prepare, args=(path,), kwargs={"on_progress": waits.append})
        thread.start()
        while not waits:
            thread.join(0.05)
        assert not (folder / "counts.json").exists()
    thread.join()
    assert (folder / "counts.json").exists()


def test_a_cache_that_cannot_be_written(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [dialogue(n) for n in range(9)])
    (tmp_path / "file").write_text("")
    with pytest.raises(GptlabError, match=r"cannot be written: .*GPTLAB_CACHE"):
        prepare_dialogues(
            settings_of(path), tokenizer, Template.named("eos", EOS), context=64, cache=tmp_path / "file" / "cache"
        )


def test_progress(prepare: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [dialogue(n) for n in range(50)])
    told: list[PrepareProgress] = []
    dialogues = prepare(path, on_progress=told.append)
    assert told[-1].source == "a.jsonl"
    assert told[-1].documents == 51
    assert told[-1].tokens == sum(counts.tokens for counts in dialogues.table)
    assert told[-1].bytes_read == told[-1].bytes_total == path.stat().st_size + (tmp_path / "held.jsonl").stat().st_size


# ---- what is shown


def test_prompts(prepare: Any, tmp_path: Path) -> None:
    dialogues = [entries(dialogue(n, turns=2 + 2 * (n % 2)), system="Be kind") for n in range(40)]
    rows = prepare(write(tmp_path / "a.jsonl", dialogues), template="chatml", context=500).train
    prompts = rows.prompts(5)
    assert len(prompts) == 5
    asked = [[Message(**entry) for entry in each] for each in dialogues]
    places = [asked.index([*messages, Message("assistant", answer)]) for messages, answer in prompts]
    assert places == [0, 9, 19, 29, 39], "evenly chosen"
    assert len(rows.prompts(100)) == 40
    assert rows.prompts(0) == []


def test_prompts_of_many_are_from_all_of_them(prepare: Any, tmp_path: Path) -> None:
    count = 2 * KEPT_PROMPTS
    rows = prepare(write(tmp_path / "a.jsonl", [[f"question {n}", "yes"] for n in range(count)])).train
    found = [int(messages[0].content.split()[1]) for messages, _ in rows.prompts(count)]
    assert len(found) == KEPT_PROMPTS
    assert found == sorted(found)
    assert 0.4 * KEPT_PROMPTS < sum(number < count / 2 for number in found) < 0.6 * KEPT_PROMPTS


def test_one_row_with_its_learned_tokens_marked(tokenizer: Tokenizer, prepare: Any, tmp_path: Path) -> None:
    rows = prepare(write(tmp_path / "a.jsonl", [["to\nhe", "it 🙂"]])).train
    text = rows.example(tokenizer)
    before, _, learned = text.partition("⟦")
    assert before.replace("·", "") == f"to\\nhe{EOS}"
    assert learned.replace("·", "") == f"it 🙂{EOS}⟧"
    assert "·" in before
    assert rows.example(tokenizer, characters=5) == text[:5] + "…"
    rows = prepare(write(tmp_path / "b.jsonl", [dialogue(1, turns=6), ["a", "b"]]), context=500).train
    assert rows.example(tokenizer, characters=60) == f"a·{EOS}·⟦b·{EOS}⟧", "a row that is shown whole is preferred"


def test_all_of_a_source(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [TURNS, TURNS, TURNS[:2]])
    settings = DialogueSourceSettings(path=str(path))
    rows = read_all(settings, tokenizer, Template.named("eos", EOS), context=64, cache=tmp_path / "cache")
    assert len(rows) == 3
    assert row(rows, 0) == row(rows, 1)
    assert rows.words == 2 * (1 + 2) + 1, "of the answers"


# ---- the hub


def test_a_data_set_on_the_hub(hub: Any, hub_environment: dict[str, str], tmp_path: Path) -> None:
    folder = hub.folder / "datasets" / "acme" / "chats"
    folder.mkdir(parents=True)
    write(folder / "train.jsonl", [dialogue(n) for n in range(50)] + [entries(["a", ""])])
    write(folder / "test.jsonl", [dialogue(n) for n in range(100, 104)])
    tree = {
        "sources": [{"hub": "acme/chats"}], "bad_rows": 0.05,
        "validation": {"sources": [{"hub": "acme/chats", "split": "test", "limit_dialogues": 3}]},
    }  # fmt: skip
    Tokenizer.train([words(1)], 300).save(tmp_path / "tokenizer")
    code = (
        "import json, sys; from pathlib import Path; from gptlab.data.dialogues import *\n"
        "from gptlab.settings import build; from gptlab.text.dialogue import Template\n"
        "from gptlab.text.tokenizer import Tokenizer; from gptlab.errors import GptlabError\n"
        f"def go(tree): return prepare_dialogues(build(DialogueSettings, tree, 'r'), "
        f"Tokenizer.read(Path({str(tmp_path / 'tokenizer')!r})), Template.named('eos', {EOS!r}), context=99, "
        f"cache=Path({str(tmp_path / 'cache')!r}))\n"
        f"tree = {tree!r}\n"
        "table = go(tree).table; assert go(tree).table == table\n"
        "print(json.dumps([[row.name, row.split, row.rows, row.bad_at] for row in table]))\n"
        "try: go({**tree, 'bad_rows': 0})\n"
        "except GptlabError as error: print(json.dumps(str(error)))\n"
        "try: go({'sources': [{'hub': 'acme/chats', 'format': 'sharegpt'}]})\n"
        "except GptlabError as error: print(json.dumps(str(error)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=hub_environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table, bad, column = map(json.loads, done.stdout.splitlines())
    assert table == [
        ["acme/chats", "train", 50, {"an empty message": ["record 51"]}],
        ["acme/chats", "validation", 3, {}],
    ]
    assert "source 'acme/chats': 1 of 51 rows are bad, an empty message: 1 (record 51)" in bad
    assert "acme/chats on the hub, record 1: there is no column 'conversations'; there is 'messages'" in column
