# SPDX-License-Identifier: Apache-2.0
r"""Who carries the trunk for whom: guests paired with hosts, at the least cost of all.

A *way* is a host that holds all blocks of the trunk, or several in order that hold
them together. With n_w guests on way w, the pairing minimises

.. math:: \sum_g c(g, w_g) + \sum_w p_w n_w^2

The unit is the *common step*: what all the trunk's blocks take a host of speed 1. c is
what a way costs a guest whoever else is there: a step's bits over its own link for each
hop (for all hops once, where the hosts of a chain hand on to each other), a price for
leaving its cluster, another for leaving the way that it had before, and a high one for
none at all, which grows with the rounds that it has waited. p is what a guest's step
takes a way's hosts, work over speed and bits over link; a guest waits for n_w of them,
so that the second sum is that over all guests, and spreads them. (A host that carries
itself uses no link: it is given back, in c, what its own adds.)
The increments (2n - 1) p_w grow with n, so a way is as many *places*, of those prices,
as its memory bears guests, and the best pairing is an assignment of guests to places
(Hungarian algorithm; Ahuja, Magnanti and Orlin, Network Flows, 1993, section 12.4),
found exactly for any number of both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from atlas_flwr.budget.chains import Link, Need, Way, chained, most_guests
from atlas_flwr.errors import BudgetError

__all__ = [
    "Guest",
    "Host",
    "Pairing",
    "Prices",
    "crossings",
    "pair",
    "trusts",
    "ways_of",
]


@dataclass(frozen=True)
class Host:
    """A client that carries the trunk for others.

    Attributes
    ----------
    client : str
        Its id.
    memory : int
        Bytes that it lends.
    trust : frozenset[str]
        Groups that it belongs to; those who name none are the group ``""``.
    cluster : int, optional
        Its cluster, if that is known.
    speed : float
        How fast it computes, 1 being common.
    link : float
        Bits a second that its link carries.
    price : float
        What each guest costs besides: for a host that is a last resort.
    """

    client: str
    memory: int
    trust: frozenset[str] = frozenset({""})
    cluster: int | None = None
    speed: float = 1.0
    link: float = math.inf
    price: float = 0.0


@dataclass(frozen=True)
class Guest:
    """A client that needs the trunk.

    Attributes
    ----------
    client : str
        Its id.
    trust, cluster, link
        As a host's.
    waited : int
        Rounds that it has sat out, one after the other, for want of a place.
    """

    client: str
    trust: frozenset[str] = frozenset({""})
    cluster: int | None = None
    link: float = math.inf
    waited: int = 0


@dataclass(frozen=True)
class Prices:
    """What is paid for what, in common steps.

    Attributes
    ----------
    hop : float
        Each host on a way that is not the guest itself.
    outside : float
        A way with a host of another cluster.
    moved : float
        Another way than the one before.
    alone : float
        No way; once for each round of waiting, and once more.

    Raises
    ------
    BudgetError
        If one is below 0.
    """

    hop: float = 0.25
    outside: float = 20.0
    moved: float = 2.0
    alone: float = 1e9

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value >= 0:
                raise BudgetError(f"price {name}={value}; it must be 0 or more")


class Pairing(NamedTuple):
    """What was found.

    Attributes
    ----------
    ways : Mapping[str, Way]
        Of each guest that has one.
    alone : Sequence[str]
        The other guests.
    cost : float
        As above.
    """

    ways: Mapping[str, Way]
    alone: Sequence[str]
    cost: float


@dataclass(frozen=True)
class _Trade:
    """Prices of ways for guests, among some hosts."""

    hosts: Mapping[str, Host]
    blocks: range
    prices: Prices = field(default_factory=Prices)
    before: Mapping[str, Way] = field(default_factory=dict)
    barred: Collection[tuple[str, str]] = ()
    even: float = 0.0
    direct: bool = False

    def cost(self, guest: Guest, way: Way) -> float:
        """What a way costs a guest, whoever else is there; infinity: it cannot be."""
        links = [self.hosts[link.host] for link in way]
        others = [host for host in links if host.client != guest.client]
        reached = ((guest.client, host.client) not in self.barred for host in others)
        if not all(trusts(guest, host) for host in others) or not all(reached):
            return float("inf")
        crossing = self.even / guest.link
        cost = sum(h.price + self.prices.hop for h in others)
        cost += crossing * crossings(guest.client, way, self.direct)
        # The guest itself is among those who wait for its link, and does not use it.
        cost -= sum(self.even / h.link for h in links if h not in others)
        known = {h.cluster for h in others} - {None}
        if guest.cluster is not None and known - {guest.cluster}:
            cost += self.prices.outside
        if self.before.get(guest.client, way) != way:
            cost += self.prices.moved
        return cost

    def pace(self, way: Way) -> float:
        """Common steps that a guest's step takes a way's hosts, and their links."""
        shares = [len(link.blocks) / len(self.blocks) for link in way]
        hosts = [self.hosts[link.host] for link in way]
        computed = sum(s / h.speed for s, h in zip(shares, hosts, strict=True))
        return computed + sum(self.even / host.link for host in hosts)


def crossings(guest: str, way: Way, direct: bool) -> int:
    """Count how often a step goes out over a guest's link, and back.

    That is once for each host but the guest itself; in a direct chain, once for hosts
    that follow each other.
    """
    strange = [link.host != guest for link in way]
    begun = (now and not before for before, now in pairwise([False, *strange]))
    return sum(begun if direct else strange)


def trusts(guest: Guest, host: Host) -> bool:
    """Tell whether a guest may show a host what crosses its cut."""
    return guest.client == host.client or not guest.trust.isdisjoint(host.trust)


def ways_of(
    hosts: Sequence[Host], blocks: range, need: Need, wanted: int = 1
) -> dict[Way, int]:
    """Return the ways that hosts make, and how many guests each bears.

    Parameters
    ----------
    hosts : Sequence[Host]
        Each is on one way at most.
    blocks : range
        The trunk's.
    need : Callable[[int, int], int]
        Bytes of so many blocks with so many guests.
    wanted : int
        Guests to have room for; chains are as short as that allows.
    """
    found: dict[Way, int] = {}
    small = []
    for host in hosts:
        if guests := most_guests(host.memory, len(blocks), need):
            found[(Link(host.client, blocks.start, blocks.stop),)] = guests
            wanted -= 0 if host.price else guests  # a last resort makes no room
        else:
            small.append(host)
    near = _chains_of(small, blocks, need, wanted, in_clusters=True)
    far = _chains_of(small, blocks, need, wanted, in_clusters=False)
    room = sum(near.values())
    return found | (near if room >= min(wanted, sum(far.values())) else far)


def _chains_of(
    hosts: Sequence[Host], blocks: range, need: Need, wanted: int, *, in_clusters: bool
) -> dict[Way, int]:
    """Make chains of hosts that are in the same groups, and if asked in a cluster.

    What is left over in the clusters makes chains across them.
    """
    found: dict[Way, int] = {}
    keys: list[Callable[[Host], object]] = [lambda host: sorted(host.trust)]
    if in_clusters:
        keys.insert(0, lambda host: (sorted(host.trust), host.cluster))
    for key in keys:
        taken = {link.host for way in found for link in way}
        for members in _grouped([h for h in hosts if h.client not in taken], key):
            sizes = {host.client: host.memory for host in members}
            room = sum(found.values())
            found |= chained(sizes, blocks, need, wanted - room)
    return found


def pair(
    guests: Sequence[Guest],
    hosts: Collection[Host],
    ways: Mapping[Way, int],
    *,
    before: Mapping[str, Way] | None = None,
    taken: Mapping[Way, int] | None = None,
    barred: Collection[tuple[str, str]] = (),
    prices: Prices | None = None,
    even: float = 0.0,
    direct: bool = False,
) -> Pairing:
    """Pair guests with ways.

    Parameters
    ----------
    guests : Sequence[Guest]
        Each is on one way at most.
    hosts : Collection[Host]
        Those of the ways.
    ways : Mapping[Way, int]
        How many guests each bears (see :func:`ways_of`).
    before : Mapping[str, Way], optional
        The ways that guests had before.
    taken : Mapping[Way, int], optional
        How many other guests are on ways already; they stay.
    barred : Collection[tuple[str, str]]
        Guests and hosts that do not reach each other.
    prices : Prices, optional
        What is paid for what.
    even : float
        Bits a second at which a step's tensors cross in a common step, all crossings
        together; 0 weighs no links.
    direct : bool
        Whether hosts of a chain hand on to each other, and not over the guest's link.
    """
    given, others = prices or Prices(), taken or {}
    if not guests:
        return Pairing({}, [], 0.0)
    blocks = next((range(w[0].first, w[-1].stop) for w in ways), range(0))
    trade = _Trade(
        {h.client: h for h in hosts}, blocks, given, before or {}, barred, even, direct
    )
    places = [
        (way, n)
        for way, most in ways.items()
        for start in (others.get(way, 0),)
        for n in range(start, min(most, start + len(guests)))
    ]
    table = _table(guests, places, trade)
    rows, columns = linear_sum_assignment(table)
    found = dict(zip(rows.tolist(), columns.tolist(), strict=True))
    chosen = {
        guests[row].client: places[column][0]
        for row, column in found.items()
        if column < len(places)
    }
    alone = [guest.client for guest in guests if guest.client not in chosen]
    return Pairing(chosen, alone, float(table[rows, columns].sum()))


def _table(
    guests: Sequence[Guest], places: Sequence[tuple[Way, int]], trade: _Trade
) -> NDArray[np.float64]:
    """Price each place for each guest; the last columns are none, a guest's own."""
    ways = list(dict.fromkeys(way for way, _ in places))
    costs = {way: [trade.cost(guest, way) for guest in guests] for way in ways}
    waits = {way: trade.pace(way) for way in ways}
    columns = [np.array(costs[w]) + (2 * n + 1) * waits[w] for w, n in places]
    none = np.full((len(guests), len(guests)), np.inf)
    np.fill_diagonal(none, [trade.prices.alone * (1 + g.waited) for g in guests])
    return np.column_stack([*columns, none])


def _grouped(hosts: Sequence[Host], key: Callable[[Host], object]) -> list[list[Host]]:
    groups: dict[str, list[Host]] = {}
    for host in hosts:
        groups.setdefault(repr(key(host)), []).append(host)
    return list(groups.values())
