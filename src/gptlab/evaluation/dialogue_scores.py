"""How varied, how repetitive and how long answers are: what needs neither a reference nor a judge."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median

from gptlab.errors import UserError
from gptlab.evaluation.answers import Answer


def dialogue_scores(answers: Sequence[Answer]) -> dict[str, float]:
    """Scores of a set of answers. UserError where there are none.

    distinct_1, distinct_2: different n-grams over all n-grams, of all answers together (Li et al., "A
        Diversity-Promoting Objective Function for Neural Conversation Models", 2016, section 5.2). It falls
        as more text is looked at: compare models on the same questions and at about the same length.
    repetition: of each answer the share of 4-grams that stand in it before, averaged over answers (seq-rep-4 of
        Welleck et al., "Neural Text Generation with Unlikelihood Training", 2020, section 6). An answer of fewer
        than four tokens repeats nothing.
    answer_tokens, answer_tokens_median: an answer's length.
    ended: the share of answers that ended by themselves and not because the length was used up.

    Units are the tokenizer's tokens, so models are compared that have the same tokenizer.
    """
    if not answers:
        raise UserError("there are no answers to score: give at least one")
    lengths = [len(answer.ids) for answer in answers]
    return {
        "distinct_1": _distinct(answers, 1),
        "distinct_2": _distinct(answers, 2),
        "repetition": fmean(_repeated(_ngrams(answer.ids, 4)) for answer in answers),
        "answer_tokens": fmean(lengths),
        "answer_tokens_median": float(median(lengths)),
        "ended": fmean(answer.stopped == "eos" for answer in answers),
    }


def _distinct(answers: Sequence[Answer], n: int) -> float:
    ngrams = [ngram for answer in answers for ngram in _ngrams(answer.ids, n)]
    return len(set(ngrams)) / max(1, len(ngrams))


def _repeated(ngrams: list[tuple[int, ...]]) -> float:
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def _ngrams(ids: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]
