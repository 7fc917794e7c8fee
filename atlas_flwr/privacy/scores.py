# SPDX-License-Identifier: Apache-2.0
"""How much an attack has read, beside what a guess without information would."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Score",
    "commonest_share",
    "fitted",
    "of_another",
    "overlap_score",
    "rouge_l",
    "score",
]

SAMPLES = 1000
CLOSE = 0.95
Shares = NDArray[np.floating]


@dataclass(frozen=True)
class Score:
    """What one attack has read of the texts of one cut.

    Attributes
    ----------
    attack, adversary, defence, cut : str
        Which attack, by whom, against what.
    target : str
        ``"text"``, of which all is counted that the task's template does not say;
        ``"response"``, what of it is learned; ``"label"``; ``"member"``, whether a text
        was trained on; ``"task"``, of which a client's round, or fingerprint, is one
        text of one token; or ``"balance"``, of which a client is.
    texts, tokens : int
        How many were attacked. A label is one token.
    token_accuracy : float
        Share of the tokens that were read right, each in its place. Of members the AUC:
        how often a text that was trained on is told from one that was not. Of balances
        the overlap of guessed and true shares of classes, 1 less half their distance.
    exact_texts : int
        Texts of which every token was; balances of which 95 % overlap.
    baseline : float
        The share that one would get by always guessing what is commonest: of texts the
        token that known texts have most often beside their templates, of labels the
        class that most of the same client's texts are of. Of groups that are named as
        is best it is what groups that say nothing get so, if that is more.
    upper_bound : float
        What there was to read: 1 where all that is counted crossed as it was, and of
        labels, members and tasks. Under a defence, of texts: what the same attack reads
        of the same texts without it, by a head that it knows exactly. No reader should
        read more of less; one that does so by little has had luck.
    interval : tuple[float, float]
        95 % of ``token_accuracy``, by resampling texts, since tokens of one text do not
        err independently.
    rouge_l : float, optional
        Mean F1 of the longest common subsequence; ``None`` for labels.
    rouge_l_of_another : float, optional
        The same of what was read from another text of the same client: what an attack
        gets right without this text's crossing.
    names : int, optional
        Names, numbers and addresses that the texts have; ``None`` for labels.
    names_read, names_of_another : float, optional
        The share of these of which every token was read; and by what was read from
        another text. ``None`` where there are none.
    """

    attack: str
    adversary: str
    defence: str
    cut: str
    target: str
    texts: int
    tokens: int
    token_accuracy: float
    exact_texts: int
    baseline: float
    interval: tuple[float, float]
    upper_bound: float = 1.0
    rouge_l: float | None = None
    rouge_l_of_another: float | None = None
    names: int | None = None
    names_read: float | None = None
    names_of_another: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**asdict(self), "interval": list(self.interval)}


def score(
    guesses: Sequence[Sequence[int]],
    truths: Sequence[Sequence[int]],
    *,
    baseline: float,
    seed: int,
    **about: Any,
) -> Score:
    """Hold guesses against the truth.

    Parameters
    ----------
    guesses, truths : Sequence[Sequence[int]]
        Tokens of each text, equally many in both.
    baseline : float
        See :class:`Score`.
    seed : int
        Of the resampling.
    **about : Any
        ``attack``, ``adversary``, ``defence``, ``cut`` and ``target``.
    """
    pairs = list(zip(guesses, truths, strict=True))
    right = np.array([_right(g, t) for g, t in pairs])
    sizes = np.array([len(t) for t in truths])
    texts = about["target"] in ("text", "response")
    rouge = [rouge_l(g, t) for g, t in pairs] if texts else []
    return Score(
        texts=len(pairs),
        tokens=int(sizes.sum()),
        token_accuracy=float(right.sum() / sizes.sum()),
        exact_texts=int((right == sizes).sum()),
        baseline=baseline,
        interval=_interval(right, sizes, seed),
        rouge_l=float(np.mean(rouge)) if rouge else None,
        **about,
    )


def overlap_score(
    guesses: Sequence[Shares],
    truths: Sequence[Shares],
    usual: Sequence[Shares],
    *,
    seed: int,
    **about: Any,
) -> Score:
    """Hold balances of classes against the true ones.

    Parameters
    ----------
    guesses, truths : Sequence[NDArray]
        Of each client, shares of sum 1.
    usual : Sequence[NDArray]
        What one would say of each without information.
    seed : int
        Of the resampling, of clients.
    **about : Any
        As for :func:`score`; the target is theirs.
    """
    overlaps = _overlaps(guesses, truths)
    return Score(
        texts=len(overlaps),
        tokens=len(overlaps),
        token_accuracy=float(overlaps.mean()),
        exact_texts=int((overlaps >= CLOSE).sum()),
        baseline=float(_overlaps(usual, truths).mean()),
        interval=_interval(overlaps, np.ones(len(overlaps)), seed),
        target="balance",
        **about,
    )


def _overlaps(guesses: Sequence[Shares], truths: Sequence[Shares]) -> Shares:
    pairs = zip(guesses, truths, strict=True)
    return np.array([np.minimum(one, other).sum() for one, other in pairs])


def commonest_share(known: Sequence[int], truths: Sequence[Sequence[int]]) -> float:
    """Return the share of the truths' tokens that is the commonest of known ones."""
    commonest = Counter(known).most_common(1)[0][0]
    flat = [token for text in truths for token in text]
    return flat.count(commonest) / len(flat)


def fitted(
    guesses: Sequence[Sequence[int]], truths: Sequence[Sequence[int]]
) -> list[list[int]]:
    """Cut guesses, or fill them with what is no token, to the truths' lengths."""
    return [
        [*guess[: len(truth)], *[-1] * (len(truth) - len(guess))]
        for guess, truth in zip(guesses, truths, strict=True)
    ]


def of_another(owners: Sequence[str], guesses: Sequence[Any]) -> list[list[int]]:
    """Give each text what was guessed of the next of its owner, of any if alone."""
    found: list[list[int]] = []
    for i, owner in enumerate(owners):
        order = [*range(i + 1, len(owners)), *range(i)]
        same = [j for j in order if owners[j] == owner]
        found.append([int(n) for n in guesses[(same or order or [i])[0]]])
    return found


def rouge_l(guess: Sequence[int], truth: Sequence[int]) -> float:
    """Return the F1 of the longest common subsequence of two texts' tokens, 0 to 1.

    ROUGE-L (Lin, 2004) with equal weight on precision and recall.
    """
    if not guess or not truth:
        return float(len(guess) == len(truth))
    row = [0] * (len(truth) + 1)
    for token in guess:
        before = row
        row = [0]
        for place, wanted in enumerate(truth):
            longer = before[place] + 1 if token == wanted else 0
            row.append(max(longer, before[place + 1], row[place]))
    return 2 * row[-1] / (len(guess) + len(truth))


def _right(guess: Sequence[int], truth: Sequence[int]) -> int:
    return sum(int(g) == int(t) for g, t in zip(guess, truth, strict=True))


def _interval(right: Any, sizes: Any, seed: int) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(right), size=(SAMPLES, len(right)))
    shares = right[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(shares, [0.025, 0.975])
    return float(low), float(high)
