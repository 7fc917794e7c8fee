# SPDX-License-Identifier: Apache-2.0
"""Which replica of a trunk serves which client: clusters together, replicas balanced.

A cluster's clients are a party, and a party has one replica. Where there are fewer
parties than replicas, the largest are divided until each replica has one (by the
highest averages, as seats are in d'Hondt's method). Parties go to the emptiest replica,
the largest first (LPT; Graham, Bounds on Multiprocessing Timing Anomalies, 1969: at
most 4/3 - 1/(3m) of the least possible). A party stays where it was, if that makes
no replica fuller than the fullest would be otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

__all__ = ["seated"]

Party = Sequence[str]


def seated(
    clusters: Mapping[str, int | None],
    replicas: Sequence[str],
    before: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Give clients a replica each.

    Parameters
    ----------
    clusters : Mapping[str, int | None]
        Clients, and the cluster of each; one whose cluster is not known is alone.
    replicas : Sequence[str]
        Their names; at least one.
    before : Mapping[str, str], optional
        Where clients were, perhaps at replicas that there are no more.
    """
    was = before or {}
    parties = _divided(_parties(clusters), len(replicas), was)
    parties.sort(key=len, reverse=True)
    fresh = _placed(parties, replicas, {}, 0)
    fullest = max(Counter(fresh.values()).values(), default=0)
    kept = _placed(parties, replicas, was, fullest)
    is_worse = max(Counter(kept.values()).values(), default=0) > fullest
    return fresh if is_worse else kept


def _parties(clusters: Mapping[str, int | None]) -> list[Party]:
    found: dict[object, list[str]] = {}
    for client, cluster in clusters.items():
        found.setdefault((client,) if cluster is None else cluster, []).append(client)
    return [*found.values()]


def _divided(
    parties: Sequence[Party], replicas: int, before: Mapping[str, str]
) -> list[Party]:
    """Divide the largest parties, so that no replica is without one."""
    shares = [1] * len(parties)
    spare = min(replicas, sum(map(len, parties))) - len(parties)
    for _ in range(spare):
        averages = [len(p) / s for p, s in zip(parties, shares, strict=True)]
        shares[averages.index(max(averages))] += 1
    return [
        part
        for party, share in zip(parties, shares, strict=True)
        for part in _chunks(_seated_together(party, before), share)
    ]


def _seated_together(party: Party, before: Mapping[str, str]) -> Party:
    """Order a party by where its clients were, the most first, as chunks are cut."""
    was = {client: before.get(client, "") for client in party}
    sizes = Counter(was.values())
    return sorted(party, key=lambda client: (-sizes[was[client]], was[client]))


def _chunks(party: Party, count: int) -> list[Party]:
    """Cut into as many parts, those that are larger by one first."""
    size, more = divmod(len(party), count)
    ends = [0, *accumulate([size + 1] * more + [size] * (count - more))]
    return [party[a:b] for a, b in pairwise(ends)]


def _placed(
    parties: Sequence[Party],
    replicas: Sequence[str],
    before: Mapping[str, str],
    fullest: int,
) -> dict[str, str]:
    loads = dict.fromkeys(replicas, 0)
    found: dict[str, str] = {}
    for party in parties:
        seats = Counter(before[c] for c in party if before.get(c) in loads)
        last = max(seats, key=lambda name: seats[name], default=None)
        if last is None or loads[last] + len(party) > fullest:
            last = min(replicas, key=lambda name: loads[name])
        loads[last] += len(party)
        found |= dict.fromkeys(party, last)
    return found
