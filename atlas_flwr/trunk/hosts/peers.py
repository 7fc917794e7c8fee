# SPDX-License-Identifier: Apache-2.0
"""Peers carry the trunk: one host that stands for many, each session on its own.

Who carries it for whom is found anew for each exchange of a round
(:mod:`atlas_flwr.budget.pairing`). A session may be on several hosts in order; one
that was on a host that is lost is opened anew elsewhere, as it began.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import methodcaller
from typing import Any, TypeVar

from atlas_flwr.budget.chains import Link, Way
from atlas_flwr.budget.pairing import Guest, Host, Prices
from atlas_flwr.errors import SessionError, TrunkBusy, TrunkError, TrunkLost
from atlas_flwr.lora import AdapterState
from atlas_flwr.trunk.engine.session import SessionSpec
from atlas_flwr.trunk.host import Door, TrunkHost
from atlas_flwr.trunk.hosts.departures import Computed, check_handed
from atlas_flwr.trunk.hosts.direct import introduced
from atlas_flwr.trunk.hosts.peer_hosts import PeerHosts, PeerWatcher
from atlas_flwr.trunk.hosts.peer_model import PeerModel
from atlas_flwr.trunk.hosts.places import Places
from atlas_flwr.trunk.hosts.several import SeveralHosts

__all__ = ["Peers"]

T = TypeVar("T")


@dataclass
class _Session:
    """A client's session.

    Attributes
    ----------
    spec : SessionSpec
        As it was opened.
    way : Way
        Where it is.
    doors : dict[str, Door]
        By host, in their order.
    left : set[str]
        Hosts that it left as its client failed with them.
    handed : AdapterState, optional
        What they handed over, where that was judged.
    """

    spec: SessionSpec
    way: Way
    doors: dict[str, Door] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)
    handed: AdapterState | None = None


@dataclass
class Peers(SeveralHosts[PeerWatcher, _Session]):
    """The trunks of peers (see :class:`~atlas_flwr.trunk.TrunkHost`, and Introducing).

    Parameters
    ----------
    hosts : PeerHosts
        Starts them.
    model : PeerModel
        What they carry.
    prices : Prices
        Of what is better than what.
    last : Host, optional
        Carries whom no peer can.
    direct : bool
        Whether hosts of a chain are made each other's neighbours.
    """

    hosts: PeerHosts[PeerWatcher]
    model: PeerModel
    prices: Prices = field(default_factory=Prices)
    last: Host | None = None
    direct: bool = False
    _places: Places = field(init=False)
    _sessions: dict[str, _Session] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._places = Places(self.model, self.prices, self.last, self.direct)

    def admit(
        self,
        what: str,
        server_round: int,
        guests: Sequence[Guest],
        hosts: Collection[Host],
    ) -> Collection[str]:
        """Pair guests with hosts; return those that have a place.

        Parameters
        ----------
        what : str
            For what: who sat out waits for that.
        server_round : int
            For whom is told.
        guests, hosts : Sequence[Guest], Collection[Host]
            Who needs the trunk, and who may carry it.

        Raises
        ------
        TrunkError
            If nobody may, or they have too little room for the trunk.
        TrunkLost
            If all who carried it are lost.
        """
        self.hosts.round = server_round
        self._places.offer(hosts)
        self.ping()
        started = False
        while not started:
            found = self._places.pair(what, guests, self.hosts.lost.keys())
            started = self._started({link for w in found.ways.values() for link in w})
        self._places.take(what, guests, found)
        self.hosts.watcher.paired(server_round, what, found)
        return found.ways.keys()

    def state(self) -> dict[str, object]:
        """Return who was where, and who has waited how long: JSON."""
        return self._places.state()

    def restore(self, values: Mapping[str, Any]) -> None:
        """Take up what :meth:`state` returned; hosts that were lost are asked again."""
        self._places.restore(values)

    def doors(self, token: str) -> Sequence[Door]:
        """Return where a session is, in the order of its blocks."""
        return list(self._session(token).doors.values())

    def mend(self, tokens: Collection[str], *, failed: bool) -> Sequence[Door]:
        """Open a session anew elsewhere if a place that it was in is lost.

        So it is, once, where its client failed: the two may not reach each other, or
        the host be too slow. If the client then succeeds they are not paired again.
        """
        session = self._behind(tokens)
        if session is None:
            return []
        self.hosts.check({link.host for link in session.way})
        return self._mended(session, failed=failed)

    def judge(self, tokens: Collection[str], computed: Computed) -> None:
        """Want a session's hosts to hand over what its client has computed.

        What they did is kept, so that they cannot hand over something else later.

        Raises
        ------
        SessionError
            If one of them is lost, or it is not of the session's layers.
        TrunkError
            If it is off.
        """
        session = self._behind(tokens)
        if session is not None:
            session.handed = session.handed or self._handed(session)
            computed.departure(session.spec.state, session.handed).check()

    def _behind(self, tokens: Collection[str]) -> _Session | None:
        for token, session in self._sessions.items():
            own = {token, *(door.token for door in session.doors.values())}
            if not own.isdisjoint(tokens):
                return session
        return None

    def _mended(self, session: _Session, *, failed: bool) -> Sequence[Door]:
        client = session.spec.client
        hosts = {link.host for link in session.way}
        if hosts.isdisjoint(self.hosts.lost):
            strangers = hosts - {client}
            if not failed or session.left or not strangers:
                return []
            session.left |= strangers
        self._shut(session)
        self._move(client, session.left)
        try:
            opened = self._opened(session.spec, session.left)
        except (TrunkBusy, TrunkLost):
            return []  # nobody has room; of who is lost the watcher has been told
        session.way, session.doors = opened.way, opened.doors
        session.handed = None
        return list(session.doors.values())

    # --- as a host -------------------------------------------------------------------

    def open(self, spec: SessionSpec) -> str:
        """Open a client's session where it was admitted; return its token.

        Raises
        ------
        TrunkError
            If the session is to share adapters with others, which needs one trunk.
        TrunkLost
            If nobody is left who would carry it.
        """
        if spec.shared:
            raise TrunkError(
                f"sessions that share {spec.shared!r} need one trunk, and peers are "
                "several; give each its own adapters"
            )
        token = secrets.token_urlsafe(24)
        self._sessions[token] = self._opened(spec)
        return token

    def adapters(self, token: str) -> AdapterState:
        """Copy out what a session has trained, on all its hosts.

        Raises
        ------
        SessionError
            If one of them is lost, and what it had learned with it; or if they hand
            over other layers than they began with.
        """
        session = self._session(token)
        self._places.bar(session.spec.client, session.left)
        return session.handed or self._handed(session)

    def _handed(self, session: _Session) -> AdapterState:
        parts = self._asked(session, lambda host, key: host.adapters(key))
        handed = reduce(AdapterState.merged, parts.values(), AdapterState())
        spec = session.spec
        check_handed(spec.state, handed, f"client {spec.client}")
        return handed

    def importance(self, token: str) -> dict[str, float]:
        """Return what a probing session has measured, in a backward pass's order.

        Raises
        ------
        SessionError
            If one of its hosts is lost, and what it had measured with it.
        """
        session = self._session(token)
        if not session.doors:
            raise SessionError(
                f"client {session.spec.client}: what its session has measured is lost "
                "with its hosts, and nobody had room for it"
            )
        parts = self._asked(session, lambda host, key: host.importance(key))
        return {
            name: value
            for measured in reversed(parts.values())
            for name, value in measured.items()
        }

    def close(self, token: str) -> None:
        """Close a session; unknown ones are closed already."""
        session = self._sessions.pop(token, None)
        if session is not None:
            self._shut(session)

    def ping(self) -> None:
        """Note who is lost.

        Raises
        ------
        TrunkLost
            If that leaves nobody who would carry anything.
        """
        self.hosts.check()
        lost = self.hosts.lost
        if lost and lost.keys() >= set(self._places.lending):
            raise TrunkLost(
                f"all {len(lost)} peers that carried the trunk are lost; the last: "
                f"{[*lost.values()][-1]}"
            )

    # --- within ----------------------------------------------------------------------

    def _started(self, links: Collection[Link]) -> bool:
        """Start what is to be carried; tell if all hosts could."""
        lost = len(self.hosts.lost)
        self.hosts.start_all(sorted(links))
        return len(self.hosts.lost) == lost  # else who is left is paired again

    def _opened(self, spec: SessionSpec, left: Collection[str] = ()) -> _Session:
        """Open a session on its client's way, or on another while that one fails."""
        while True:
            session = _Session(spec, self._places.way(spec.client))
            try:
                self._open_links(session)
                return session
            except TrunkLost:
                self._shut(session)
                self._move(spec.client, left)
            except Exception:
                self._shut(session)  # or the first links would hold it to the end
                raise

    def _open_links(self, session: _Session) -> None:
        found = ((link, self.model.part(session.spec, link)) for link in session.way)
        parts = {link: part for link, part in found if part is not None}
        places = [self.hosts.at(link) for link in parts]
        seams = introduced(places) if self.direct else [None] * len(places)
        for (link, part), endpoint, seam in zip(
            parts.items(), places, seams, strict=True
        ):
            mine = replace(part, seams=seam)
            with self.hosts.minding(link.host):
                self.hosts.give_shared(link.host, mine)
                token = endpoint.host.open(mine)
            session.doors[link.host] = Door(endpoint.address, token, endpoint.ca)

    def _move(self, client: str, left: Collection[str] = ()) -> None:
        """Find a client another way among those that there are, beside all others."""
        taken = Counter(session.way for session in self._sessions.values())
        way = self._places.move(client, taken, self.hosts.lost.keys(), left)
        self.hosts.watcher.moved(self.hosts.round, client, way)

    def _asked(
        self, session: _Session, request: Callable[[TrunkHost, str], T]
    ) -> dict[str, T]:
        """Ask each of a session's hosts for what it has of it."""
        found = {}
        for host, door in session.doors.items():
            try:
                with self.hosts.minding(host):
                    found[host] = request(self.hosts.trunk(host), door.token)
            except TrunkLost as error:
                raise SessionError(
                    f"client {session.spec.client}: what its session has learned is "
                    f"lost with host {host}: {error}"
                ) from None
        return found

    def _shut(self, session: _Session) -> None:
        for host, door in session.doors.items():
            self.hosts.ask(host, methodcaller("close", door.token))
        session.doors = {}
