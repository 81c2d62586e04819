"""What transformers' `apply_chat_template` makes of a saved tokenizer and template: the same text and the same ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from gptlab.errors import DataError
from gptlab.text.dialogue import BUILT_IN, Message, Template
from gptlab.text.tokenizer import EOS, Tokenizer

MARKED = """{%- for message in messages %}
    {%- if message['role'] == 'assistant' %}
        {%- generation -%}
        {{ message['content'] | trim + eos_token }}
        {%- endgeneration -%}
    {%- elif loop.index > 4 %}{% continue %}
    {%- else %}
        {{- bos_token + message | tojson + '\n' }}
    {%- endif %}
{%- endfor %}
"""
"""Of what templates may rely on besides Jinja: {% generation %}, {% continue %}, tojson, bos_token, trimmed blocks."""

SOURCES = {"marked": MARKED, "dated": "{{ strftime_now('%Y') }}{{ tools is none }}" + MARKED}
WORDS = st.text(alphabet="the cat's on.,!?\n é<|>", max_size=20).map(str.strip) | st.text(max_size=8).map(str.strip)
ROLES = st.lists(st.sampled_from(["user", "assistant"]), min_size=1, max_size=6)
DIALOGUES = ROLES.flatmap(lambda roles: st.tuples(*(st.builds(Message, st.just(role), WORDS) for role in roles)))


@pytest.fixture(scope="module", params=[*BUILT_IN, *SOURCES])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Template, Tokenizer, Any]:
    """A template, its tokenizer, and transformers' tokenizer of the folder both were saved to."""
    folder: Path = tmp_path_factory.mktemp("checkpoint")
    name = request.param
    template = Template.named(name, EOS) if name in BUILT_IN else Template(name, SOURCES[name], EOS)
    trained = Tokenizer.train(["the cat's on the mat.\n\nHuman: the cat\n\nAssistant: user system on. "] * 3, 320)
    tokenizer = trained.with_special_tokens(template.special_tokens)
    tokenizer.save(folder)
    template.save(folder)
    return template, tokenizer, AutoTokenizer.from_pretrained(folder)


def plain(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


@settings(max_examples=50, deadline=None)
@given(messages=DIALOGUES)
def test_text_and_ids(saved: tuple[Template, Tokenizer, Any], messages: tuple[Message, ...]) -> None:
    template, tokenizer, theirs = saved
    for prompt in (False, True):
        text = theirs.apply_chat_template(plain(messages), tokenize=False, add_generation_prompt=prompt)
        assert template.render(messages, prompt=prompt) == text
    ids = theirs.apply_chat_template(plain(messages), return_dict=False)
    assert template.encode(messages, tokenizer)[0] == ids
    ids = theirs.apply_chat_template(plain(messages), return_dict=False, add_generation_prompt=True)
    assert template.prompt_ids(messages, tokenizer) == ids


@pytest.mark.parametrize("saved", [*SOURCES], indirect=True)
def test_what_is_learned_is_what_the_template_marks(saved: tuple[Template, Tokenizer, Any]) -> None:
    template, tokenizer, theirs = saved
    messages = (
        Message("user", "cat?"),
        Message("assistant", "the cat"),
        Message("user", "on"),
        Message("assistant", "!"),
    )
    found = theirs.apply_chat_template(plain(messages), return_dict=True, return_assistant_tokens_mask=True)
    ids, learned = template.encode(messages, tokenizer)
    assert (ids, [int(is_answer) for is_answer in learned]) == (found["input_ids"], found["assistant_masks"])
    assert any(learned)


@pytest.mark.parametrize("saved", BUILT_IN, indirect=True)
def test_both_refuse_a_system_message(saved: tuple[Template, Tokenizer, Any]) -> None:
    template, _, theirs = saved
    messages = (Message("system", "the"), Message("user", "cat"))
    if template.name in ("eos", "hh"):
        with pytest.raises(DataError, match="no system messages"):
            template.render(messages)
        with pytest.raises(jinja2.TemplateError, match="no system messages"):
            theirs.apply_chat_template(plain(messages), tokenize=False)
    else:
        assert template.render(messages) == theirs.apply_chat_template(plain(messages), tokenize=False)
