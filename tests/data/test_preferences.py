"""Preferences as rows: two sequences a pair, what is predicted of them, what is left out and held out, the cache."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptlab.data.batch import IGNORE
from gptlab.data.preference_encoding import encode_answers
from gptlab.data.preference_rows import PreferenceRows
from gptlab.data.preference_sources import PreferenceSourceSettings
from gptlab.data.preferences import Preferences, PreferenceSettings, prepare_preferences, read_preferences
from gptlab.data.reading import PrepareProgress
from gptlab.data.row_file import KEPT_PROMPTS
from gptlab.errors import DataError, GptlabError, RecipeError, TokenizerError
from gptlab.settings import build, plain
from gptlab.text.dialogue import Message, Template
from gptlab.text.tokenizer import EOS, Tokenizer

WORDS = ["the", "of", "and", "a", "to", "in", "he", "have", "it", "that", "for", "they", "with", "not", "on", "she"]


def words(number: int, count: int = 6) -> str:
    """A text that no other number has."""
    random = np.random.default_rng(number)
    return " ".join(random.choice(WORDS, size=count)) + f" {number}."


Record = dict[str, Any]


def record(number: int, chosen: int = 6, rejected: int = 6) -> Record:
    """A prompt and two answers of so many words."""
    answers = {"chosen": words(10 * number + 1, chosen), "rejected": words(10 * number + 2, rejected)}
    return {"prompt": words(10 * number), **answers}


def write(path: Path, records: Sequence[Record]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return path


def settings_of(*sources: Path | dict[str, Any], **sections: Any) -> PreferenceSettings:
    trees = [each if isinstance(each, dict) else {"path": str(each)} for each in sources]
    return build(PreferenceSettings, {"sources": trees, **sections}, "recipe.toml")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([words(n, 30) for n in range(200)], 400).with_special_tokens(["<|im_start|>", "<|im_end|>"])


@pytest.fixture
def prepare(tokenizer: Tokenizer, tmp_path: Path) -> Callable[..., Preferences]:
    """Prepares in a cache of the test's own. Validation is one pair that is nowhere else, unless it is given."""
    held = write(tmp_path / "held.jsonl", [{"prompt": "Q", "chosen": "A", "rejected": "B"}])

    def call(*sources: Any, template: str = "hh", context: int = 256, **sections: Any) -> Preferences:
        options = {key: sections.pop(key) for key in ("seed", "on_progress", "targets") if key in sections}
        sections.setdefault("validation", {"sources": [{"path": str(held)}]})
        return prepare_preferences(
            settings_of(*sources, **sections), tokenizer, Template.named(template, EOS), context=context,
            cache=tmp_path / "cache", **({"targets": "answers"} | options),
        )  # fmt: skip

    return call


def asked(rows: PreferenceRows) -> list[str]:
    """The prompts of all pairs (of the template hh), in their order."""
    texts = [json.dumps([vars(message) for message in prompt]) for prompt, _ in rows.prompts(len(rows))]
    assert len(texts) == len(set(texts))
    return texts


# ---- rows


@pytest.mark.parametrize("template", ["eos", "hh", "chatml"])
def test_what_is_predicted(tokenizer: Tokenizer, prepare: Any, tmp_path: Path, template: str) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "Hi there", "chosen": "Hello 🙂", "rejected": "Go away, you."}])
    answers, last = (prepare(path, template=template, targets=targets).train for targets in ("answers", "last"))
    written = Template.named(template, EOS)
    pair = encode_answers([Message("user", "Hi there")], ["Hello 🙂", "Go away, you."], written, tokenizer, 256)
    assert answers.max_length + 1 == last.max_length == max(map(len, pair.ids))
    batch, marks = answers.batch(np.array([0])), last.batch(np.array([0]))
    assert batch.pairs
    assert marks.pairs
    for side, ids in enumerate(pair.ids):
        n = len(ids)
        assert batch.tokens[side, : n - 1].tolist() == ids[:-1].tolist()
        targets = [IGNORE] * (pair.start - 1) + ids[pair.start :].tolist()
        assert batch.targets[side].tolist() == targets + [IGNORE] * (batch.targets.shape[1] - len(targets))
        assert marks.tokens[side, :n].tolist() == ids.tolist(), "what is judged stands there whole"
        assert (marks.targets[side] != IGNORE).nonzero().flatten().tolist() == [n - 1]
        assert marks.targets[side, n - 1] == 0
    assert answers.lengths().tolist() == last.lengths().tolist() == [[len(ids) - pair.start for ids in pair.ids]]
    assert (answers.scored, len(answers), answers.context) == (1, 1, 256)
    assert answers.tokens == sum(map(len, pair.ids))
    assert answers.answer_bytes == len("Hello 🙂Go away, you.".encode())
    assert answers.checksum == last.checksum


def test_a_batch_has_the_longest_pairs_first(prepare: Any, tmp_path: Path) -> None:
    records = [record(n, chosen=3 + 7 * n % 11, rejected=3 + 5 * n % 13) for n in range(20)]
    rows = prepare(write(tmp_path / "a.jsonl", records)).train
    numbers = np.array([3, 17, 2, 8, 9])
    batch = rows.batch(numbers, epoch=5)
    alone = {int(n): rows.batch(np.array([n])) for n in numbers}
    assert sorted(batch.rows.tolist()) == sorted(numbers.tolist())
    assert batch.weight == len(batch) == 5
    assert batch.tokens.shape == batch.targets.shape == (10, batch.tokens.shape[1])
    longest = []
    for place, number in enumerate(batch.rows.tolist()):
        [own] = alone[number].split(1)
        time = own.tokens.shape[1]
        assert torch.equal(batch.tokens[2 * place : 2 * place + 2, :time], own.tokens)
        assert torch.equal(batch.targets[2 * place : 2 * place + 2, :time], own.targets)
        assert not (batch.targets[2 * place : 2 * place + 2, time:] != IGNORE).any()
        longest.append(int((own.targets != IGNORE).nonzero()[:, 1].max()))
    assert longest == sorted(longest, reverse=True)


def test_answer_lengths_are_of_the_rows_in_their_order(tokenizer: Tokenizer, prepare: Any, tmp_path: Path) -> None:
    records = [record(n, chosen=3 + 7 * n % 11, rejected=3 + 5 * n % 13) for n in range(20)]
    rows = prepare(write(tmp_path / "a.jsonl", records)).train
    expected = [[len(tokenizer.encode(" " + each[side])) + 1 for side in ("chosen", "rejected")] for each in records]
    assert rows.lengths().tolist() == expected
    assert rows.lengths().dtype == np.int64
    for number in range(20):
        targets = rows.batch(np.array([number])).targets
        assert (targets != IGNORE).sum(dim=1).tolist() == expected[number]


def test_the_bytes_of_answers_that_were_cut(tokenizer: Tokenizer, prepare: Any, tmp_path: Path) -> None:
    rows = prepare(write(tmp_path / "a.jsonl", [record(1, chosen=100, rejected=3)]), context=20).train
    chosen = rows.batch(np.array([0])).targets[0]
    kept = tokenizer.decode(chosen[chosen != IGNORE].tolist())
    assert record(1, chosen=100)["chosen"].startswith(kept.strip())
    assert rows.answer_bytes == len(kept) + len(record(1, rejected=3)["rejected"])


# ---- what is left out


def test_equal_sides_are_counted_apart(prepare: Any, tmp_path: Path) -> None:
    records = [record(n) for n in range(12)]
    records[3] |= {"rejected": records[3]["chosen"]}
    preferences = prepare(write(tmp_path / "a.jsonl", records), bad_rows=0)
    counts = preferences.table[0]
    assert (counts.pairs, counts.equal, counts.equal_at, counts.bad) == (11, 1, ["line 4"], {})
    assert counts.dropped == "1 with equal sides"
    assert preferences.warnings == [
        "the source 'a.jsonl' has pairs that prefer nothing, which are left out: equal sides: 1 (line 4)"
    ]


def test_pairs_that_cutting_makes_equal(prepare: Any, tmp_path: Path) -> None:
    same = words(1, 200)
    alike = [{"prompt": words(n), "chosen": same + " yes", "rejected": same + " no"} for n in range(7)]
    path = write(tmp_path / "a.jsonl", [record(100), *alike, record(101)])
    assert len(prepare(path, context=1000).train) == 9
    preferences = prepare(path, context=40)
    counts = preferences.table[0]
    assert (counts.pairs, counts.cut_equal) == (2, 7)
    assert counts.cut_equal_at == [f"line {n}" for n in range(2, 7)]
    assert any("sides that are equal once they are cut: 7 (line 2, line 3, line 4, line 5, line 6, …)" in text
               for text in preferences.warnings)  # fmt: skip
    with pytest.raises(DataError, match=r"gives train no row: 7 with sides that are equal once they are cut\. Mend it"):
        prepare(write(tmp_path / "b.jsonl", alike), context=40)


def test_bad_rows_are_counted_by_cause_with_their_lines(prepare: Any, tmp_path: Path) -> None:
    bad = [{**record(500), "rejected": " "}, {**record(501), "prompt": None}, {**record(502), "chosen": ""}]
    path = write(tmp_path / "a.jsonl", [*map(record, range(10)), *bad, *map(record, range(10, 300))])
    preferences = prepare(path, bad_rows=0.01)
    counts = preferences.table[0]
    assert counts.bad == {"an empty message": 2, "not text": 1}
    assert counts.bad_at == {"an empty message": ["line 11", "line 13"], "not text": ["line 12"]}
    assert counts.dropped == "2 bad (an empty message), 1 bad (not text)"
    assert preferences.warnings[0] == (
        "the source 'a.jsonl' has 3 bad rows, which are left out: an empty message: 2 (line 11, line 13); not text: 1 "
        "(line 12)"
    )
    with pytest.raises(DataError, match=r"source 'a\.jsonl': 3 of 303 rows are bad.*at most 0\.005"):
        prepare(path, bad_rows=0.005)
    assert not list((tmp_path / "cache").rglob("*.partial")), "nothing is left of what failed"


def test_duplicates_have_the_same_prompt_and_the_same_answers(prepare: Any, tmp_path: Path) -> None:
    one, other = record(1), {**record(1), "rejected": "Not that."}
    swapped = {**one, "chosen": one["rejected"], "rejected": one["chosen"]}
    path = write(tmp_path / "a.jsonl", [one, other, one, swapped, other])
    preferences = prepare(path)
    assert len(preferences.train) == 3
    assert preferences.table[0].duplicates == 2
    assert preferences.table[0].dropped == "2 duplicates of pairs before them"
    assert len(preferences.train.prompts(10)) == 1, "a prompt is asked once"
    held = {"sources": [{"path": str(path)}]}
    assert len(prepare(write(tmp_path / "b.jsonl", [record(2)]), validation=held).validation) == 5, "as they are"


def test_what_the_template_refuses_is_an_error(prepare: Any, tmp_path: Path) -> None:
    prompt = [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Hi"}]
    path = write(tmp_path / "a.jsonl", [{**record(1), "prompt": prompt}])
    with pytest.raises(DataError, match=r"the source 'a\.jsonl': a pair that begins 'Be kind'.*no system messages"):
        prepare(path, template="hh")


# ---- which split


def test_a_share_by_prompt(prepare: Any, tmp_path: Path) -> None:
    """Pairs of one prompt are on one side, whatever their answers."""
    records = [{**record(n % 400), "rejected": words(9000 + n)} for n in range(800)]
    held = {"validation": {"share": 0.1}, "test": {"share": 0.2}}
    preferences = prepare(write(tmp_path / "a.jsonl", records), **held)
    rows = {"train": preferences.train, "validation": preferences.validation, "test": preferences.test}
    prompts = {split: set(asked(each)) for split, each in rows.items()}
    assert sum(len(each) for each in rows.values()) == 800
    assert len(set.union(*prompts.values())) == sum(map(len, prompts.values())) == 400
    assert [len(each) for each in rows.values()] == [2 * len(each) for each in prompts.values()]
    assert 25 < len(prompts["validation"]) < 60
    assert 55 < len(prompts["test"]) < 110
    again = prepare(tmp_path / "a.jsonl", **held, seed=1)
    assert set(asked(again.validation)) != prompts["validation"]


def test_a_dialogue_that_is_published_at_several_depths_is_held_out_as_a_whole(prepare: Any, tmp_path: Path) -> None:
    def at_depth(number: int, depth: int) -> Record:
        turns = [
            {"role": ("user", "assistant")[n % 2], "content": words(100 * number + n)} for n in range(2 * depth + 1)
        ]
        return {**record(number, depth), "prompt": turns}

    records = [at_depth(number, depth) for number in range(60) for depth in range(3)]
    preferences = prepare(write(tmp_path / "a.jsonl", records), validation={"share": 0.3})
    begun = [
        {messages[0].content for messages, _ in rows.prompts(512)}
        for rows in (preferences.train, preferences.validation)
    ]
    assert not begun[0] & begun[1]
    assert len(preferences.validation) == 3 * len(begun[1]) > 20


def test_a_small_source_still_gives_validation_a_pair(prepare: Any, tmp_path: Path) -> None:
    for count in (2, 5, 25):
        path = write(tmp_path / f"{count}.jsonl", [record(1000 * count + n) for n in range(count)])
        for seed in range(5):
            preferences = prepare(path, validation={"share": 0.01}, seed=seed)
            assert len(preferences.validation) >= 1
            assert len(preferences.train) + len(preferences.validation) == count
    with pytest.raises(DataError, match=r"validation is empty: a share of 0\.01 of the training pairs gives no row"):
        prepare(write(tmp_path / "1.jsonl", [record(1)]), validation={"share": 0.01})


def test_prompts_of_what_is_held_out(prepare: Any, tmp_path: Path) -> None:
    held = {"sources": [{"path": str(write(tmp_path / "held.jsonl", [record(5), record(6), record(500)]))}]}
    records = [record(1), {**record(5), "chosen": "Another."}, record(2), record(6), record(5), record(3)]
    path = write(tmp_path / "a.jsonl", records)
    found = r"^3 training pair\(s\) have a prompt that also stands in validation or test; one, of the source 'a\.jsonl'"
    with pytest.raises(DataError, match=found) as error:
        prepare(path, validation=held)
    assert repr(record(5)["prompt"]) in str(error.value)
    assert 'data.overlap = "drop"' in str(error.value)
    preferences = prepare(path, validation=held, overlap="drop")
    assert (len(preferences.train), len(preferences.validation)) == (3, 3)
    assert preferences.table[0].overlapping == 3
    assert "3 with a prompt of validation or test" in preferences.table[0].dropped


# ---- settings


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"bad_rows": 2}, "bad_rows = 2"),
        ({"templat": "hh"}, "did you mean 'template'"),
        ({"learn": "answers"}, "learn = 'answers': unknown key"),
        ({"validation": {}}, "give either share = 0.05"),
        ({"validation": {"share": 0.6}, "test": {"share": 0.4}}, "leave nothing to train on"),
        ({"validation": {"sources": [{"path": "b", "formt": "hh"}]}}, r"validation\.sources\.0\.formt.*mean 'format'"),
        ({"sources": []}, "wanted at least 1"),
    ],
)  # fmt: skip
def test_impossible_settings(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build(PreferenceSettings, {"sources": [{"path": "a"}], **sections}, "recipe.toml")


def test_settings_survive_being_written() -> None:
    settings = settings_of({"hub": "a/b", "format": "messages"}, test={"share": 0.1}, template="hh")
    assert build(PreferenceSettings, plain(settings), "recipe.toml") == settings
    assert settings.validation.share == 0.05


def test_a_tokenizer_without_the_templates_end(tmp_path: Path) -> None:
    plain_tokenizer = Tokenizer.train([words(1)], 300)
    with pytest.raises(TokenizerError, match=r"<\|im_end\|>"):
        prepare_preferences(
            settings_of(write(tmp_path / "a.jsonl", [record(1)])), plain_tokenizer, Template.named("chatml", EOS),
            context=8, targets="last", cache=tmp_path,
        )  # fmt: skip


# ---- the cache


def test_it_is_prepared_once(prepare: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [record(n, chosen=9) for n in range(30)])
    first = prepare(path, validation={"share": 0.2})
    stamp = (first.folder / "counts.json").stat().st_mtime_ns
    assert first.folder.parent == tmp_path / "cache" / "preferences"
    again = prepare(path, validation={"share": 0.2}, targets="last")
    assert (again.folder, again.fingerprints, again.table) == (first.folder, first.fingerprints, first.table)
    assert (first.folder / "counts.json").stat().st_mtime_ns == stamp
    assert again.warnings == first.warnings != []
    assert again.validation.prompts(3) == first.validation.prompts(3)
    others = [
        prepare(path, validation={"share": 0.2}, **change).folder
        for change in ({"context": 255}, {"template": "eos"}, {"seed": 1}, {"overlap": "drop"}, {"bad_rows": 0.5})
    ]
    assert len({first.folder, *others}) == 6
    os.utime(path, ns=(1, 1))
    assert prepare(path, validation={"share": 0.2}).folder != first.folder
    assert prepare(path, validation={"share": 0.2}).fingerprints == first.fingerprints, "the pairs are the same"


@pytest.mark.parametrize("name", ["train.tokens", "train.starts", "validation.prompts", "counts.json"])
def test_what_is_damaged_is_made_again(prepare: Any, tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "a.jsonl", [record(n) for n in range(9)])
    first = prepare(path)
    file = first.folder / name
    content = file.read_bytes()
    file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    again = prepare(path)
    assert file.read_bytes() == content
    assert again.fingerprints == first.fingerprints


def test_a_cache_that_cannot_be_written(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [record(n) for n in range(9)])
    (tmp_path / "file").write_text("")
    with pytest.raises(GptlabError, match=r"cannot be written: .*GPTLAB_CACHE"):
        read_preferences(
            PreferenceSourceSettings(path=str(path)), tokenizer, Template.named("eos", EOS), context=64,
            targets="answers", cache=tmp_path / "file" / "cache",
        )  # fmt: skip


def test_a_full_disk_is_left_without_a_part(prepare: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = write(tmp_path / "a.jsonl", [record(n) for n in range(9)])
    for writer in ("row_file", "row_cache"):
        with monkeypatch.context() as patched:
            patched.setattr(f"gptlab.data.{writer}.sync", full)
            with pytest.raises(GptlabError, match=r"cannot be written: No space left on device\. Make room"):
                prepare(path)
        assert {each.suffix for each in (tmp_path / "cache" / "preferences").iterdir()} <= {".lock"}
    assert len(prepare(path).train) == 9


def test_progress(prepare: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [record(n) for n in range(50)])
    told: list[PrepareProgress] = []
    preferences = prepare(path, on_progress=told.append)
    assert (told[-1].source, told[-1].documents) == ("a.jsonl", 51)
    assert told[-1].tokens == sum(counts.tokens for counts in preferences.table)
    assert told[-1].bytes_read == told[-1].bytes_total == path.stat().st_size + (tmp_path / "held.jsonl").stat().st_size


def test_all_of_a_source(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [record(1), record(1), record(2)])
    source = PreferenceSourceSettings(path=str(path))
    template = Template.named("hh", EOS)
    rows = read_preferences(source, tokenizer, template, context=64, targets="last", cache=tmp_path / "cache")
    assert (len(rows), rows.targets, rows.context) == (3, "last", 64)
    assert len(rows.prompts(5)) == 2


# ---- what is shown


def test_prompts_are_from_all_pairs(prepare: Any, tmp_path: Path) -> None:
    count = 2 * KEPT_PROMPTS
    records = [{"prompt": f"question {n}", "chosen": f"yes {n}", "rejected": "no"} for n in range(count)]
    rows = prepare(write(tmp_path / "a.jsonl", records)).train
    prompts = rows.prompts(count)
    found = [int(messages[0].content.split()[1]) for messages, _ in prompts]
    assert [answer for _, answer in prompts] == [f"yes {n}" for n in found]
    assert len(found) == KEPT_PROMPTS
    assert found == sorted(found)
    assert 0.4 * KEPT_PROMPTS < sum(number < count / 2 for number in found) < 0.6 * KEPT_PROMPTS
    assert len(rows.prompts(5)) == 5


def test_one_pair_with_its_targets_marked(tokenizer: Tokenizer, prepare: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "to\nhe", "chosen": "it 🙂", "rejected": "have"}])
    text = prepare(path, template="eos").train.example(tokenizer)
    prompt, chosen, rejected = text.replace("·", "").replace(" ≻ ", "⟦").split("⟦", 2)
    assert (prompt, chosen) == (f"to\\nhe{EOS}", f"it 🙂{EOS}⟧")
    assert rejected == f"⟦have{EOS}⟧"
    assert "·" in text.partition("⟦")[0]
    last = prepare(path, template="eos", targets="last").train.example(tokenizer)
    assert last.replace("·", "") == f"to\\nhe{EOS}it 🙂⟦{EOS}⟧ ≻ have⟦{EOS}⟧"
    long = [record(1, chosen=80), {"prompt": "a", "chosen": "b", "rejected": "c"}]
    rows = prepare(write(tmp_path / "b.jsonl", long), template="eos").train
    shown = f"a·{EOS}·⟦b·{EOS}⟧ ≻ ⟦c·{EOS}⟧"
    assert rows.example(tokenizer, characters=60) == shown, "a pair that is shown whole is preferred"


# ---- the hub


def test_a_data_set_on_the_hub(hub: Any, hub_environment: dict[str, str], tmp_path: Path) -> None:
    """As UltraFeedback has it: a prompt, and both sides as messages that repeat it."""
    folder = hub.folder / "datasets" / "acme" / "pairs"
    folder.mkdir(parents=True)

    def listed(number: int) -> Record:
        text = record(number)
        turns = {side: [{"role": "user", "content": text["prompt"]}, {"role": "assistant", "content": text[side]}]
                 for side in ("chosen", "rejected")}  # fmt: skip
        return {"prompt": text["prompt"], **turns, "score": 0.5}

    odd = listed(99)
    write(folder / "train.jsonl", [*map(listed, range(50)), {**odd, "rejected": odd["chosen"]}])
    write(folder / "test.jsonl", [listed(n) for n in range(100, 104)])
    tree = {
        "sources": [{"hub": "acme/pairs"}],
        "validation": {"sources": [{"hub": "acme/pairs", "split": "test", "limit_pairs": 3}]},
    }
    Tokenizer.train([words(1)], 300).save(tmp_path / "tokenizer")
    code = (
        "import json, sys; from pathlib import Path; from gptlab.data.preferences import *\n"
        "from gptlab.settings import build; from gptlab.text.dialogue import Template\n"
        "from gptlab.text.tokenizer import Tokenizer; from gptlab.errors import GptlabError\n"
        f"def go(tree): return prepare_preferences(build(PreferenceSettings, tree, 'r'), "
        f"Tokenizer.read(Path({str(tmp_path / 'tokenizer')!r})), Template.named('eos', {EOS!r}), context=99, "
        f"targets='last', cache=Path({str(tmp_path / 'cache')!r}))\n"
        f"tree = {tree!r}\n"
        "pairs = go(tree); assert go(tree).table == pairs.table\n"
        "print(json.dumps([[row.name, row.split, row.pairs, row.equal_at] for row in pairs.table]))\n"
        "print(json.dumps([pairs.train.prompts(1)[0][1], pairs.train.lengths().tolist()[0]]))\n"
        "try: go({**tree, 'sources': [{'hub': 'acme/pairs', 'columns': {'chosen': 'win'}}]})\n"
        "except GptlabError as error: print(json.dumps(str(error)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=hub_environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table, [answer, lengths], column = map(json.loads, done.stdout.splitlines())
    assert table == [["acme/pairs", "train", 50, ["record 51"]], ["acme/pairs", "validation", 3, []]]
    assert answer == record(0)["chosen"]
    assert len(lengths) == 2
    assert "acme/pairs: has the columns prompt, chosen, rejected, score; wanted win and rejected" in column
