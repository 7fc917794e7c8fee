# SPDX-License-Identifier: Apache-2.0
"""Try whether rows of several sessions can share a pass through a model's blocks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from atlas_flwr.trunk.engine.adapters import SessionLinear

if TYPE_CHECKING:
    from atlas_flwr.trunk.engine.base import SharedBase

__all__ = ["alike", "last_block", "rows_join", "run_watched"]

LONG, SHORT = 3, 2  # positions of the two texts that are tried


@dataclass
class _Watching:
    """Adapters that add nothing, and see what each layer is given."""

    rows: int
    sees_all: bool = field(default=True, init=False)

    def applied(self, layer: SessionLinear, x: Tensor) -> Tensor:
        """See whether all rows come here; add nothing."""
        self.sees_all &= x.shape[:-1].numel() == self.rows
        out: Tensor = layer.base(x)
        return out

    def scaled(self, name: str, x: Tensor, *, inputs: bool) -> Tensor:
        """Scale nothing."""
        return x


@torch.no_grad()
def rows_join(base: SharedBase) -> bool:
    """Compare two texts of unlike lengths, joined behind a mask, with each alone.

    Parameters
    ----------
    base : SharedBase
        The trunk's blocks; none of their weights changes.

    Returns
    -------
    bool
        Whether the answers are equal, to the rounding of the base's dtype.
    """
    blocks = base.info.start, last_block(base)
    if blocks[0] == blocks[1]:
        return False
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(2, LONG, base.width, generator=generator)
    hidden = drawn.to(base.reference_tensor)
    alone = [hidden[:1], hidden[1:, :SHORT]]
    answers = [run_watched(base, blocks, rows)[0] for rows in alone]
    mask = torch.ones(2, LONG, dtype=torch.long, device=hidden.device)
    mask[1, SHORT:] = 0
    joined, watching = run_watched(base, blocks, hidden, attention_mask=mask)
    return watching.sees_all and all(
        alike(got[: rows.shape[1]], wanted[0], rows[0])
        for got, wanted, rows in zip(joined, answers, alone, strict=True)
    )


def last_block(base: SharedBase) -> int:
    """Return where blocks end that no session without a tail has."""
    info = base.info
    return info.stop - (info.stop == info.num_layers)


def run_watched(
    base: SharedBase,
    blocks: tuple[int, int],
    rows: Tensor,
    **given: Tensor,
) -> tuple[Tensor, _Watching]:
    """Run blocks without adapters; return the answer, and what layers were given."""
    watching = _Watching(rows.shape[:2].numel())
    out = base.run_joined(blocks, rows, watching, **given)
    return out, watching


def alike(got: Tensor, wanted: Tensor, before: Tensor) -> bool:
    """Compare what the blocks have added, against the largest of it."""
    added = (wanted.float() - before.float()).abs().max()
    tolerance = 0.1 if wanted.element_size() < 4 else 1e-4
    return bool((got.float() - wanted.float()).abs().max() <= tolerance * added)
