# SPDX-License-Identifier: Apache-2.0
r"""NoPeek: a head that is trained to send what has little in common with its text.

After Vepakomma et al. (arXiv 2008.09161, eq. 1): to a step's loss comes the weight
times the distance correlation of a batch's embeddings x and what the head sends, z,

.. math:: \sqrt{\frac{\langle A, B \rangle}{\|A\| \, \|B\|}}, \quad
   A = J D_x J, \; B = J D_z J, \; J = I - \tfrac{1}{N} 1 1^T

with D the N x N distances of rows (Szekely et al., 2007, definitions 2 and 3). There a
row is an image; here it is a position, since positions are what is read. It acts by the
client's adapters of the head alone, which the server is sent when the round is over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from atlas_flwr.privacy.defences.base import Defence

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["NoPeek", "distance_correlation"]

MOST = 512  # positions of a step; tables of their distances have so many squared
TINY = 1e-12  # at 0 a square root's slope is infinite


@dataclass(frozen=True)
class NoPeek(Defence):
    """Adds ``strength`` times a distance correlation, of 0 to 1, to the loss.

    What crosses is sent as it is.
    """

    name: ClassVar[str] = "nopeek"

    @property
    def shapes_head(self) -> bool:
        """It does."""
        return True

    def penalty(self, embeds: Tensor, hidden: Tensor) -> Tensor:
        """Return the weighted distance correlation, of positions taken evenly."""
        every = -(-len(hidden) // MOST) or 1
        found = distance_correlation(embeds[::every], hidden[::every])
        return self.strength * found


def distance_correlation(x: Tensor, z: Tensor) -> Tensor:
    """Return how far rows of two tensors depend on one another.

    Parameters
    ----------
    x, z : Tensor
        Shapes (N, D) and (N, E); row by row of the same.

    Returns
    -------
    Tensor
        From 0 to 1, a scalar; in large samples 0 for independent rows alone.
    """
    a, b = _centred(x.float()), _centred(z.float())
    share = (a * b).sum() / (a.norm() * b.norm()).clamp(min=TINY)
    found: Tensor = share.clamp(min=TINY).sqrt()
    return found


def _centred(rows: Tensor) -> Tensor:
    """Return the distances of rows (N, N), less their means by row and by column."""
    import torch

    # By products of rows they would lose the digits of small ones.
    exact = "donot_use_mm_for_euclid_dist"
    d: Tensor = torch.cdist(rows, rows, compute_mode=exact)
    return d - d.mean(0) - d.mean(1, keepdim=True) + d.mean()
