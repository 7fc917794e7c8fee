# SPDX-License-Identifier: Apache-2.0
r"""How much of each member's update counts, where a remedy says so.

A member that was sent the product L_k and sent back L'_k changed it by
:math:`U_k = L'_k - L_k`. To let a group move by :math:`\sum_k c_k U_k` instead of
:math:`\sum_k p_k U_k`, each member counts as two of its rank:

.. math:: \sum_k p_k L_k + \sum_k c_k U_k = \sum_k c_k L'_k + \sum_k (p_k - c_k) L_k

A member that is late was sent the :math:`L_k` of an earlier round, or of before it was
in its group. Its change is added
to what it would be sent now, :math:`N_k`, as FedBuff adds it (arXiv 2106.06639,
algorithm 1), and it counts as three:
:math:`p_k N_k + c_k U_k = p_k N_k + c_k L'_k - c_k L_k`. What its group has learned
meanwhile is neither undone nor counted again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from atlas_flwr.aggregation.contribution import Contribution, shares
from atlas_flwr.errors import AdapterError
from atlas_flwr.lora import AdapterState
from atlas_flwr.lora.update import Update
from atlas_flwr.remedies.base import ServerHooks

__all__ = ["weighed"]


def weighed(
    parts: Sequence[Contribution],
    group: str,
    hooks: ServerHooks,
    now: Callable[[Contribution], AdapterState] | None = None,
) -> Sequence[Contribution]:
    """Return a group's contributions as the remedies, and their age, let them count.

    Parameters
    ----------
    parts : Sequence[Contribution]
        As they came.
    group : str
        Theirs.
    hooks : ServerHooks
        The remedies'.
    now : Callable[[Contribution], AdapterState], optional
        Returns what a member would be sent now, at its ranks; for those that are late.

    Raises
    ------
    AdapterError
        If a remedy is on, or a member late, and it is not known what it was sent.
    """
    counts = hooks.counts(group, lambda: [_update(part) for part in parts])
    if counts is None and not any(part.late for part in parts):
        return parts
    weights = [part.weight for part in parts]
    if counts is not None:
        shares(parts)
        weights = [sum(weights) * c for c in counts]
    out = []
    for part, weight in zip(parts, weights, strict=True):
        if weight:
            out.append(replace(part, weight=weight))
        if part.late and now is not None:
            out.append(Contribution(part.client, -weight, _sent(part)))
            here = _within(now(part), part.state)
            out.append(Contribution(part.client, part.weight, here))
        elif weight != part.weight:
            rest = part.weight - weight
            out.append(Contribution(part.client, rest, _sent(part)))
    return out


def _update(part: Contribution) -> Update:
    return Update(part.client, part.weight, _sent(part), part.state)


def _sent(part: Contribution) -> AdapterState:
    if part.sent is None:
        raise AdapterError(f"client {part.client}: what it was sent is not known")
    return _within(part.sent, part.state)


def _within(state: AdapterState, other: AdapterState) -> AdapterState:
    """Leave out what another state does not have."""
    return AdapterState(
        {name: f for name, f in state.factors.items() if name in other.factors},
        {key: array for key, array in state.dense.items() if key in other.dense},
    )
