"""The tokenizer: ids equal `tokenizers`' own, whatever comes in goes out again, and what cannot be read is named."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from gptlab.errors import RecipeError, TokenizerError
from gptlab.settings import build, plain
from gptlab.text import tokenizer as tokenizer_module
from gptlab.text.tokenizer import EOS, Tokenizer, TokenizerSettings, resolve_tokenizer
from gptlab.text.vocabulary import BYTE_OF_CHARACTER, Vocabulary

TEXT = "the cat sat on the mat; the dog's cat sat there, and that's that. " * 5
TEXTS = [
    TEXT,
    "  white \n\n\t space  ",
    "Zürich, 東京 🙂🙂",
    "a" * 500,
    "don't I'll we've",
    "",
    f"x{EOS}y",
    "1234 5678",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 290)


@pytest.fixture(scope="module")
def reordered() -> Tokenizer:
    """The same merges, but the ids in another order: tiktoken, which merges by id, would merge otherwise."""
    vocabulary = Tokenizer.train(TEXTS, 290)._vocabulary
    highest = max(vocabulary.tokens.values())
    tokens = {token: highest - number for token, number in vocabulary.tokens.items()}
    return Tokenizer(Vocabulary(tokens, vocabulary.merges, vocabulary.special_tokens))


@pytest.fixture
def saved(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    tokenizer.save(tmp_path / "saved")
    return tmp_path / "saved"


def change(folder: Path, edit: Callable[[dict[str, Any]], object], name: str = "tokenizer.json") -> Path:
    content = json.loads((folder / name).read_text())
    edit(content)
    (folder / name).write_text(json.dumps(content))
    return folder


def write_pair(tokenizer: Tokenizer, folder: Path, names: tuple[str, str]) -> Path:
    """The tokenizer as a vocabulary file and a merges file, as transformers and OpenAI have them."""
    folder.mkdir()
    vocabulary = tokenizer._vocabulary
    (folder / names[0]).write_text(json.dumps({**vocabulary.tokens, **vocabulary.special_tokens}))
    merges = "".join(f"{left} {right}\n" for left, right in vocabulary.merges)
    (folder / names[1]).write_text("#version: 0.2\n" + merges, encoding="utf-8")
    return folder


# ---- ids and text


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_comes_back(tokenizer: Tokenizer, reordered: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert reordered.decode(reordered.encode(text)) == text


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="the caton'sd ., \n\t1é🙂a", max_size=60) | st.text())
def test_ids_are_those_of_tokenizers(saved_file: Path, tokenizer: Tokenizer, text: str) -> None:
    reference = tokenizers.Tokenizer.from_file(str(saved_file))
    reference.encode_special_tokens = True
    assert tokenizer._fast is not None, "this test is to compare tiktoken's ids"
    assert tokenizer.encode(text) == reference.encode(text).ids


@pytest.fixture(scope="module")
def saved_file(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    tokenizer.save(folder)
    return folder / "tokenizer.json"


def test_where_id_order_is_not_merge_order_the_merges_decide(tokenizer: Tokenizer, reordered: Tokenizer) -> None:
    assert reordered._fast is None
    highest = max(tokenizer._vocabulary.tokens.values())
    for text, ids in zip(TEXTS, reordered.encode_documents(TEXTS), strict=True):
        assert ids.dtype == np.uint32
        assert [highest - i for i in tokenizer.encode(text)] == ids.tolist() == reordered.encode(text)


def test_tokens_that_no_merge_leads_to_are_found_out() -> None:
    """In bc+abc-like vocabularies tiktoken would join neighbours that the merges never join."""
    tokens = {character: number for number, character in enumerate(BYTE_OF_CHARACTER)}
    merges = (("b", "c"), ("a", "b"), ("ab", "c"))  # "abc" becomes a+bc, and nothing joins those
    tokens |= {left + right: 256 + n for n, (left, right) in enumerate(merges)}
    tricky = Tokenizer(Vocabulary(tokens, merges, {EOS: 259}))
    assert tricky._fast is None
    assert tricky.encode("abc") == [tokens["a"], tokens["bc"]]


def test_documents_are_encoded_alike_alone_together_and_by_threads(tokenizer: Tokenizer) -> None:
    alone = [tokenizer.encode(text) for text in TEXTS]
    together = tokenizer.encode_documents(TEXTS)
    assert [ids.tolist() for ids in together] == alone
    assert {ids.dtype for ids in together} == {np.dtype(np.uint32)}
    with ThreadPoolExecutor(4) as threads:
        for result in threads.map(tokenizer.encode_documents, [TEXTS] * 20):
            assert [ids.tolist() for ids in result] == alone


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(st.text(alphabet="ab \n🙂") | st.sampled_from([EOS, EOS[:-1], EOS[1:], "<", "", "\ud83d"])))
@pytest.mark.parametrize("group_characters", [1, 9, 1 << 16])
def test_documents_that_share_a_call_do_not_see_each_other(
    tokenizer: Tokenizer, texts: list[str], group_characters: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_module, "GROUP_CHARACTERS", group_characters)
        together = [ids.tolist() for ids in tokenizer.encode_documents(texts)]
    assert together == [tokenizer.encode(text) for text in texts]


@pytest.mark.parametrize("whitespace", [" ", "\n"])
def test_a_million_spaces_are_no_error(tokenizer: Tokenizer, whitespace: str) -> None:
    """tiktoken's regular expression gives up on them."""
    text = f"x{whitespace * 1_500_000}y"
    assert tokenizer.decode(tokenizer.encode_documents([text])[0]) == text


def test_half_a_surrogate_pair_becomes_the_replacement_character(tokenizer: Tokenizer, reordered: Tokenizer) -> None:
    for each in (tokenizer, reordered):
        assert each.decode(each.encode("a\ud83d b")) == "a\ufffd b"


def test_special_tokens_in_text_are_text_unless_asked_for(tokenizer: Tokenizer) -> None:
    text = f"one{EOS}two{EOS}"
    assert tokenizer.eos_id not in tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    one, two = tokenizer.encode("one"), tokenizer.encode("two")
    assert tokenizer.encode(text, special=True) == [*one, tokenizer.eos_id, *two, tokenizer.eos_id]
    assert tokenizer.eos_id not in tokenizer.encode_documents([text])[0]


def test_decoding_writes_special_tokens_out_or_skips_them(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("a"), tokenizer.eos_id]
    assert tokenizer.decode(ids) == f"a{EOS}"
    assert tokenizer.decode(ids, skip_special=True) == "a"
    assert tokenizer.decode(np.array(ids)) == f"a{EOS}"


def test_a_cut_character_becomes_the_replacement_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("é")
    assert b"".join(map(tokenizer.bytes_of, ids)) == "é".encode()
    first_byte = tokenizer._vocabulary.tokens["Ã"]
    assert tokenizer.bytes_of(first_byte) == b"\xc3"
    assert tokenizer.decode([first_byte]) == "\ufffd"


def test_an_id_without_a_token_is_named(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match=f"no token has the id 99999; the vocabulary has {tokenizer.vocab_size}"):
        tokenizer.decode([99999])


# ---- training


def test_a_trained_vocabulary_is_gpt2s_in_shape(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 290
    assert tokenizer.eos_id == 289
    assert tokenizer.special_tokens == {EOS: 289}
    assert [tokenizer.bytes_of(i) for i in range(3)] == [b"!", b'"', b"#"], "GPT-2's order of the bytes"
    assert len(tokenizer.encode(TEXT)) < len(TEXT) / 2


def test_training_is_deterministic_also_across_processes(tokenizer: Tokenizer) -> None:
    code = (
        f"import sys; from gptlab.text.tokenizer import Tokenizer\nprint(Tokenizer.train({TEXTS!r}, 290).fingerprint)"
    )
    for seed in ("1", "2"):
        again = subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True
        )
        assert again.stdout.strip() == tokenizer.fingerprint, again.stderr


def test_too_little_text_gives_the_smaller_vocabulary() -> None:
    small = Tokenizer.train(["abab"], 5000)
    assert small.vocab_size == 258, "the bytes, a+b (seen twice), EOS"
    assert small.decode(small.encode("ab 🙂")) == "ab 🙂"
    assert Tokenizer.train([], 300).vocab_size == 257


def test_a_vocabulary_smaller_than_the_bytes_is_refused() -> None:
    with pytest.raises(TokenizerError, match="256 is impossible"):
        Tokenizer.train([TEXT], 256)


# ---- files


def test_every_format_gives_the_same_tokenizer(tokenizer: Tokenizer, saved: Path, tmp_path: Path) -> None:
    transformers_form = write_pair(tokenizer, tmp_path / "hf", ("vocab.json", "merges.txt"))
    openai_form = write_pair(tokenizer, tmp_path / "openai", ("encoder.json", "vocab.bpe"))
    for path in (saved, saved / "tokenizer.json", transformers_form, openai_form, openai_form / "vocab.bpe"):
        read = Tokenizer.read(path)
        assert read.fingerprint == tokenizer.fingerprint, path
        assert read.encode(TEXT) == tokenizer.encode(TEXT)
        assert (read.eos_id, read.vocab_size) == (tokenizer.eos_id, tokenizer.vocab_size)


def test_another_tokenizer_has_another_fingerprint(tokenizer: Tokenizer, reordered: Tokenizer) -> None:
    prints = {tokenizer.fingerprint, reordered.fingerprint, Tokenizer.train(TEXTS, 280).fingerprint}
    assert len(prints) == 3
    assert all(len(fingerprint) == 16 and int(fingerprint, 16) >= 0 for fingerprint in prints)


def test_both_spellings_of_merges_are_read(tokenizer: Tokenizer, saved: Path) -> None:
    def older(content: dict[str, Any]) -> None:
        content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]

    assert Tokenizer.read(change(saved, older)).fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("which", ["tokenizer", "reordered"])
def test_transformers_reads_what_is_saved(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    ours = request.getfixturevalue(which)
    ours.save(tmp_path, context=64)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.is_fast
    assert len(theirs) == ours.vocab_size
    assert (theirs.eos_token, theirs.eos_token_id) == (EOS, ours.eos_id)
    assert theirs.pad_token is None
    assert theirs.model_max_length == 64
    for text in TEXTS:
        assert theirs(text)["input_ids"] == ours.encode(text, special=True)
        assert theirs.decode(ours.encode(text)) == text
    assert theirs.decode([ours.eos_id], skip_special_tokens=True) == ""


def test_more_special_tokens_and_another_eos_survive(tokenizer: Tokenizer, tmp_path: Path) -> None:
    special = {EOS: 289, "<|user|>": 290, "<|end|>": 291}
    ours = Tokenizer(Vocabulary(tokenizer._vocabulary.tokens, tokenizer._vocabulary.merges, special, eos="<|end|>"))
    ours.save(tmp_path)
    again = Tokenizer.read(tmp_path)
    assert (again.eos_id, again.special_tokens, again.vocab_size) == (291, special, 292)
    assert again.fingerprint == ours.fingerprint != tokenizer.fingerprint
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    text = "<|user|>the cat<|end|>"
    assert theirs(text)["input_ids"] == ours.encode(text, special=True) == [290, *ours.encode("the cat"), 291]
    assert theirs.eos_token_id == 291


@pytest.mark.parametrize("which", ["tokenizer", "reordered"])
def test_special_tokens_added_stand_above_the_vocabulary(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    before = request.getfixturevalue(which)
    ours = before.with_special_tokens(["<|im_start|>", EOS, "<|im_end|>", "<|im_start|>"])
    assert ours.special_tokens == {**before.special_tokens, "<|im_start|>": 290, "<|im_end|>": 291}
    assert (ours.vocab_size, ours.eos, ours.eos_id) == (292, EOS, before.eos_id)
    assert before.vocab_size == 290, "a tokenizer does not change"
    assert all(ours.encode(text) == before.encode(text) for text in [*TEXTS, "<|im_start|>"])
    ours.save(tmp_path)
    assert Tokenizer.read(tmp_path).fingerprint == ours.fingerprint != before.fingerprint
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == 292
    for text in [*TEXTS, f"<|im_start|>user\nthe cat<|im_end|>\n{EOS}"]:
        assert theirs(text)["input_ids"] == ours.encode(text, special=True)
        assert theirs.decode(ours.encode(text, special=True)) == text


def test_special_tokens_that_are_there_make_no_other_tokenizer(tokenizer: Tokenizer) -> None:
    assert tokenizer.with_special_tokens([]).fingerprint == tokenizer.fingerprint
    assert tokenizer.with_special_tokens([EOS]).fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("name", ["", "a", "Ġthe"])
def test_an_ordinary_token_cannot_become_special(tokenizer: Tokenizer, name: str) -> None:
    with pytest.raises(TokenizerError, match=f"'{name}' cannot be a special token.*another name"):
        tokenizer.with_special_tokens(["<|new|>", name])


def test_text_is_cut_at_special_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.split_special(f"a{EOS}{EOS}b") == [("a", None), (EOS, 289), (EOS, 289), ("b", None)]
    assert tokenizer.split_special("") == []


def test_added_tokens_beside_a_pair_are_special(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = write_pair(tokenizer, tmp_path / "hf", ("vocab.json", "merges.txt"))
    (folder / "added_tokens.json").write_text('{"<user>": 290}')
    assert Tokenizer.read(folder).encode("<user>", special=True) == [290]


# ---- what is refused


def pre_tokenizer(content: dict[str, Any], **changes: Any) -> None:
    content["pre_tokenizer"].update(changes)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["model"].update(type="WordPiece"), "a WordPiece tokenizer"),
        (lambda c: c["model"].update(type="Unigram"), "a Unigram tokenizer"),
        (lambda c: c.update(normalizer={"type": "NFC"}), "normalizer NFC"),
        (lambda c: c.update(pre_tokenizer=None), "pre-tokenizer None"),
        (lambda c: c.update(pre_tokenizer={"type": "Metaspace"}), "pre-tokenizer Metaspace"),
        (lambda c: pre_tokenizer(c, use_regex=False), "splits text otherwise"),
        (lambda c: pre_tokenizer(c, add_prefix_space=True), "add_prefix_space"),
        (lambda c: c["model"].update(dropout=0.1), "dropout = 0.1"),
        (lambda c: c["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix"),
        (lambda c: c["added_tokens"][0].update(special=False), "is not a plain special token"),
        (lambda c: c.pop("model"), "there is no 'model'"),
        (lambda c: c["model"]["vocab"].pop("A"), "1 of the 256 bytes have no token .the first: 0x41."),
        (lambda c: c["model"]["vocab"].update({"▁the": 999}), "'▁the' is not written in GPT-2's byte alphabet"),
        (lambda c: c["model"]["vocab"].update({"th": 0}), "two tokens have the same id"),
        (lambda c: c["model"]["merges"].append(["q", "z"]), r"merge \d+ .'q' 'z'. has a part or a result"),
        (lambda c: c["model"]["merges"].append("q"), r"merge \d+ is 'q', not two tokens"),
        (lambda c: c["model"].update(merges=None), "no list of merges"),
        (lambda c: c["model"].update(vocab={"a": "1"}), "does not map tokens to ids"),
        (lambda c: (c["added_tokens"].clear(), c["model"]["vocab"].pop(EOS)), "no end-of-text token"),
    ],
)
def test_what_would_give_other_ids_is_refused_by_name(saved: Path, edit: Any, message: str) -> None:
    with pytest.raises(TokenizerError, match=message) as raised:
        Tokenizer.read(change(saved, edit))
    assert str(saved / "tokenizer.json") in str(raised.value)


def test_what_is_not_there_is_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no such file or folder"):
        Tokenizer.read(tmp_path / "none")
    (tmp_path / "vocab.txt").write_text("[PAD]")
    with pytest.raises(TokenizerError, match=r"looked for tokenizer\.json or vocab\.json \+ merges\.txt.*found vocab"):
        Tokenizer.read(tmp_path)
    folder = write_pair(tokenizer, tmp_path / "pair", ("vocab.json", "merges.txt"))
    (folder / "merges.txt").unlink()
    with pytest.raises(TokenizerError, match=r"vocab\.json is there, but merges\.txt"):
        Tokenizer.read(folder)


@pytest.mark.parametrize(
    ("content", "message"), [(b"{", "not JSON"), (b"[]", "no JSON object"), (b"\xff", "not UTF-8")]
)
def test_damaged_files_are_named(saved: Path, content: bytes, message: str) -> None:
    (saved / "tokenizer.json").write_bytes(content)
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.read(saved)


# ---- the section of a recipe


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "neither is given"),
        ({"from": "gpt2", "train": 300}, "both are given"),
        ({"train": 256}, "train = 256"),
        ({"train": "300"}, "train = '300'"),
        ({"form": "gpt2"}, "did you mean 'from'"),
    ],
)
def test_impossible_sections(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build(TokenizerSettings, tree, "recipe.toml")


def test_a_section_survives_being_written() -> None:
    section = build(TokenizerSettings, {"from": "gpt2"}, "recipe.toml")
    assert plain(section) == {"from": "gpt2"}


def test_resolving_trains_on_the_texts_or_reads(tokenizer: Tokenizer, saved: Path) -> None:
    trained = resolve_tokenizer(TokenizerSettings(train=290), lambda: iter(TEXTS))
    read = resolve_tokenizer(TokenizerSettings(from_=str(saved)), lambda: pytest.fail("no text is needed"))
    assert trained.fingerprint == read.fingerprint == tokenizer.fingerprint
    with pytest.raises(TokenizerError, match="no such file or folder"):
        resolve_tokenizer(TokenizerSettings(from_="./none"), list)


def test_a_name_is_looked_for_on_the_hub_unless_a_folder_has_it(
    tokenizer: Tokenizer, hub: Any, hub_environment: dict[str, str], tmp_path: Path
) -> None:
    (hub.folder / "models" / "acme").mkdir(parents=True)
    write_pair(tokenizer, hub.folder / "models" / "acme" / "tiny", ("vocab.json", "merges.txt"))
    code = (
        "from gptlab.text.tokenizer import *\n"
        "print(resolve_tokenizer(TokenizerSettings(from_='acme/tiny'), list).fingerprint)"
    )

    def resolved() -> str:
        done = subprocess.run(
            [sys.executable, "-c", code], env=hub_environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert resolved() == tokenizer.fingerprint
    here = Tokenizer.train(TEXTS, 280)
    here.save(tmp_path / "acme" / "tiny")
    assert resolved() == here.fingerprint
