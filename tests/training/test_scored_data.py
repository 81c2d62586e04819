"""What is scored: KIND:PATH or a recipe, and where a table's columns are to be said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gptlab.errors import DataError, UserError
from gptlab.model.classifier import GPTClassifier
from gptlab.model.folder import save_model
from gptlab.model.gpt import GPTShape
from gptlab.text.tokenizer import Tokenizer
from gptlab.training.evaluate import evaluate_model
from gptlab.training.scored_data import kind_and_place


@pytest.mark.parametrize(
    ("on", "found"),
    [
        (None, None),
        ("cola-lora", None),
        ("corpus:book.txt", ("corpus", "book.txt")),
        ("preferences:C:\\pairs.jsonl", ("preferences", "C:\\pairs.jsonl")),
        ("blimp", ("blimp", "")),
        ("hellaswag:OWNER/NAME", ("hellaswag", "OWNER/NAME")),
        ("C:\\recipes\\mine.toml", None),
        ("my/recipes/at:night.toml", None),
        ("labels", None),  # a recipe of that name, say
        ("lambada:there.toml", None),  # a file is what it is called
    ],
)
def test_a_kind_is_told_from_a_recipe(
    on: str | None, found: tuple[str, str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lambada:there.toml").touch()
    assert kind_and_place(on) == found


def test_a_kind_that_there_is_not_is_refused() -> None:
    with pytest.raises(UserError, match="there is no kind 'lables' \\(did you mean 'labels'\\?\\); wanted corpus, "):
        kind_and_place("lables:texts.csv")


def test_columns_that_have_no_name_are_said_in_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line has no place for them, and the recipe that the error describes works."""
    monkeypatch.chdir(tmp_path)
    texts = [(f"A film, number {n}{'!' * (n % 3)}", ("good", "bad")[n % 3 == 0]) for n in range(30)]
    Path("texts.tsv").write_text("".join(f"{label}\t{text}\n" for text, label in texts))
    tokenizer = Tokenizer.train([text for text, _ in texts], 280)
    shape = GPTShape(tokenizer.vocab_size, context=32, n_layer=1, n_head=2, n_embd=16)
    torch.manual_seed(0)
    save_model(GPTClassifier(shape, ("good", "bad")), Path("classifier"), eos_id=tokenizer.eos_id)
    tokenizer.save(Path("classifier"))
    with pytest.raises(DataError, match=r"header = false.* named in a recipe .* --on RECIPE"):
        evaluate_model("classifier", on="labels:texts.tsv")
    columns = 'path = "texts.tsv"\nheader = false\ntext = 2\nlabel = 1\n'
    Path("texts.toml").write_text(
        'start = "classifier"\ntraining.max_steps = 1\n[data]\nkind = "labels"\nvalidation = {share = 0.4}\n'
        f"[[data.sources]]\n{columns}"
    )
    assert evaluate_model("classifier", on="texts.toml").metrics["texts"] > 0
    for file, words in {"missing.csv": "there is no such file", "texts.txt": "not read from .txt"}.items():
        Path("texts.txt").touch()
        with pytest.raises(DataError, match=words) as caught:
            evaluate_model("classifier", on=f"labels:{file}")
        assert "recipe" not in str(caught.value)
