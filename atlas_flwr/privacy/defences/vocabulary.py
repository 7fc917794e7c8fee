# SPDX-License-Identifier: Apache-2.0
"""Which tokens are near which, by a model's public embeddings.

Shapes: V tokens of the model, E width of embeddings, K neighbours.
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


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens that a text may be made of, and their distances.

    Near is by the cosine of embeddings, less their mean.

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
