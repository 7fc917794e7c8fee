# SPDX-License-Identifier: Apache-2.0
"""Tokens are answered at random, mostly by near ones, before the head reads a text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from atlas_flwr.privacy.defences.base import Defence
from atlas_flwr.privacy.defences.drawing import DRAWN, drawn_places

if TYPE_CHECKING:
    from torch import Tensor

    from atlas_flwr.privacy.defences.vocabulary import Vocabulary

__all__ = ["RandomTokens"]

STRAYING = 0.1
MOST = 1024


@dataclass(frozen=True)
class RandomTokens(Defence):
    """Each token is answered by one of its K nearest or, seldom, by any at all.

    Of V tokens, a token's K nearest by their public embeddings, itself among them, are
    answered alike often, and so are all others, e^eps times as seldom. **Proof.** For
    any tokens x and x' and any answer y, P(y | x) is p e^eps or p, with p = 1 / (K
    e^eps + V - K) whatever x is, since each has K neighbours; and so is P(y | x').
    Hence P(y | x) / P(y | x') <= e^eps, which is local differential privacy of a token
    among *all* tokens. Draws of a text's places are independent: two texts of n tokens
    that differ in m are told apart by m eps at most. What is told is how many there
    are, template and label, and which whole texts are the same, since these are
    answered alike. All that a client computes of a text comes after its answers
    (post-processing).

    K is what leaves one answer in ten to any token at all (1024 at most), so that a
    smaller epsilon answers by more distant ones: of 49,152 tokens by one of 148 at
    epsilon 8, of 20 at 10, of 3 at 12. After CusText (arXiv 2210.07024), whose answers
    are a group's own, and so tell the group.

    A place is answered once for each text, by a secret that never leaves the client:
    alike in all rounds of a run, which therefore cost together what one costs. Texts
    that are trained on and that are scored are answered alike.
    """

    name: ClassVar[str] = "tokens"

    @property
    def needs_classes(self) -> bool:
        """It does: what is to be written is not replaced."""
        return True

    @property
    def replaces_tokens(self) -> bool:
        """It does."""
        return True

    def near(self, size: int) -> int:
        """Return K, of so many tokens."""
        stray = STRAYING / (1 - STRAYING)
        wanted = size / stray * math.exp(-self.strength)
        return max(1, min(round(wanted), MOST, size))

    def kept(self, size: int) -> float:
        """Return how probably an answer is drawn from the near ones, else from all."""
        odds = self.near(size) * math.expm1(min(self.strength, 700.0))
        return odds / (odds + size)

    def tokens(
        self, texts: Sequence[Sequence[int]], vocabulary: Vocabulary, secret: bytes
    ) -> list[list[int]]:
        """Answer each place of each text."""
        every = sorted({token for text in texts for token in text})
        if not every:
            return [list(text) for text in texts]
        rows = vocabulary.nearest(every, self.near(len(vocabulary)))
        near = dict(zip(every, rows.tolist(), strict=True))
        plain, kept = vocabulary.plain.tolist(), self.kept(len(vocabulary))
        found = []
        for text in texts:
            chosen = []
            places = drawn_places(text, secret)
            for token, (first, second) in zip(text, places, strict=True):
                among = near[token] if first < kept * DRAWN else plain
                chosen.append(among[second % len(among)])
            found.append(chosen)
        return found

    def token_odds(self, read: int, tokens: Tensor, vocabulary: Vocabulary) -> Tensor:
        """Return log P(read | token) of tokens (N,)."""
        size = len(vocabulary)
        count, kept = self.near(size), self.kept(size)
        rows = vocabulary.nearest(tokens.tolist(), count)
        is_near = (rows == read).any(1).double()
        return (is_near * kept / count + (1 - kept) / size).log()
