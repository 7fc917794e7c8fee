# SPDX-License-Identifier: Apache-2.0
"""Who carries the trunk for whom, among peers: now, and what there is to remember."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from atlas_flwr.budget.chains import Link, Way
from atlas_flwr.budget.pairing import Guest, Host, Pairing, Prices, pair, ways_of
from atlas_flwr.errors import TrunkError, TrunkLost
from atlas_flwr.trunk.hosts.peer_model import PeerModel

__all__ = ["Places"]


@dataclass
class Places:
    """The ways of guests, paired as is best by :func:`~atlas_flwr.budget.pairing.pair`.

    Parameters
    ----------
    model : PeerModel
        What hosts carry.
    prices : Prices
        Of what is better than what.
    last : Host, optional
        Carries whom no peer can.
    direct : bool
        Whether hosts of a chain hand on to each other.
    """

    model: PeerModel
    prices: Prices
    last: Host | None
    direct: bool
    _lending: dict[str, Host] = field(default_factory=dict, init=False)
    _guests: dict[str, Guest] = field(default_factory=dict, init=False)
    _bears: dict[Way, int] = field(default_factory=dict, init=False)
    _ways: dict[str, Way] = field(default_factory=dict, init=False)
    _barred: set[tuple[str, str]] = field(default_factory=set, init=False)
    _waited: Counter[tuple[str, str]] = field(default_factory=Counter, init=False)

    @property
    def lending(self) -> Collection[str]:
        """Who may carry the trunk."""
        return self._lending.keys()

    def offer(self, hosts: Collection[Host]) -> None:
        """Note who may carry the trunk from now on."""
        offered = [*hosts, *([self.last] if self.last else [])]
        # One whose node was started anew has said it twice: the last counts.
        self._lending = {host.client: host for host in offered}

    def pair(
        self, what: str, guests: Sequence[Guest], lost: Collection[str]
    ) -> Pairing:
        """Pair guests with those hosts that are not lost.

        Raises
        ------
        TrunkError
            If they have too little room for the trunk.
        """
        waiting = [replace(g, waited=self._waited[what, g.client]) for g in guests]
        self._guests |= {guest.client: guest for guest in waiting}
        able = [host for host in self._lending.values() if host.client not in lost]
        blocks, need = self.model.blocks, self.model.need
        self._bears = ways_of(able, blocks, need, len(guests))
        if not self._bears:
            raise TrunkError(self.model.too_little(able))
        return pair(
            waiting,
            able,
            self._bears,
            before=self._ways,
            barred=self._barred,
            prices=self.prices,
            even=self.model.even,
            direct=self.direct,
        )

    def take(self, what: str, guests: Sequence[Guest], found: Pairing) -> None:
        """Let guests have the ways that were found; who has none waits for that."""
        for guest in guests:
            if guest.client in found.ways:
                self._waited.pop((what, guest.client), None)
            else:
                self._waited[what, guest.client] += 1
                self._ways.pop(guest.client, None)
        self._ways |= found.ways

    def way(self, client: str) -> Way:
        """Return a guest's way.

        Raises
        ------
        TrunkLost
            If it has none.
        """
        if client not in self._ways:
            raise TrunkLost(f"nobody is left who would carry the trunk for {client}")
        return self._ways[client]

    def move(
        self,
        client: str,
        taken: Mapping[Way, int],
        lost: Collection[str],
        left: Collection[str] = (),
    ) -> Way:
        """Find a guest another way, beside all others; empty where there is none.

        Parameters
        ----------
        client : str
            Who moves.
        taken : Mapping[Way, int]
            How many guests are on ways already.
        lost : Collection[str]
            Hosts that cannot be had.
        left : Collection[str]
            Hosts that it is not to come to again.
        """
        gone = set(lost)
        ways = {
            w: n for w, n in self._bears.items() if gone.isdisjoint(k.host for k in w)
        }
        self._ways.pop(client, None)
        found = pair(
            [self._guests[client]],
            self._lending.values(),
            ways,
            taken=taken,
            barred={*self._barred, *((client, host) for host in left)},
            prices=self.prices,
            even=self.model.even,
            direct=self.direct,
        )
        self._ways |= found.ways
        return found.ways.get(client, ())

    def bar(self, client: str, hosts: Collection[str]) -> None:
        """Never pair a guest with some hosts again."""
        self._barred |= {(client, host) for host in hosts}

    def state(self) -> dict[str, object]:
        """Return who was where, and who has waited how long: JSON."""
        return {
            "ways": {
                client: [list(k) for k in way] for client, way in self._ways.items()
            },
            "waited": [[*key, count] for key, count in self._waited.items()],
            "barred": [list(pair) for pair in sorted(self._barred)],
        }

    def restore(self, values: Mapping[str, Any]) -> None:
        """Take up what :meth:`state` returned."""
        self._ways = {
            client: tuple(Link(*link) for link in way)
            for client, way in values["ways"].items()
        }
        self._waited = Counter({(w, client): n for w, client, n in values["waited"]})
        self._barred = {(client, host) for client, host in values["barred"]}
