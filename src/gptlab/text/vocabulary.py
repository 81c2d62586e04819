"""What a byte-level BPE tokenizer is, as plain data, and the files it is read from.

Three forms are read: `tokenizer.json` (the tokenizers library), `vocab.json` + `merges.txt` (transformers) and
`encoder.json` + `vocab.bpe` (OpenAI's GPT-2 release). The same tokenizer in any of them gives an equal Vocabulary.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gptlab.errors import TokenizerError

EOS = "<|endoftext|>"
"""GPT-2's one special token: it stands between documents and ends an answer."""

TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
FILES = (TOKENIZER_JSON, *(name for pair in PAIRS for name in pair), TOKENIZER_CONFIG, "added_tokens.json")
"""Every file name that reading a tokenizer may look at."""


def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: a printable character for each byte, so that a vocabulary is JSON text.

    Printable Latin-1 stands for itself; the other 68 bytes, in order, are U+0100 and up
    (Radford et al., 2019; openai/gpt-2, encoder.py).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


BYTE_OF_CHARACTER = _byte_of_character()


def token_bytes(token: str) -> bytes:
    """The bytes that a token of the vocabulary stands for: `"Ġthe"` → `b" the"`."""
    return bytes(map(BYTE_OF_CHARACTER.__getitem__, token))


@dataclass(frozen=True)
class Vocabulary:
    """A byte-level BPE vocabulary.

    tokens:         token in GPT-2's alphabet → id, without the special tokens
    merges:         pairs of tokens, the first merged first
    special_tokens: special token → id
    eos:            the special token that ends a document
    """

    tokens: Mapping[str, int]
    merges: tuple[tuple[str, str], ...]
    special_tokens: Mapping[str, int]
    eos: str = EOS

    def __post_init__(self) -> None:
        for check in (_check_bytes, _check_merges, _check_ids):
            if problem := check(self):
                raise TokenizerError(problem)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of a sha256 over tokens, merges and special tokens: equal ids have equal fingerprints."""
        parts = [sorted(self.tokens.items()), self.merges, sorted(self.special_tokens.items()), self.eos]
        return hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode()).hexdigest()[:16]


def _check_bytes(vocabulary: Vocabulary) -> str | None:
    foreign = [token for token in vocabulary.tokens if not BYTE_OF_CHARACTER.keys() >= set(token)]
    if foreign:
        return f"token {foreign[0]!r} is not written in GPT-2's byte alphabet; only byte-level BPE is read"
    missing = [byte for character, byte in BYTE_OF_CHARACTER.items() if character not in vocabulary.tokens]
    if missing:
        return (
            f"{len(missing)} of the 256 bytes have no token (the first: {missing[0]:#04x}), so text would be lost; "
            "train it again with the whole byte alphabet"
        )
    return None


def _check_merges(vocabulary: Vocabulary) -> str | None:
    tokens = vocabulary.tokens
    for number, (left, right) in enumerate(vocabulary.merges, start=1):
        if left not in tokens or right not in tokens or left + right not in tokens:
            return f"merge {number} ({left!r} {right!r}) has a part or a result that is not in the vocabulary"
    return None


def _check_ids(vocabulary: Vocabulary) -> str | None:
    ids = [*vocabulary.tokens.values(), *vocabulary.special_tokens.values()]
    if len(set(ids)) != len(ids) or min(ids) < 0:
        return "two tokens have the same id, or an id is negative"
    if vocabulary.eos not in vocabulary.special_tokens:
        return f"there is no end-of-text token {vocabulary.eos!r}, which separates documents and ends an answer"
    return None


def read_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary in a folder, or in a file (whose partner, for the two-file forms, stands beside it).

    TokenizerError: nothing there, damaged, or not a byte-level BPE with GPT-2's splitting, named as what it is.
    """
    if not path.exists():
        raise TokenizerError(f"{path}: there is no such file or folder to read a tokenizer from")
    tokens_path, merges_path = _files(path)
    content = _read_json(tokens_path)
    merges = read_text(merges_path) if merges_path else None
    added = read_optional(tokens_path.with_name("added_tokens.json"))
    eos = _eos(read_optional(tokens_path.with_name(TOKENIZER_CONFIG)))
    try:
        return _from_tokenizer_json(content, eos) if merges is None else _from_pair(content, merges, added, eos)
    except TokenizerError as error:
        raise TokenizerError(f"{tokens_path}: {error}") from None
    except (AttributeError, KeyError, TypeError) as error:  # a list where an object belongs, and the like
        raise TokenizerError(f"{tokens_path}: is JSON, but not of a tokenizer: {error}") from error


def _files(path: Path) -> tuple[Path, Path | None]:
    """(tokenizer.json, None), or a vocabulary and its merges."""
    if path.is_file():
        return next((_pair(path.parent, pair) for pair in PAIRS if path.name in pair), (path, None))
    if (path / TOKENIZER_JSON).is_file():
        return path / TOKENIZER_JSON, None
    for pair in PAIRS:
        if any((path / name).is_file() for name in pair):
            return _pair(path, pair)
    wanted = " or ".join([TOKENIZER_JSON, *(" + ".join(pair) for pair in PAIRS)])
    there = ", ".join(sorted(entry.name for entry in path.iterdir())[:8])
    raise TokenizerError(f"{path}: no tokenizer: looked for {wanted}; found {there or 'an empty folder'}")


def _pair(folder: Path, names: tuple[str, str]) -> tuple[Path, Path]:
    for name, other in (names, names[::-1]):
        if not (folder / name).is_file():
            raise TokenizerError(f"{folder}: {other} is there, but {name}, which belongs to it, is not")
    return folder / names[0], folder / names[1]


def _from_pair(content: Any, merges: str, added: Any, eos: str) -> Vocabulary:
    tokens, special = _ids(content, "the file"), _ids(added, "added_tokens.json")
    lines = merges.replace("\r\n", "\n").split("\n")
    start = 1 if lines[0].startswith("#version") else 0
    return _vocabulary(tokens, [line for line in lines[start:] if line], special, eos)


def _from_tokenizer_json(content: Mapping[str, Any], eos: str) -> Vocabulary:
    if problem := _unsupported(content):
        raise TokenizerError(f"is {problem}; only byte-level BPE with GPT-2's splitting is read")
    model = content["model"]
    special = {token.get("content"): token.get("id") for token in content.get("added_tokens") or ()}
    return _vocabulary(_ids(model.get("vocab"), "model.vocab"), model.get("merges"), _ids(special, "added_tokens"), eos)


def _vocabulary(tokens: dict[str, int], merges: Any, special: dict[str, int], eos: str) -> Vocabulary:
    if eos in tokens:
        special[eos] = tokens[eos]
    plain = {token: number for token, number in tokens.items() if token not in special}
    return Vocabulary(plain, _merges(merges), special, eos)


def _unsupported(content: Mapping[str, Any]) -> str | None:
    """What makes this tokenizer.json give other ids than GPT-2's rules would, or None."""
    model, splitting = content.get("model"), content.get("pre_tokenizer")
    if not isinstance(model, dict):
        return "no tokenizer.json (there is no 'model' in it)"
    if (kind := model.get("type", "BPE")) != "BPE":
        return f"a {kind} tokenizer"
    if content.get("normalizer"):
        return f"a tokenizer that changes its text first (normalizer {content['normalizer'].get('type')})"
    if not isinstance(splitting, dict) or splitting.get("type") != "ByteLevel" or not splitting.get("use_regex", True):
        return f"a tokenizer that splits text otherwise (pre-tokenizer {(splitting or {}).get('type')})"
    if splitting.get("add_prefix_space"):
        return "a tokenizer that writes a space before each text (add_prefix_space)"
    options = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
    if used := [option for option in options if model.get(option)]:
        return f"a BPE with {used[0]} = {model[used[0]]!r}"
    for token in content.get("added_tokens") or ():
        if not token.get("special") or any(token.get(flag) for flag in ("lstrip", "rstrip", "single_word")):
            return f"a tokenizer whose added token {token['content']!r} is not a plain special token"
    return None


def _ids(content: Any, where: str) -> dict[str, int]:
    if not isinstance(content, dict) or not all(type(number) is int for number in content.values()):
        raise TokenizerError(f"{where} does not map tokens to ids")
    return dict(content)


def _merges(lines: Any) -> tuple[tuple[str, str], ...]:
    """Merges written as `"a b"` or as `["a", "b"]`; tokenizer.json has had both."""
    if not isinstance(lines, list):
        raise TokenizerError("there is no list of merges")
    merges = tuple(tuple(line.split(" ") if isinstance(line, str) else line) for line in lines)
    for number, merge in enumerate(merges, start=1):
        if len(merge) != 2:
            raise TokenizerError(f"merge {number} is {' '.join(map(str, merge))!r}, not two tokens")
    return merges


def _eos(config: Mapping[str, Any]) -> str:
    """The end-of-text token that a tokenizer_config.json names (as text, or as {"content": text}); GPT-2's if none."""
    eos = config.get("eos_token")
    return (eos.get("content") if isinstance(eos, dict) else eos) or EOS


def read_text(path: Path) -> str:
    """The text of a UTF-8 file; TokenizerError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: is not UTF-8 text (byte {error.start})") from error


def read_optional(path: Path) -> dict[str, Any]:
    """The JSON object in a file, empty where there is no file; TokenizerError where it holds none."""
    return _read_json(path) if path.exists() else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise TokenizerError(f"{path}: is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{path}: holds no JSON object")
    return content
