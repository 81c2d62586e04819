"""DPO's reference: the model that a run starts from, as it was. What it says of every pair is computed once and kept;
then it leaves memory, so that DPO takes no more than fine-tuning does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from gptlab.data.batch import ValuedRows
from gptlab.data.preference_rows import PreferenceRows
from gptlab.data.splitting import Split
from gptlab.device import Precision
from gptlab.errors import GptlabError, RunError, TrainingStopped
from gptlab.evaluation.preference_scores import answer_log_probs, pairs_at_once
from gptlab.hub import cache_folder
from gptlab.model.folder import Model
from gptlab.objectives.dpo import DPOObjective
from gptlab.run.open import find_model
from gptlab.training.other_model import OtherModel
from gptlab.training.recipe import Recipe
from gptlab.training.row_values import kept_values, model_fingerprint
from gptlab.training.start import Vocabulary, find_start

KEPT = "references"
"""The cache's folder for them."""

VERSION = 1
"""Of how log-probabilities are computed; those of another one are computed anew."""

AGREES = {torch.float32: 1e-2, torch.bfloat16: 0.3, torch.float16: 0.1}
"""How far a policy that has learned nothing may be from its reference, since the two were computed in other batches, in
this precision: nats of how much likelier it finds the chosen answer, in the mean over validation; a token a tenth."""

ROUNDING = 1e-5
"""Of a loss in float32, as a share of it."""


def load_reference(recipe: Recipe, reference: OtherModel, vocabulary: Vocabulary, runs: Path) -> Model:
    """The start in the shape in which it is tuned, its adapter merged, on the CPU, in eval mode.

    RunError where its weights are nowhere any more; errors as `find_start`.
    """
    assert recipe.start is not None
    for name in (str(reference.folder), recipe.start):
        try:
            folder = find_model(name, runs=runs)
            there = model_fingerprint(folder, runs)
        except GptlabError:  # it, or the base of its adapter, has been moved, removed or damaged
            continue
        if there == reference.fingerprint:
            start, tuned = find_start(recipe.model_copy(update={"start": str(folder)}), None, runs)
            assert start is not None
            return start.load(tuned, vocabulary, runs).eval()
    raise RunError(
        f"the reference {reference.name} is not there with the weights that the run began with, those that "
        f"{reference.folder} had, and what it said of the pairs is not in the cache any more. Bring one of the two "
        "back; or --fresh starts over, --name NAME names another run"
    )


def reference_rows(
    load: Callable[[], Model],
    known_as: str,
    rows: Mapping[Split, PreferenceRows],
    *,
    device: torch.device,
    precision: Precision,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[Split, ValuedRows]:
    """The rows with the reference's log-probabilities of both answers beside them: `values["reference"]` (pairs, 2)
    float32.

    `load` makes the reference; it is called where the cache lacks something, once. `known_as`: all that its answers
    depend on but for the rows and the precision. Errors as `load`'s, and `kept_values`'.
    """
    loaded: list[Model] = []

    def of_split(split: Split, pairs: PreferenceRows) -> ValuedRows:
        def ask() -> np.ndarray:
            if not loaded:
                loaded.append(load().to(device))
            return answer_log_probs(
                loaded[0], pairs, device=device, precision=precision, micro_batch_size=pairs_at_once(pairs),
                on_batch=lambda done, total: tell(f"{split}: {done:,}/{total:,} pairs"),
            )  # fmt: skip

        found = kept_values(
            KEPT, "log_probs.npy", json.dumps([VERSION, known_as, pairs.checksum, precision.name]),
            (len(pairs), 2), ask, lambda: tell(f"{split}: another process asks the reference"),
        )  # fmt: skip
        return ValuedRows(pairs, {"reference": torch.from_numpy(found)})

    return {split: of_split(split, pairs) for split, pairs in rows.items()}


def reference_words(reference: OtherModel, recipe: Recipe, vocabulary: Vocabulary) -> str:
    """All that the reference's answers depend on but for what it is asked: its weights, and what was made of them."""
    return json.dumps([
        reference.fingerprint, recipe.model.keep_layers, vocabulary.size, vocabulary.first_added
    ])  # fmt: skip


def check_start(objective: DPOObjective, scores: Mapping[str, float], precision: Precision) -> None:
    """That a policy which has learned nothing is the reference: its loss on validation is ln 2 (of IPO 1/4β²), and its
    margins are 0. TrainingStopped where they are not, for then what follows would be another objective."""
    wanted = objective.loss_at_reference
    if wanted is None:
        return
    nats, beta = AGREES[precision.dtype], objective.settings.beta
    # By how much they change the loss there: a nat of an answer by beta at most; of ipo, a nat a token by 1/beta.
    change = nats / (10 * beta) if objective.settings.loss == "ipo" else nats * beta
    allowed = max(change, ROUNDING * max(1, wanted))
    agrees = abs(scores["loss"] - wanted) <= allowed and abs(scores["margin"]) <= nats * beta
    if not agrees:  # also where a score is no number
        raise TrainingStopped(
            f"before the first step the policy is not the reference: the loss on validation is {scores['loss']:.4f} "
            f"and not {wanted:.4f}, the mean margin {scores['margin']:.4f} and not 0. The log-probabilities kept for "
            f"the reference are another model's: remove {cache_folder() / KEPT} and start over with --fresh"
        )
