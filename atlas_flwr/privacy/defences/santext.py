# SPDX-License-Identifier: Apache-2.0
"""Tokens are answered at random by any other, the more seldom the more distant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from atlas_flwr.privacy.defences.base import Defence
from atlas_flwr.privacy.defences.drawing import DRAWN, drawn_places

if TYPE_CHECKING:
    from torch import Tensor

    from atlas_flwr.privacy.defences.vocabulary import Vocabulary

__all__ = ["SanText"]


@dataclass(frozen=True)
class SanText(Defence):
    r"""The exponential mechanism by distance of public embeddings.

    A token x is answered by y with probability

    .. math:: P(y | x) = e^{-\epsilon d(x, y) / 2} / Z(x), \quad
       Z(x) = \sum_y e^{-\epsilon d(x, y) / 2}

    over all plain tokens y (SanText, arXiv 2106.01221). **Proof.** d is a metric, so
    d(x', y) <= d(x, y) + d(x, x'), and the numerators of x and x' are within a factor
    of e^(eps d(x, x') / 2); as this holds for each y, so are Z(x) and Z(x'). Hence P(y
    | x) / P(y | x') <= e^(eps d(x, x')), which is d_X-privacy (metric differential
    privacy).

    So epsilon is of *one unit of distance*: a token is hidden among near ones, and less
    among others. Distances are from 0 to 2, and of unrelated tokens some 1.42; so of
    any two tokens P(y | x) / P(y | x') <= e^(2 eps), and of unrelated ones it is near
    e^(0.7 eps), where Z differs little. There distances are of GloVe's word vectors as
    they are; here of the model's embeddings about their mean and at length 1, so that
    epsilon means the same for all models: SmolLM2's are three times as long as
    MiniLM's.

    A place is answered once for each text, as :class:`RandomTokens` answers it.
    """

    name: ClassVar[str] = "santext"

    @property
    def needs_classes(self) -> bool:
        """It does: what is to be written is not replaced."""
        return True

    @property
    def replaces_tokens(self) -> bool:
        """It does."""
        return True

    @property
    def rate(self) -> float:
        """How fast an answer's weight falls with its distance."""
        return self.strength / 2

    def tokens(
        self, texts: Sequence[Sequence[int]], vocabulary: Vocabulary, secret: bytes
    ) -> list[list[int]]:
        """Answer each place of each text."""
        every = sorted({token for text in texts for token in text})
        if not every:
            return [list(text) for text in texts]
        sums = dict(zip(every, vocabulary.sums(every, self.rate), strict=True))
        return [
            [
                self._answer(token, sums[token], first / DRAWN, vocabulary)
                for token, (first, _) in zip(
                    text, drawn_places(text, secret), strict=True
                )
            ]
            for text in texts
        ]

    def token_odds(self, read: int, tokens: Tensor, vocabulary: Vocabulary) -> Tensor:
        """Return log P(read | token) of tokens (N,)."""
        away = vocabulary.distances(tokens, tokens.new_tensor([read]))[:, 0]
        whole = vocabulary.sums(tokens.tolist(), self.rate)[:, -1]
        return -self.rate * away - whole.log()

    def _answer(
        self, token: int, sums: Tensor, share: float, vocabulary: Vocabulary
    ) -> int:
        """Return the answer below which this share of all weights lies."""
        import torch

        wanted = share * sums[-1]
        group = min(int(torch.searchsorted(sums, wanted, right=True)), len(sums) - 1)
        among = vocabulary.groups[group]
        away = vocabulary.distances(among.new_tensor([token]), among)[0]
        below = (-self.rate * away).exp().cumsum(0)
        if group:
            wanted = wanted - sums[group - 1]
        place = int(torch.searchsorted(below, wanted, right=True))
        # Sums are rounded: what is just above them is the last one's.
        return int(among[min(place, len(among) - 1)])
