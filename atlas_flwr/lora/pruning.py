# SPDX-License-Identifier: Apache-2.0
r"""Ranks that shrink while they are trained: HetLoRA's self-pruning (arXiv 2401.06432).

A client adds to its loss, with :math:`\gamma < 1` and a weight,

.. math:: \sum_l \|B_l[:, \gamma r_l :]\|_F \, \|A_l[\gamma r_l :, :]\|_F

and where a layer's term is smaller after its local training than it was before, the
client drops those directions: from then on the layer's rank is :math:`\gamma r_l`. The
paper states it for a client's one rank; here each layer is judged by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from atlas_flwr.lora.factors import LoraFactors

__all__ = ["excess", "kept_rank", "pruned"]


def kept_rank(rank: int, decay: float) -> int:
    """Return the rank that is left after one pruning, at least 1.

    Parameters
    ----------
    rank : int
        Before.
    decay : float
        Gamma, in (0, 1]; 1 leaves every rank as it is.
    """
    return max(1, math.floor(rank * decay + 1e-9))  # 0.57 * 100 is below 57


def excess(factors: Iterable[LoraFactors], decay: float) -> Tensor:
    """Sum over layers the norms' product of the directions that pruning would drop.

    Parameters
    ----------
    factors : Iterable[LoraFactors]
        Their tensors may be parameters.
    decay : float
        Gamma.

    Returns
    -------
    Tensor
        Scalar; differentiable, with gradient 0 where a norm is 0.
    """
    return sum((_excess(found, decay) for found in factors), torch.zeros(()))


def pruned(
    start: Mapping[str, LoraFactors], end: Mapping[str, LoraFactors], decay: float
) -> dict[str, LoraFactors]:
    """Drop the last directions of the layers in which they have become smaller.

    Parameters
    ----------
    start, end : Mapping[str, LoraFactors]
        By layer, before local training and after it, at the same ranks and scales.
    decay : float
        Gamma.

    Returns
    -------
    dict[str, LoraFactors]
        Of ``end``, at its scales, whatever the rank that is left.
    """
    kept = {}
    for name, found in end.items():
        rank = kept_rank(found.rank, decay)
        shrank = bool(_excess(found, decay) < _excess(start[name], decay))
        cut = LoraFactors(found.A[:rank], found.B[:, :rank], found.scale)
        kept[name] = cut if shrank else found
    return kept


def _excess(factors: LoraFactors, decay: float) -> Tensor:
    rank = kept_rank(factors.rank, decay)
    size: Tensor = factors.B[:, rank:].norm() * factors.A[rank:].norm()
    return size
