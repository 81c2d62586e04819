"""The classes of texts, with their probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gptlab.data.label_rows import LabelRows, encode_texts, rows_of_texts
from gptlab.data.labels import LabelSettings
from gptlab.device import PrecisionName, pick_precision
from gptlab.evaluation.classification_scores import class_logits
from gptlab.evaluation.predictions import probabilities
from gptlab.evaluation.scores import rows_at_once
from gptlab.run.open import OpenModel, require_task
from gptlab.run.run import RECIPE
from gptlab.settings import read_toml
from gptlab.text.tokenizer import Tokenizer

Text = str | tuple[str, str]


@dataclass(frozen=True)
class Classification:
    """What a classifier says of a text.

    label:         the most probable class
    probabilities: label → its probability
    cut:           whether the text is longer than the model's context, so that its end was not read
    """

    text: Text
    label: str
    probabilities: dict[str, float]
    cut: bool


def classify(
    model: OpenModel,
    texts: Sequence[Text],
    *,
    separator: str | None = None,
    precision: PrecisionName = "float32",
    on_batch: Callable[[int, int], None] | None = None,
) -> list[Classification]:
    """The class of each text, or of each pair, whose two are read with `separator` between them (`separator_of`).

    A text longer than the model's context loses its end, as in training. In float32 a text's probabilities do not
    depend on the texts beside it (to rounding). `on_batch(done, total)` is told how many texts have been read.

    UserError where the model is no classifier, also where it is a reward model; DataError where there are no texts, or
    one is empty, with its number.
    """
    require_task("classification", model.name, model.labels)
    assert model.labels is not None
    parts = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
    tokenizer, context = model.require_tokenizer(), model.model.shape.context
    separator = separator_of(model) if separator is None else separator
    rows = rows_of_texts(parts, tokenizer, context=context, labels=model.labels, separator=separator)
    at = next(model.model.parameters()).device
    logits = class_logits(
        model.model, rows, device=at, precision=pick_precision(precision, at),
        micro_batch_size=rows_at_once(rows), on_batch=on_batch,
    )  # fmt: skip
    cut = _cut(rows, tokenizer, context, separator)
    return [
        Classification(
            text, model.labels[probs.argmax()], dict(zip(model.labels, probs.tolist(), strict=True)), row in cut
        )
        for row, (text, probs) in enumerate(zip(texts, probabilities(logits), strict=True))
    ]


def separator_of(model: OpenModel) -> str:
    """What stands between the two texts of a pair: as in the run in which the model lies, else a recipe's default."""
    recipe = model.folder.resolve().parent.parent / RECIPE
    data = read_toml(recipe).get("data", {}) if recipe.is_file() else {}
    return str(data.get("separator", LabelSettings.model_fields["separator"].default))


def _cut(rows: LabelRows, tokenizer: Tokenizer, context: int, separator: str) -> set[int]:
    """Rows whose texts are longer than `context`. Only a full one can be, so only these are encoded once more."""
    full = np.flatnonzero(np.diff(rows.starts) == context).tolist()
    whole = encode_texts([rows.texts[row] for row in full], tokenizer, separator)
    return {row for row, ids in zip(full, whole, strict=True) if len(ids) > context}
