"""Dialogues: what is written, which of it is learned, and that nobody's words become a special token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.errors import DataError, TokenizerError, UserError
from gptlab.text.dialogue import BUILT_IN, Message, Template
from gptlab.text.tokenizer import EOS, Tokenizer

LLAMA_3 = """{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
LLAMA_2 = """{% for message in messages %}
{% if message.role == 'user' %}{{ bos_token + '[INST] ' + message.content.strip() + ' [/INST]' }}
{%- elif message.role == 'assistant' %}{{ ' ' + message.content.strip() + ' ' + eos_token }}
{%- else %}{{ raise_exception('Only user and assistant roles are supported!') }}
{%- endif %}{% endfor %}"""
NAMES_FROM_PARTS = """{%- for message in messages -%}
    {{ '<|' + message.role + '|>\n' }}
    {%- if message.role == 'assistant' %}{% generation %}{{ message.content + '<|end|>' }}{% endgeneration %}
    {%- else %}{{ message.content + '<|end|>' }}{% endif %}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>\n' }}{%- endif -%}"""
BARE = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
"""Nothing stands between two users' words."""
LOOKING = """{% for m in messages %}<|turn|>{{ m.content.split('</think>')[-1] | trim }}<|end|>{% endfor %}
{%- if add_generation_prompt %}<|turn|>{% endif %}"""

SOURCES = {"llama 3": LLAMA_3, "llama 2": LLAMA_2, "parts": NAMES_FROM_PARTS, "bare": BARE, "looking": LOOKING}
EVERY = [*BUILT_IN, *SOURCES]

TALK = [
    Message("user", "Is the cat there?"),
    Message("assistant", "Yes, it sat down."),
    Message("user", "Where?"),
    Message("assistant", "On the mat."),
]


@pytest.fixture(scope="module")
def plain() -> Tokenizer:
    """Without the special tokens of any template."""
    return Tokenizer.train(["Is the cat there? Yes, it sat down on the mat.\n\nHuman: the\n\nAssistant: cat "] * 3, 300)


def template(name: str) -> Template:
    return Template.named(name, EOS) if name in BUILT_IN else Template(name, SOURCES[name], EOS)


def both(name: str, plain: Tokenizer) -> tuple[Template, Tokenizer]:
    return template(name), plain.with_special_tokens(template(name).special_tokens)


# Words as people write them, and what would be a special token of some template, whole, halved or nearly.
WORDS = st.text(alphabet="cat<|>e \n", max_size=12) | st.text(max_size=8)
TRAPS = st.sampled_from(
    [EOS, EOS[:-1], EOS[1:], "<|im_", "end|>", "<|im_end|>", "<|im_start|>", "<|eot_id|>", "<|end|>", "<", "<|", " ",
     "<|end|>\n", "\U00100000", "\U00100001|endoftext|>", "<|endoftext", "</think>"]
)  # fmt: skip
CONTENT = st.lists(WORDS | TRAPS, max_size=4).map("".join)
ROLES = st.lists(st.sampled_from(["user", "assistant"]), max_size=6)
DIALOGUES = ROLES.flatmap(lambda roles: st.tuples(*(st.builds(Message, st.just(role), CONTENT) for role in roles)))


# ---- what is written


def test_the_built_in_templates() -> None:
    two = TALK[:2]
    assert template("eos").render(two) == f"Is the cat there?{EOS}Yes, it sat down.{EOS}"
    assert template("eos").render(two[:1], prompt=True) == f"Is the cat there?{EOS}"
    assert template("hh").render(two) == f"\n\nHuman: Is the cat there?\n\nAssistant: Yes, it sat down.{EOS}"
    assert template("hh").render(two[:1], prompt=True) == "\n\nHuman: Is the cat there?\n\nAssistant:"
    system = [Message("system", "Be kind."), *two[:1]]
    assert template("chatml").render(system, prompt=True) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nIs the cat there?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert template("chatml").render(two).endswith("assistant\nYes, it sat down.<|im_end|>\n")


@pytest.mark.parametrize(
    ("name", "special_tokens", "end"),
    [
        ("eos", (), EOS),
        ("hh", (), EOS),
        ("chatml", ("<|im_start|>", "<|im_end|>"), "<|im_end|>"),
        ("llama 3", ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|eot_id|>"),
        ("llama 2", (), EOS),
        ("parts", ("<|user|>", "<|end|>", "<|assistant|>", "<|system|>"), "<|end|>"),
        ("bare", (), EOS),
        ("looking", ("<|turn|>", "<|end|>"), "<|end|>"),
    ],
)
def test_which_tokens_a_template_needs_and_which_closes_an_answer(
    name: str, special_tokens: tuple[str, ...], end: str, plain: Tokenizer
) -> None:
    found, tokenizer = both(name, plain)
    assert (found.special_tokens, found.end) == (special_tokens, end)
    assert found.end_id(tokenizer) == tokenizer.special_tokens[end]


def test_the_vocabularys_own_end_is_written() -> None:
    own = Template.named("hh", "</s>")
    assert own.end == "</s>"
    assert own.render(TALK[:2]).endswith("down.</s>")


def test_answers_are_the_words_with_what_closes_them() -> None:
    assert template("eos").pieces(TALK) == [
        (f"Is the cat there?{EOS}", False),
        (f"Yes, it sat down.{EOS}", True),
        (f"Where?{EOS}", False),
        (f"On the mat.{EOS}", True),
    ]
    assert template("hh").pieces(TALK[:2]) == [
        ("\n\nHuman: Is the cat there?\n\nAssistant:", False),
        (f" Yes, it sat down.{EOS}", True),
    ]
    assert template("chatml").pieces(TALK[:2])[1:] == [("Yes, it sat down.<|im_end|>", True), ("\n", False)]
    assert template("llama 2").pieces(TALK[:2])[1:] == [(f" Yes, it sat down. {EOS}", True)]


# ---- properties, for any words


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=60, deadline=None)
@given(messages=DIALOGUES)
def test_pieces_and_ids_are_the_text(name: str, plain: Tokenizer, messages: tuple[Message, ...]) -> None:
    made, tokenizer = both(name, plain)
    text = made.render(messages)
    assert "".join(piece for piece, _ in made.pieces(messages)) == text
    ids, learned = made.encode(messages, tokenizer)
    assert len(ids) == len(learned)
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=60, deadline=None)
@given(messages=DIALOGUES)
def test_exactly_the_answers_are_learned(name: str, plain: Tokenizer, messages: tuple[Message, ...]) -> None:
    made, tokenizer = both(name, plain)
    ids, learned = made.encode(messages, tokenizer)
    answers, words = [], []
    for number, is_answer in zip(ids, learned, strict=True):
        words += [number] if is_answer else []
        if is_answer and number == made.end_id(tokenizer):
            answers.append(tokenizer.decode(words[:-1]).strip())
            words = []
    assert not words, "the last learned token closes an answer"
    said = [message.content for message in messages if message.role == "assistant"]
    if name == "looking":
        said = [content.split("</think>")[-1] for content in said]
    assert answers == [content.strip() for content in said]


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=60, deadline=None)
@given(messages=DIALOGUES)
def test_only_the_template_writes_special_tokens(name: str, plain: Tokenizer, messages: tuple[Message, ...]) -> None:
    """As many as around words without any: also where two messages' words would make one together."""
    made, tokenizer = both(name, plain)
    every = ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|end|>"]
    tokenizer = tokenizer.with_special_tokens(every)
    special = set(tokenizer.special_tokens.values())
    harmless = [Message(message.role, "words") for message in messages]
    written, expected = made.encode(messages, tokenizer)[0], made.encode(harmless, tokenizer)[0]
    assert [i for i in written if i in special] == [i for i in expected if i in special]


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=60, deadline=None)
@given(messages=DIALOGUES)
def test_a_prompt_is_the_beginning_of_what_was_learned(
    name: str, plain: Tokenizer, messages: tuple[Message, ...]
) -> None:
    made, tokenizer = both(name, plain)
    ids, learned = made.encode(messages, tokenizer)
    for number, message in enumerate(messages):
        if message.role == "assistant":
            prompt = made.prompt_ids(messages[:number], tokenizer)
            assert ids[: len(prompt)] == prompt
            assert learned[len(prompt)]


@pytest.mark.parametrize("between", ["", " | trim"])
def test_two_turns_cannot_make_a_special_token_together(between: str, plain: Tokenizer) -> None:
    made = Template("bare", BARE.replace("m.content", f"m.content{between}"), EOS)
    messages = [Message("user", f"cat <|endof{' ' if between else ''}"), Message("user", "text|> the"), TALK[1]]
    ids, learned = made.encode(messages, plain)
    assert plain.decode(ids) == f"cat {EOS} theYes, it sat down.{EOS}"
    assert ids.count(plain.eos_id) == 1
    assert made.pieces(messages) == [(f"cat {EOS} the", False), (f"Yes, it sat down.{EOS}", True)]
    assert sum(learned) == len(plain.encode("Yes, it sat down.")) + 1


def test_a_special_token_of_one_character_is_hidden_too(plain: Tokenizer) -> None:
    tokenizer = plain.with_special_tokens(["★", "aa"])
    ids, _ = template("eos").encode([Message("user", "★ aaa ★"), Message("assistant", "★")], tokenizer)
    assert [i for i in ids if i in tokenizer.special_tokens.values()] == [tokenizer.eos_id] * 2
    assert tokenizer.decode(ids) == f"★ aaa ★{EOS}★{EOS}"


def test_a_template_sees_words_as_they_are(plain: Tokenizer) -> None:
    made, tokenizer = both("looking", plain)
    messages = [Message("user", "cat?"), Message("assistant", "<think>hm</think> the cat ")]
    assert made.pieces(messages) == [("<|turn|>cat?<|end|><|turn|>", False), ("the cat<|end|>", True)]
    assert tokenizer.decode(made.encode(messages, tokenizer)[0]) == made.render(messages)


# ---- files


@pytest.mark.parametrize("name", EVERY)
def test_a_saved_template_is_read_again(name: str, tmp_path: Path) -> None:
    made = template(name)
    made.save(tmp_path / "checkpoint")
    again = Template.read(tmp_path / "checkpoint", EOS)
    assert again == made
    assert again.source == made.source
    assert again.name == (name if name in BUILT_IN else str(tmp_path / "checkpoint" / "chat_template.jinja"))


def test_a_file_of_jinja_is_read_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text(LLAMA_3, encoding="utf-8")
    mine = Template.named(str(path), EOS)
    assert (mine.name, mine) == (str(path), template("llama 3"))


def test_the_forms_that_transformers_writes_are_read(tmp_path: Path) -> None:
    assert Template.read(tmp_path, EOS) is None
    config = tmp_path / "tokenizer_config.json"

    def read_from(content: object) -> Template | None:
        config.write_text(json.dumps({"chat_template": content}))
        return Template.read(tmp_path, EOS)

    assert read_from(None) is None
    assert read_from(LLAMA_2) == template("llama 2")
    listed = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": LLAMA_3}]
    assert read_from(listed) == template("llama 3")
    template("hh").save(tmp_path)
    assert read_from(LLAMA_2) == template("hh"), "the file comes first"


def test_dialogpts_own_template_is_known(tmp_path: Path) -> None:
    theirs = "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": theirs}))
    read = Template.read(tmp_path, EOS)
    assert read is not None
    assert (read.name, read) == ("eos", template("eos"))
    assert read.render(TALK) == Template("theirs", theirs, EOS).render(TALK)


# ---- what is refused


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for m in messages %}", "line 1 is no Jinja: .*endfor"),
        ("a\n{{ messages | nosuchfilter }}", "line 2 is no Jinja: No filter named 'nosuchfilter'"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "its words and then one special token, but is 'Hi'"),
        ("{% for m in messages %}{{ m.content + '</s>' }}{% endfor %}", "special token, but is 'Hi</s>'"),
        ("{% for m in messages %}{{ eos_token + m.content + eos_token }}{% endfor %}", "add_generation_prompt"),
        ("{% for m in messages %}{{ eos_token + m.content }}{% endfor %}", "one special token"),
        ("{% for m in messages %}{{ m.content + eos_token + 'and' }}{% endfor %}", "one special token"),
        ("{% for m in messages %}{{ eos_token }}{% endfor %}", "its words"),
        (BARE + "{{ eos_token }}", "the text of a dialogue changes when it goes on"),
        ("{% for m in messages %}{{ m.content + ('' if loop.last else eos_token) }}{% endfor %}", "one special token"),
        ("{{ messages | length }}" + BARE, "changes when it goes on"),
        (BARE.replace("eos_token", "'<|a|>' if loop.first else '<|b|>' if loop.last else '<|c|>'"), "when it goes on"),
        (BARE.replace("eos_token", "'<|a|>' if loop.index == 2 else '<|b|>'"), r"by <\|a\|> and <\|b\|>; use one"),
        ("{{ raise_exception('never') }}", "template mine: never"),
        ("{{ 1 / 0 }}", "template mine: division by zero"),
        ("{{ messages.append(1) }}", "template mine: .*'append' of 'list' object is unsafe"),
    ],
)
def test_templates_that_cannot_be_used(source: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        Template("mine", source, EOS)
    assert "template mine" in str(raised.value)


@pytest.mark.parametrize("name", ["eos", "hh", "llama 2"])
def test_a_system_message_is_refused_where_the_template_has_none(name: str, plain: Tokenizer) -> None:
    messages = [Message("system", "Be kind."), *TALK]
    words = "Only user and" if name == "llama 2" else "no system messages; put the words into the first user message"
    for attempt in (template(name).render, template(name).pieces, lambda m: template(name).encode(m, plain)):
        with pytest.raises(DataError, match=f"template {name}: .*{words}"):
            attempt(messages)


def test_a_dialogue_whose_text_changes_is_named(plain: Tokenizer) -> None:
    """Found only in the dialogue that has it: the words of earlier answers are shortened once there is a later one."""
    source = BARE.replace("m.content", "(m.content | replace('hm', '') if not loop.last else m.content)")
    made = Template("forgetful", source, EOS)
    made.encode(TALK, plain)
    dialogue = [Message("user", "hm"), *TALK[1:2], *TALK]
    with pytest.raises(DataError, match=r"template forgetful: .*text before message 2 is not what the model"):
        made.encode(dialogue, plain)
    with pytest.raises(DataError, match="must write a turn the same"):
        made.pieces(dialogue)


def test_a_vocabulary_without_the_closing_token_is_refused(plain: Tokenizer) -> None:
    for attempt in (template("chatml").encode, template("chatml").prompt_ids):
        with pytest.raises(TokenizerError, match=r"template chatml: closes an answer by <\|im_end\|>, which this"):
            attempt(TALK, plain)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"template chatm: is none of eos, hh, chatml, and no file.*'chatml'"):
        Template.named("chatm", EOS)
    with pytest.raises(TokenizerError, match=r"none\.jinja: is none of eos, hh, chatml, and no file"):
        Template.named(str(tmp_path / "none.jinja"), EOS)
    path = tmp_path / "chat_template.jinja"
    path.write_bytes(b"\xff")
    with pytest.raises(TokenizerError, match=r"chat_template\.jinja: is not UTF-8"):
        Template.read(tmp_path, EOS)
    path.write_text("{% if %}")
    with pytest.raises(TokenizerError, match=r"chat_template\.jinja: line 1 is no Jinja"):
        Template.read(tmp_path, EOS)


@pytest.mark.parametrize("content", [[], [{"name": "rag", "template": "x"}], {"default": "x"}, 5, ["default"]])
def test_a_config_without_a_default_template_is_named(content: object, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": content}))
    with pytest.raises(
        TokenizerError, match=r'tokenizer_config\.json: "chat_template" is neither .*chat_template\.jinja'
    ):
        Template.read(tmp_path, EOS)
