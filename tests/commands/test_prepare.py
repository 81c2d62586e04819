"""`gptlab prepare`: what is printed of rows that are kept in no folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptlab.cli import main
from gptlab.text.tokenizer import Tokenizer

RECIPE = """name = "reviews"
[model]
kind = "lstm"
n_layer = 1
n_embd = 8
context = 16
[tokenizer]
from = "tokenizer"
[data]
kind = "labels"
sources = [{ path = "reviews.csv" }]
validation = { share = 0.5 }
[training]
epochs = 1
"""


def test_texts_with_labels_lie_in_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Tokenizer.train(["a good film, a bad film"] * 3, 280).save(Path("tokenizer"))
    Path("reviews.toml").write_text(RECIPE)
    rows = [f"film number {n},{('good', 'bad')[n % 2]}" for n in range(40)]
    Path("reviews.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    with pytest.raises(SystemExit) as exit:
        main(["prepare", "reviews.toml"])
    out = capsys.readouterr().out
    assert not exit.value.code
    assert "one row" in out
    assert "None" not in out
