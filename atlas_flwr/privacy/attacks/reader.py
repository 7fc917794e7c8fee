# SPDX-License-Identifier: Apache-2.0
"""Readers: from hidden states to scores of tokens, fitted on known texts.

Shapes: N positions, D width at the cut, E width of embeddings, V tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from atlas_flwr.privacy.knowledge import KnownText

__all__ = ["LinearReader", "Reader"]

RIDGE = 1e-3  # of a position's squared norm, which standardising makes the width


class Reader(Protocol):
    """Scores tokens by hidden states of one text."""

    def scores(self, hidden: Tensor) -> Tensor:
        """Return scores (N, V) of tokens at the positions of ``hidden`` (N, D)."""
        ...


class LinearReader:
    """A ridge regression from hidden states to token embeddings.

    Parameters
    ----------
    known : Sequence[KnownText]
        To fit on.
    table : Tensor
        Shape (V, E).
    first : bool
        Whether texts' first positions are like the others.
    """

    def __init__(
        self, known: Sequence[KnownText], table: Tensor, *, first: bool
    ) -> None:
        start = 0 if first else 1
        hidden = torch.cat([text.hidden[start:] for text in known])
        wanted = table[torch.cat([text.ids[start:] for text in known])]
        self.mean = hidden.mean(0)
        self.spread = hidden.std(0).clamp(min=1e-6)
        self.middle = wanted.mean(0)
        x = self.standard(hidden).double()
        gram = x.T @ x + RIDGE * len(x) * torch.eye(x.shape[1]).double()
        self.weight = torch.linalg.solve(gram, x.T @ (wanted - self.middle).double())
        self.weight = self.weight.float()
        self.table, self.sizes = table, table.square().sum(1) / 2

    def standard(self, hidden: Tensor) -> Tensor:
        """Return hidden states of mean 0 and spread 1 in each number."""
        return (hidden - self.mean) / self.spread

    def embeddings(self, hidden: Tensor) -> Tensor:
        """Return guessed embeddings, shape (N, E)."""
        found: Tensor = self.standard(hidden) @ self.weight + self.middle
        return found

    def scores(self, hidden: Tensor) -> Tensor:
        """Return how near each token's embedding is to the guessed one."""
        near: Tensor = self.embeddings(hidden) @ self.table.T - self.sizes
        return near
