# SPDX-License-Identifier: Apache-2.0
"""What one client of a cluster learns of the others' updates from their aggregate.

It is sent what the cluster held before a round and what it holds after it, and knows
its own part. In a cluster of two the rest is the other's update, whole; in a larger one
the weighted mean of the others'. Concatenated factors would show each member's; what
clients are sent is in the basis of the sum's own singular vectors, which is the same
whatever it was added up from.

It needs no recording of a run, so it is in no registry: tests ask it.
"""

from __future__ import annotations

from collections.abc import Mapping

from atlas_flwr.lora import LoraFactors, canonical, concatenate
from atlas_flwr.privacy.adversary import Adversary, Who

__all__ = ["ADVERSARY", "others_update", "product_sent"]

ADVERSARY = Adversary(
    Who.CLIENT, weights=False, adapters=True, texts=False, defence=False
)


def product_sent(
    live: Mapping[str, LoraFactors], folded: Mapping[str, LoraFactors]
) -> dict[str, LoraFactors]:
    """Return by layer what a client is sent of its cluster's: both parts together."""
    found = {}
    for name in dict.fromkeys([*live, *folded]):
        terms = [part[name] for part in (live, folded) if name in part]
        found[name] = concatenate(terms, [1.0] * len(terms))
    return found


def others_update(
    before: Mapping[str, LoraFactors],
    after: Mapping[str, LoraFactors],
    own: Mapping[str, LoraFactors],
    share: float,
) -> dict[str, LoraFactors]:
    """Return what the others of a cluster changed in a round, on average, by layer.

    Parameters
    ----------
    before, after : Mapping[str, LoraFactors]
        What the client was sent before the round, and after it.
    own : Mapping[str, LoraFactors]
        What it had when it had trained.
    share : float
        Its weight in the sum, between 0 and 1: a half where two train on equally many.

    Returns
    -------
    dict[str, LoraFactors]
        In the basis of the product's singular vectors.

    Raises
    ------
    ValueError
        If ``share`` leaves nothing to the others.
    """
    rest = 1 - share
    if not 0 < rest <= 1:
        raise ValueError(f"share={share}: it must be at least 0, and below 1")
    found = {}
    for name, now in after.items():
        # D' - D = share (W_own - D) + rest (W_others - D)
        terms = [now, before[name], own[name]]
        weights = [1 / rest, -1 / rest + share / rest, -share / rest]
        found[name] = canonical(concatenate(terms, weights))
    return found
