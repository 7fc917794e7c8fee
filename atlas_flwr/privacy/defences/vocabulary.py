# SPDX-License-Identifier: Apache-2.0
"""Which tokens are near which, by a model's public embeddings.

Shapes: V tokens of the model, E width of embeddings, K neighbours, G groups of plain
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Vocabulary"]

TOGETHER = 16  # tokens whose neighbours are looked for at once: few, for memory
ROWS = 8192
GROUP = 128  # plain tokens whose weights are added up in one
SUMMED = 64  # tokens that weights are added up for at once


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens that a text may be made of, and their distances.

    Near is by the cosine of embeddings, less their mean, and so is far: at length 1
    they are sqrt(2 - 2 cos) apart, from 0 to 2, which is a metric.

    Attributes
    ----------
    table : Tensor
        Shape (V, E).
    plain : Tensor
        Tokens that texts are made of, in ascending order: special ones are not.
    """

    table: Tensor
    plain: Tensor
    _known: dict[tuple[int, int], Tensor] = field(default_factory=dict, repr=False)
    _summed: dict[tuple[int, float], Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, table: Tensor, tokenizer: Any) -> Vocabulary:
        """Leave out what a tokenizer puts round texts, and rows that it never uses."""
        import torch

        special = set(tokenizer.all_special_ids)
        count = min(len(tokenizer), len(table))
        plain = [token for token in range(count) if token not in special]
        return cls(table.cpu(), torch.tensor(plain))

    def __len__(self) -> int:
        return len(self.plain)

    def nearest(self, tokens: Sequence[int], count: int) -> Tensor:
        """Return each token's nearest plain ones, itself among them if it is plain.

        Parameters
        ----------
        tokens : Sequence[int]
            Of the model's.
        count : int
            How many, K; at most all.

        Returns
        -------
        Tensor
            Shape (len(tokens), K), int32, each row ascending.
        """
        import torch

        fresh = sorted({t for t in tokens if (t, count) not in self._known})
        for start in range(0, len(fresh), TOGETHER):
            some = fresh[start : start + TOGETHER]
            # Always so many: the same product gives the same bits in every round.
            wanted = torch.tensor(some + some[:1] * (TOGETHER - len(some)))
            scores = self._scores(wanted)[: len(some), self.plain]
            found = self.plain[scores.topk(count, dim=1).indices].sort(dim=1).values
            for token, row in zip(some, found.int(), strict=True):
                self._known[token, count] = row
        return torch.stack([self._known[t, count] for t in tokens])

    def distances(self, tokens: Tensor, others: Tensor) -> Tensor:
        """Return how far tokens (N,) and others (M,) are apart, shape (N, M), double.

        In single precision a token would be 0.0005 from itself.
        """
        cosines = self._directions(tokens) @ self._directions(others).T
        return (2 - 2 * cosines).clamp(min=0).sqrt()

    @cached_property
    def groups(self) -> Sequence[Tensor]:
        """The plain tokens, in groups of some."""
        found: Sequence[Tensor] = self.plain.split(GROUP)
        return found

    def sums(self, tokens: Sequence[int], rate: float) -> Tensor:
        """Add up exp(-rate d) over plain tokens, by their distance d from each token.

        Parameters
        ----------
        tokens : Sequence[int]
            Of the model's.
        rate : float
            How fast weights fall.

        Returns
        -------
        Tensor
            Shape (len(tokens), G), double: the sum up to each group's end. A token's
            whole row of weights would take a hundred times the memory.
        """
        import torch

        fresh = sorted({t for t in tokens if (t, rate) not in self._summed})
        for start in range(0, len(fresh), SUMMED):
            some = fresh[start : start + SUMMED]
            found = self._group_sums(torch.tensor(some), rate).cumsum(1)
            for token, row in zip(some, found, strict=True):
                self._summed[token, rate] = row.clone()
        return torch.stack([self._summed[t, rate] for t in tokens])

    def _group_sums(self, tokens: Tensor, rate: float) -> Tensor:
        import torch

        found = []
        for many in self.plain.split(ROWS):
            weights = (-rate * self.distances(tokens, many)).exp()
            found += [part.sum(1) for part in weights.split(GROUP, dim=1)]
        return torch.stack(found, dim=1)

    def _directions(self, tokens: Tensor) -> Tensor:
        off = self.table[tokens].double() - self._mean.double()
        sizes = off.norm(dim=1, keepdim=True).clamp(min=1e-12)
        found: Tensor = off / sizes
        return found

    def _scores(self, tokens: Tensor) -> Tensor:
        """Return, by token and row of the table, what grows as they are nearer."""
        import torch

        off = self.table[tokens].float() - self._mean
        parts = [
            (off @ rows.float().T - (off @ self._mean)[:, None])
            for rows in self.table.split(ROWS)
        ]
        return torch.cat(parts, dim=1) / self._sizes

    @cached_property
    def _mean(self) -> Tensor:
        import torch

        sums = [rows.float().sum(0) for rows in self.table.split(ROWS)]
        return torch.stack(sums).sum(0) / len(self.table)

    @cached_property
    def _sizes(self) -> Tensor:
        import torch

        parts = [(r.float() - self._mean).norm(dim=1) for r in self.table.split(ROWS)]
        return torch.cat(parts).clamp(min=1e-12)
