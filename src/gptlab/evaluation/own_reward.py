"""How much a reward model of the lab's own likes answers: each is read as it was in training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gptlab.data.label_rows import LabelRows
from gptlab.data.preference_encoding import encode_answers
from gptlab.device import PrecisionName, pick_precision
from gptlab.errors import TokenizerError, UserError
from gptlab.evaluation.classification_scores import class_logits
from gptlab.run.open import OpenModel, require_task
from gptlab.text.dialogue import Message


class LabReward:
    """A GPT or an RNN with one output, as a `RewardModel`: its score of an answer is its logit at the answer's last
    token.

    A conversation is written by the model's own template. Without one, as with a base model (`answers.prompt_ids`), its
    turns are the lines of a text.

    truncated: how many conversations the last `score` cut to the model's context. The prompt loses its beginning, turn
               by turn and then within the last; an answer that alone is too long its end. Lines are cut from the left.

    UserError where the model is no reward model; TokenizerError where it has no tokenizer, or a template that cannot be
    used.
    """

    def __init__(self, opened: OpenModel, *, precision: PrecisionName = "float32", batch_tokens: int = 8192) -> None:
        require_task("reward", opened.name, opened.labels)
        if opened.template_fault:
            raise TokenizerError(f"{opened.name}: {opened.template_fault}")
        self.truncated = 0
        self._opened, self._tokenizer = opened, opened.require_tokenizer()
        self._device = next(opened.model.parameters()).device
        self._precision, self._batch_tokens = pick_precision(precision, self._device), batch_tokens

    def score(self, conversations: Sequence[Sequence[Message]]) -> np.ndarray:
        """See `RewardModel`. In float32 a score does not depend on the conversations beside it (to rounding).

        UserError where a conversation does not end with the answer to a user's turn, DataError where the template
        refuses one; ModelError where a score is not finite.
        """
        encoded = [self._encode(conversation) for conversation in conversations]
        self.truncated = sum(cut for _, cut in encoded)
        scores = np.zeros(len(encoded))
        if not encoded:
            return scores
        by_length = sorted(range(len(encoded)), key=lambda n: -len(encoded[n][0]))  # the least padding
        rows = LabelRows(
            [(conversations[n][-1].content,) for n in by_length], [encoded[n][0] for n in by_length],
            np.zeros(len(encoded)), self._opened.labels or (),
        )  # fmt: skip
        scores[by_length] = class_logits(
            self._opened.model, rows, device=self._device, precision=self._precision,
            micro_batch_size=max(1, self._batch_tokens // rows.context),
        )[:, 0]  # fmt: skip
        return scores

    def _encode(self, conversation: Sequence[Message]) -> tuple[np.ndarray, bool]:
        """The ids (n,) that are read of it, and whether it was cut."""
        if [turn.role for turn in conversation[-2:]] != ["user", "assistant"]:
            raise UserError("a conversation to be scored ends with the assistant's turn, its answer to the user's")
        *prompt, answer = conversation
        context, template = self._opened.model.shape.context, self._opened.template
        if template is None:
            lines = "".join(f"{turn.content}\n" for turn in prompt)
            ids = np.array(self._tokenizer.encode(lines + answer.content))
            return ids[-context:], len(ids) > context
        encoded = encode_answers(prompt, [answer.content], template, self._tokenizer, context)
        return encoded.ids[0], encoded.prompt_cut or encoded.answers_cut > 0
