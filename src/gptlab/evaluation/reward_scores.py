"""How much a reward model likes answers: one that the lab trained, any of Hugging Face's with one output, or another
with the same method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from gptlab.device import pick_device
from gptlab.errors import ModelError, UserError
from gptlab.evaluation.own_reward import LabReward
from gptlab.hub import download_files, is_hub_name
from gptlab.model.adapter import is_adapter
from gptlab.model.classifier import REWARD
from gptlab.model.folder import read_labels
from gptlab.model.rnn_files import is_rnn
from gptlab.run.checkpoint import MANIFEST
from gptlab.run.open import find_model, open_model
from gptlab.text.dialogue import Message

DEFAULT_REWARD = "OpenAssistant/reward-model-deberta-v3-large-v2"
"""A DeBERTa-v3 large, trained on human preferences (WebGPT, summaries, HH-RLHF); 1.7 GB in float32."""

SAFE_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
PICKLED_FILES = ("pytorch_model*.bin",)
"""What is fetched from the hub; the second only where a repository has no safetensors."""


class RewardModel(Protocol):
    """What scores answers: the higher, the better it likes the last turn of a conversation.

    truncated: how many conversations the last `score` cut, because they were longer than the model reads
    """

    @property
    def truncated(self) -> int: ...

    def score(self, conversations: Sequence[Sequence[Message]]) -> np.ndarray:
        """A score (n,) float64 for each conversation, which ends with the assistant's turn to be scored."""
        ...


def open_reward(name: str | Path, device: torch.device | str = "auto", runs: Path = Path("runs")) -> RewardModel:
    """The reward model of this name: a folder, a run under `runs`, a name on the hub; "default" is DEFAULT_REWARD.

    One that the lab trained (a checkpoint, or what was exported of one), any RNN and any adapter is a `LabReward`. All
    others are read by transformers (`HuggingFaceReward`), a GPT-2 too: where in a conversation a reward stands is its
    trainer's choice, and others made that one (TRL: at the last token that is no padding, of all that the template
    writes).

    Errors as `find_model`, and those of the two; UserError where a model of the lab's is no reward model.
    """
    name = str(name)
    if name != "default" and _is_the_labs(find_model(name, runs=runs, kind_only=True)):
        return LabReward(open_model(name, device=device, runs=runs, task="reward"))
    return HuggingFaceReward(name, device)


def _is_the_labs(folder: Path) -> bool:
    if is_adapter(folder) or is_rnn(folder) or (folder / MANIFEST).is_file():
        return True
    return read_labels(folder) == REWARD


class HuggingFaceReward:
    """Any `AutoModelForSequenceClassification` with one output, from a folder or the hub, in float32; "default" is
    DEFAULT_REWARD.

    A model whose tokenizer has a chat template reads the conversation as that renders it. Another reads a pair of
    texts, as the default model does: what came before, and the answer. What came before is the user's words alone, or,
    of several turns, as HH-RLHF writes a dialogue.

    truncated: how many conversations the last `score` cut from the left, because they were longer than the model
               reads. Of a pair the answer stays whole where it can.

    Raises UserError where transformers is missing or the model cannot be found; ModelError where it cannot be read, is
    no reward model, or gives scores that are not finite.
    """

    def __init__(
        self,
        name_or_path: str | Path = "default",
        device: torch.device | str = "auto",
        batch_size: int = 8,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size = {batch_size}: must be at least 1")
        self.device = device if isinstance(device, torch.device) else pick_device(device)
        self.truncated = 0
        self._model, self._tokenizer = _load(DEFAULT_REWARD if name_or_path == "default" else str(name_or_path))
        self._model.to(self.device)
        self._longest = _longest(self._model.config, self._tokenizer)
        # Some models look for the last token that is no padding; they must know the padding that they are given.
        # Naming EOS as padding would make them overlook the EOS that ends an answer.
        padding = self._tokenizer.pad_token_id
        known = padding is not None and padding == getattr(self._model.config, "pad_token_id", None)
        self._batch_size = batch_size if known else 1

    @torch.inference_mode()
    def score(self, conversations: Sequence[Sequence[Message]]) -> np.ndarray:
        """See `RewardModel`. Scores do not depend on the batch (to rounding)."""
        self.truncated = 0
        with _quiet():
            rows = [self._encode(conversation) for conversation in conversations]
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]["input_ids"]))  # the least padding
        scores = np.zeros(len(rows))
        for start in range(0, len(rows), self._batch_size):
            batch = order[start : start + self._batch_size]
            scores[batch] = self._forward([rows[row] for row in batch])
        if not np.isfinite(scores).all():
            raise ModelError("the reward model's scores are not finite: its weights are damaged; use another")
        return scores

    def _forward(self, rows: list[dict[str, list[int]]]) -> np.ndarray:
        if len(rows) == 1:
            inputs = {key: torch.tensor([ids]) for key, ids in rows[0].items()}
        else:
            inputs = self._tokenizer.pad(rows, padding_side="right", return_tensors="pt")
        logits = self._model(**{key: ids.to(self.device) for key, ids in inputs.items()}).logits  # (rows, 1)
        return logits[:, 0].cpu().numpy()

    def _encode(self, conversation: Sequence[Message]) -> dict[str, list[int]]:
        if not conversation or conversation[-1].role != "assistant":
            raise UserError("a conversation to be scored ends with the assistant's turn")
        if self._tokenizer.chat_template is None:
            return self._encode_pair(_history(conversation[:-1]), conversation[-1].content)
        turns = [{"role": turn.role, "content": turn.content} for turn in conversation]
        row = dict(self._tokenizer.apply_chat_template(turns, return_dict=True))
        self.truncated += len(row["input_ids"]) > self._longest
        return {key: ids[-self._longest :] for key, ids in row.items()}

    def _encode_pair(self, history: str, answer: str) -> dict[str, list[int]]:
        """Cut where it must be: the history, or, where the answer alone is too long, whichever is longer."""
        row = dict(self._tokenizer(history, answer))
        if len(row["input_ids"]) <= self._longest:
            return row
        self.truncated += 1
        alone = len(self._tokenizer("", answer)["input_ids"])
        cut = "only_first" if alone < self._longest else "longest_first"
        return dict(self._tokenizer(history, answer, truncation=cut, max_length=self._longest))


def reward_scores(scores: np.ndarray, prompts: Sequence[str], answers: Sequence[str]) -> dict[str, Any]:
    """`scores` (n,), each of an answer to a prompt, summed up.

    {"mean", "low", "high"}: the mean and its 95 % interval (see `mean_interval`) over the prompts;
    {"best", "worst"}: the answers of the highest and the lowest score, each {"prompt", "answer", "score"}.

    UserError where there are none, or not as many of one as of another.
    """
    if not len(scores) == len(prompts) == len(answers) != 0:
        raise UserError(f"{len(scores)} scores of {len(answers)} answers to {len(prompts)} prompts: wanted one of each")
    low, high = mean_interval(scores)

    def shown(row: int) -> dict[str, Any]:
        return {"prompt": prompts[row], "answer": answers[row], "score": float(scores[row])}

    return {
        "mean": float(np.mean(scores)),
        "low": low,
        "high": high,
        "best": shown(int(np.argmax(scores))),
        "worst": shown(int(np.argmin(scores))),
    }


def mean_interval(values: np.ndarray, *, level: float = 0.95, resamples: int = 10_000) -> tuple[float, float]:
    """The interval of the mean of `values` (n,) by the percentile bootstrap (Efron and Tibshirani, An Introduction to
    the Bootstrap, 1993, chapter 13). The resamples are the same each time. Of one value it is that value."""
    rows = np.random.default_rng(0).integers(len(values), size=(resamples, len(values)))
    low, high = np.quantile(values[rows].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _history(turns: Sequence[Message]) -> str:
    """What came before an answer, as text."""
    if [turn.role for turn in turns] == ["user"]:
        return turns[0].content
    speaker = {"user": "Human: ", "assistant": "Assistant: ", "system": ""}
    return "\n\n".join(speaker[turn.role] + turn.content for turn in turns)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars and warnings: what they say of a model is an error here."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _load(name: str) -> tuple[Any, Any]:
    """The model, in eval mode, and its tokenizer, which cuts from the left."""
    try:
        from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
    except ImportError as error:
        raise UserError("a reward model in Hugging Face's format needs: pip install 'gptlab[reward]'") from error
    folder = _folder(name)
    try:
        with _quiet():
            outputs = AutoConfig.from_pretrained(folder).num_labels
            if outputs != 1:
                raise ModelError(f"{name}: has {outputs} outputs; a reward model has one (num_labels = 1)")
            model, report = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
            tokenizer = AutoTokenizer.from_pretrained(folder, truncation_side="left")
    except ModelError:
        raise
    except Exception as error:  # transformers raises whatever the file in question made it stumble over
        raise ModelError(f"{name}: cannot be read as a reward model: {error}") from error
    _refuse_missing(name, report)
    return model.float().eval(), tokenizer


def _folder(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if not is_hub_name(name):
        raise UserError(f"{name}: there is no such folder, and it is no name on the hub (OWNER/NAME)")
    folder = download_files(name, SAFE_FILES)
    return folder if any(folder.glob("*.safetensors")) else download_files(name, (*SAFE_FILES, *PICKLED_FILES))


def _refuse_missing(name: str, report: Mapping[str, Any]) -> None:
    """transformers fills weights that a file lacks with random numbers, and their scores would be noise."""
    if missing := sorted(report["missing_keys"]):
        raise ModelError(f"{name}: is no reward model: {len(missing)} of its weights are not there ({missing[0]}, …)")


def _longest(config: Any, tokenizer: Any) -> int:
    """How many tokens the model reads; a tokenizer that does not know says 1e30."""
    return int(min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or 1 << 30))
