"""Jinja for dialogues: the built-in templates, and an environment in which those written for transformers work."""

from __future__ import annotations

import json
import re
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import jinja2

_REFUSE_SYSTEM = (
    "{{ raise_exception('it has no system messages; put the words into the first user message, or use chatml') }}"
)
_EOS = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}" + _REFUSE_SYSTEM + "{% endif %}"
    "{{ message['content'] + eos_token }}"
    "{% endfor %}"
)
# The space after "Assistant:" belongs to the answer, though a reader may expect the prompt to end in it: GPT-2's BPE
# writes a space and the word after it as one token (" Yes"). A prompt that ended in the space would end in the token
# for a space alone, which no text in training had there.
_HH = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '\\n\\nHuman: ' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '\\n\\nAssistant: ' + message['content'] + eos_token }}"
    "{% else %}" + _REFUSE_SYSTEM + "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif %}"
)
_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SOURCES = {"eos": _EOS, "hh": _HH, "chatml": _CHATML}

BUILT_IN = tuple(SOURCES)
"""eos: each turn is its words and EOS, as DialoGPT has it. hh: "\\n\\nHuman: …\\n\\nAssistant: …", as HH-RLHF has it,
and EOS after each answer. chatml: "<|im_start|>user\\n…<|im_end|>\\n"."""

DIALOGPT = "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}"
"""What microsoft/DialoGPT-* have on the hub: "eos", but for a system message."""


@lru_cache(maxsize=16)
def compiled(source: str) -> jinja2.Template:
    """The template, in an environment set up as transformers sets up its own, so that its templates work here."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    # {% generation %} marks an answer for transformers' own mask and writes nothing: here a block that is always on.
    source = re.sub(r"(\{%[-+]?\s*)generation(?=\s*[-+]?%\})", r"\1if true", source)
    source = re.sub(r"(\{%[-+]?\s*)endgeneration(?=\s*[-+]?%\})", r"\1endif", source)
    return environment.from_string(source)


def _raise_exception(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Jinja's own escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)
