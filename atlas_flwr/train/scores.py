# SPDX-License-Identifier: Apache-2.0
"""Scores of written answers against their references, from 0 to 1.

A task's score is the mean of its single answers': a corpus of a few has no BLEU of its
own worth the name. ``rouge_score`` and ``sacrebleu`` do the arithmetic. The tokenizer
of the former drops all that is not ASCII, so words are found here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from statistics import fmean
from typing import Any

__all__ = ["SCORERS", "mean_scores"]

# Signs of Chinese and Japanese are words each, as nothing parts them.
WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")


class _Words:
    """Any language's words, as ``rouge_score`` wants them."""

    def tokenize(self, text: str) -> list[str]:
        return WORDS.findall(text.casefold())


@lru_cache(maxsize=1)
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_Words())


def _rouge_l(answer: str, reference: str) -> float:
    """F-measure of the longest common subsequence of words."""
    return float(_rouge().score(reference, answer)["rougeL"].fmeasure)


def _bleu(answer: str, reference: str) -> float:
    """Sentence BLEU, smoothed, of no longer n-grams than the answer has.

    Without either, an answer that shares no four words in a row would score 0.
    """
    import sacrebleu

    found = sacrebleu.sentence_bleu(answer, [reference], use_effective_order=True)
    return float(found.score) / 100


def _chrf(answer: str, reference: str) -> float:
    """F-measure of n-grams of characters, up to six."""
    import sacrebleu

    return float(sacrebleu.sentence_chrf(answer, [reference]).score) / 100


def _exact_match(answer: str, reference: str) -> float:
    """1 where both are the same but for white space."""
    return float(answer.split() == reference.split())


SCORERS: Mapping[str, Callable[[str, str], float]] = {
    "rouge_l": _rouge_l,
    "chrf": _chrf,
    "bleu": _bleu,
    "exact_match": _exact_match,
}


def mean_scores(
    names: Sequence[str], answers: Sequence[str], references: Sequence[str]
) -> dict[str, float]:
    """Score answers.

    Parameters
    ----------
    names : Sequence[str]
        Keys of :data:`SCORERS`.
    answers, references : Sequence[str]
        As many, at least one.

    Returns
    -------
    dict[str, float]
        The mean of each score.
    """
    pairs = list(zip(answers, references, strict=True))
    return {
        name: fmean(SCORERS[name](a.strip(), r.strip()) for a, r in pairs)
        for name in names
    }
