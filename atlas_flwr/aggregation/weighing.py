# SPDX-License-Identifier: Apache-2.0
r"""How much of each member's update counts, where a remedy says so.

A member that was sent the product L_k and sent back L'_k changed it by
:math:`U_k = L'_k - L_k`. To let a group move by :math:`\sum_k c_k U_k` instead of
:math:`\sum_k p_k U_k`, each member counts as two of its rank:

.. math:: \sum_k p_k L_k + \sum_k c_k U_k = \sum_k c_k L'_k + \sum_k (p_k - c_k) L_k
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from atlas_flwr.aggregation.contribution import Contribution, shares
from atlas_flwr.errors import AdapterError
from atlas_flwr.lora import AdapterState
from atlas_flwr.lora.update import Update
from atlas_flwr.remedies.base import ServerHooks

__all__ = ["weighed"]


def weighed(
    parts: Sequence[Contribution], group: str, hooks: ServerHooks
) -> Sequence[Contribution]:
    """Return a group's contributions as the remedies let them count.

    Raises
    ------
    AdapterError
        If a remedy is on and it is not known what a member was sent.
    """
    counts = hooks.counts(group, lambda: [_update(part) for part in parts])
    if counts is None:
        return parts
    total = sum(part.weight for part in parts)
    out = []
    for part, p, c in zip(parts, shares(parts), counts, strict=True):
        if c:
            out.append(replace(part, weight=total * c))
        if p != c:
            out.append(Contribution(part.client, total * (p - c), _sent(part)))
    return out


def _update(part: Contribution) -> Update:
    return Update(part.client, part.weight, _sent(part), part.state)


def _sent(part: Contribution) -> AdapterState:
    if part.sent is None:
        raise AdapterError(f"client {part.client}: what it was sent is not known")
    factors, dense = part.state.factors, part.state.dense
    return AdapterState(
        {name: f for name, f in part.sent.factors.items() if name in factors},
        {key: array for key, array in part.sent.dense.items() if key in dense},
    )
