"""What a student has from its teacher: whether the two agree on what is compared, and what the teacher says of classes.

Of texts with labels they need only agree on the labels. The teacher reads the texts with its own tokenizer, once, and
its logits are kept in the cache. Of language they need the same tokens, and the teacher is asked at every step.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from gptlab.data.batch import ValuedRows
from gptlab.data.label_rows import LabelRows
from gptlab.data.labels import rows_of_texts
from gptlab.data.splitting import Split
from gptlab.device import Precision
from gptlab.errors import TokenizerError, UserError
from gptlab.evaluation.classification_scores import class_logits
from gptlab.evaluation.scores import rows_at_once
from gptlab.model.gpt import GPTShape
from gptlab.run.open import OpenModel
from gptlab.text.tokenizer import Tokenizer
from gptlab.training.row_values import kept_values, model_fingerprint

VERSION = 1
"""Of how logits are computed; those of another one are computed anew."""

SHOWN_NAMES = 5
"""An error that lists labels or tokens names at most so many."""


def taught_rows(
    teacher: OpenModel,
    rows: Mapping[Split, LabelRows],
    *,
    separator: str,
    precision: Precision,
    runs: Path = Path("runs"),
    tell: Callable[[str], None] = lambda text: None,
) -> dict[Split, ValuedRows]:
    """The rows with the teacher's logits beside them: `values["teacher"]` (rows, classes) float32, a column for each of
    the rows' labels, in their order.

    The teacher reads as much of a text as its own context holds. Its logits are kept under a fingerprint of its weights
    and shape, of what it reads, and of the precision; another process that wants the same waits. `separator`: between
    the two texts of a row, as the data have it. `tell` takes a word on how far it is.

    UserError where the teacher has other labels, TokenizerError where it has no tokenizer, ModelError where its logits
    are not finite, GptlabError where the cache cannot be written.
    """
    known, tokenizer, context = teacher.labels or (), teacher.require_tokenizer(), teacher.model.shape.context
    columns = _columns(teacher.name, known, next(iter(rows.values())).labels)
    asked = _fingerprint(teacher, precision, runs)

    def taught(split: Split, learned: LabelRows) -> ValuedRows:
        read = rows_of_texts(learned.texts, tokenizer, context=context, labels=known, separator=separator)

        def ask() -> np.ndarray:
            return class_logits(
                teacher.model, read, device=next(teacher.model.parameters()).device, precision=precision,
                micro_batch_size=rows_at_once(read),
                on_batch=lambda done, total: tell(f"{split}: {done:,}/{total:,} texts"),
            )  # fmt: skip

        logits = kept_values(
            "teachers", "logits.npy", f"{asked} {read.checksum}", (len(read), len(known)), ask,
            lambda: tell(f"{split}: another process asks the teacher"),
        )  # fmt: skip
        return ValuedRows(learned, {"teacher": torch.from_numpy(logits[:, columns])})

    return {split: taught(split, learned) for split, learned in rows.items()}


def _columns(teacher: str, known: Sequence[str], labels: Sequence[str]) -> list[int]:
    """Which of the teacher's logits, those of the labels it has `known`, belongs to each of the data's labels."""
    unknown, unused = [name for name in labels if name not in known], [name for name in known if name not in labels]
    if unknown or unused:
        differences = [
            f"{what} {_some(names)}" for what, names in (("it lacks", unknown), ("only it has", unused)) if names
        ]
        raise UserError(
            f"the teacher {teacher} knows other labels than the data: {'; '.join(differences)}. A teacher of "
            "classes is trained on the same labels as its student"
        )
    return [known.index(name) for name in labels]


def _some(names: Sequence[str]) -> str:
    more = len(names) - SHOWN_NAMES
    return ", ".join(map(repr, names[:SHOWN_NAMES])) + (f" and {more:,} more" if more > 0 else "")


def _fingerprint(teacher: OpenModel, precision: Precision, runs: Path) -> str:
    """All that the teacher's logits depend on but for the texts."""
    weights, tokenizer = model_fingerprint(teacher.folder, runs), teacher.require_tokenizer()
    shape = asdict(teacher.model.shape)
    return json.dumps([VERSION, weights, shape, teacher.labels, tokenizer.fingerprint, precision.name])


def check_language_teacher(
    teacher: OpenModel, tokenizer: Tokenizer, *, context: int, vocab_size: int | None = None
) -> None:
    """That a teacher can be asked about the next token of a student's rows, `context` tokens long.

    vocab_size: the tokens of the student's output layer, where they are known, which may be more than its tokenizer's.

    TokenizerError where the two do not read the same tokens; UserError where the rows are too long for the teacher, or
    their output layers differ in size.
    """
    its_tokenizer, shape = teacher.require_tokenizer(), teacher.model.shape
    if its_tokenizer.fingerprint != tokenizer.fingerprint:
        raise TokenizerError(
            f"the teacher {teacher.name} reads other tokens than its student: {_difference(its_tokenizer, tokenizer)}. "
            "A teacher of language reads as its student does: give the student the teacher's tokenizer"
        )
    if isinstance(shape, GPTShape) and context > shape.context:
        raise UserError(
            f"the teacher {teacher.name} reads {shape.context:,} tokens at once, the student's rows have {context:,}: "
            f"take model.context={shape.context} or less"
        )
    if vocab_size is not None and vocab_size != shape.vocab_size:
        raise UserError(
            f"the teacher {teacher.name} has an output layer of {shape.vocab_size:,} tokens, the student of "
            f"{vocab_size:,}: one of them was padded beyond their tokenizer's; start both from models of one size"
        )


def _difference(teacher: Tokenizer, student: Tokenizer) -> str:
    """In what two tokenizers differ."""
    only = [
        f"{whose} has the special tokens {_some(sorted(names))}"
        for whose, names in (
            ("only the teacher", teacher.special_tokens.keys() - student.special_tokens.keys()),
            ("only the student", student.special_tokens.keys() - teacher.special_tokens.keys()),
        )
        if names
    ]
    if teacher.vocab_size != student.vocab_size:
        only.append(f"the teacher has {teacher.vocab_size:,} tokens, the student {student.vocab_size:,}")
    return "; ".join(only) or "as many, but others"
