# SPDX-License-Identifier: Apache-2.0
"""Replicas of one trunk behind one handle: each client's session is at one of them.

Clusters are kept together (:mod:`atlas_flwr.budget.seating`). Sessions are strangers to
one another, so that what they learn does not hang on where they are. Those of a replica
that is lost are opened anew at the others, as they began; it is started again for the
next exchange.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import methodcaller
from typing import Any, Protocol

from atlas_flwr.budget.chains import Link
from atlas_flwr.budget.pairing import Guest, Host
from atlas_flwr.budget.seating import seated
from atlas_flwr.errors import TrunkBusy, TrunkLost
from atlas_flwr.lora import AdapterState
from atlas_flwr.trunk.engine.session import SessionSpec
from atlas_flwr.trunk.host import Door
from atlas_flwr.trunk.hosts.peer_hosts import HostWatcher, PeerHosts
from atlas_flwr.trunk.hosts.several import SeveralHosts

__all__ = ["ReplicaWatcher", "Replicas"]


class ReplicaWatcher(HostWatcher, Protocol):
    """Is told what happens to replicas."""

    def started(self, server_round: int, replica: str) -> None:
        """One that was lost is there again."""

    def seated(self, what: str, seats: Mapping[str, str]) -> None:
        """Clients have a replica each, for a kind of message."""

    def moved(self, server_round: int, seats: Mapping[str, str]) -> None:
        """Clients of one that was lost have others, and begin again there."""


@dataclass
class _Session:
    spec: SessionSpec
    replica: str
    life: int
    door: Door


@dataclass
class Replicas(SeveralHosts[ReplicaWatcher, _Session]):
    """Replicas of one trunk (see :class:`~atlas_flwr.trunk.TrunkHost`, Introducing).

    Parameters
    ----------
    hosts : PeerHosts
        Starts them, and has who is told.
    links : Sequence[Link]
        Their names, each with all blocks of the trunk.
    restarts : int
        How often one that is lost is started again, of all together; then the others
        carry its clients.
    """

    hosts: PeerHosts[ReplicaWatcher]
    links: Sequence[Link]
    restarts: int = 0
    _clusters: dict[str, int | None] = field(default_factory=dict, init=False)
    _seats: dict[str, str] = field(default_factory=dict, init=False)
    _sessions: dict[str, _Session] = field(default_factory=dict, init=False)
    _lives: Counter[str] = field(default_factory=Counter, init=False)

    def start(self) -> None:
        """Start all; raise what keeps the first from it."""
        self.hosts.begin_all(self.links)

    def admit(
        self,
        what: str,
        server_round: int,
        guests: Sequence[Guest],
        hosts: Collection[Host],
    ) -> Collection[str]:
        """Give each client a replica; start those again that are lost.

        Parameters
        ----------
        what, server_round : str, int
            For which message of which round.
        guests : Sequence[Guest]
            The clients.
        hosts : Collection[Host]
            Not asked: replicas carry the trunk.

        Raises
        ------
        TrunkLost
            If no replica is left.
        """
        self.hosts.round = server_round
        self.hosts.check()
        self._start_lost()
        self._clusters |= {guest.client: guest.cluster for guest in guests}
        self._seats |= self._seated([guest.client for guest in guests])
        seats = {guest.client: self._seats[guest.client] for guest in guests}
        self.hosts.watcher.seated(what, seats)
        return seats.keys()

    def state(self) -> dict[str, object]:
        """Return who was where: JSON."""
        return {"seats": dict(self._seats)}

    def restore(self, values: Mapping[str, Any]) -> None:
        """Take up what :meth:`state` returned, perhaps with other replicas."""
        names = {link.host for link in self.links}
        seats = values.get("seats", {}).items()
        self._seats = {client: seat for client, seat in seats if seat in names}

    def doors(self, token: str) -> Sequence[Door]:
        """Return where a session is."""
        return [self._session(token).door]

    def mend(self, tokens: Collection[str], *, failed: bool) -> Sequence[Door]:
        """Open a session anew elsewhere if its replica is lost.

        ``failed`` changes nothing: all replicas are reached alike.
        """
        for session in self._sessions.values():
            if session.door.token in tokens:
                self.hosts.check([session.replica])
                return self._mended(session)
        return []

    def _mended(self, session: _Session) -> Sequence[Door]:
        if not self._has_lost(session):
            return []
        try:
            again = self._opened(session.spec)
        except (TrunkBusy, TrunkLost):
            return []  # no room, or none is left, which the next ping says
        vars(session).update(vars(again))
        return [session.door]

    # --- as a host -------------------------------------------------------------------

    def open(self, spec: SessionSpec) -> str:
        """Open a client's session at its replica; return its token.

        Sessions that share adapters are all where the first of them is.

        Raises
        ------
        TrunkLost
            If no replica is left.
        """
        token = secrets.token_urlsafe(24)
        self._sessions[token] = self._opened(spec)
        return token

    def adapters(self, token: str) -> AdapterState:
        """Copy out what a session has trained.

        Raises
        ------
        TrunkLost
            If its replica is gone.
        """
        session = self._session(token)
        with self.hosts.minding(session.replica):
            return self.hosts.trunk(session.replica).adapters(session.door.token)

    def importance(self, token: str) -> Mapping[str, float]:
        """Return what a probing session has measured, by layer."""
        session = self._session(token)
        with self.hosts.minding(session.replica):
            return self.hosts.trunk(session.replica).importance(session.door.token)

    def close(self, token: str) -> None:
        """Close a session; unknown ones are closed already."""
        session = self._sessions.pop(token, None)
        if session is not None:
            self.hosts.ask(session.replica, methodcaller("close", session.door.token))

    def ping(self) -> None:
        """Note who is lost.

        Raises
        ------
        TrunkLost
            If that leaves none.
        """
        self.hosts.check()
        self._living()

    # --- within ----------------------------------------------------------------------

    def _living(self) -> list[str]:
        found = [k.host for k in self.links if k.host not in self.hosts.lost]
        if not found:
            reasons = [*self.hosts.lost.values()]
            raise TrunkLost(
                f"all {len(self.links)} replicas of the trunk are lost; the last: "
                f"{reasons[-1]}"
            )
        return found

    def _has_lost(self, session: _Session) -> bool:
        """Tell if the replica that a session was at is gone, or another in its name."""
        is_gone = session.replica in self.hosts.lost
        return is_gone or session.life != self._lives[session.replica]

    def _start_lost(self) -> None:
        for link in self.links:
            name = link.host
            if name in self.hosts.lost and self.restarts:
                self.restarts -= 1
                self._lives[name] += 1
                if self.hosts.again(link):
                    self.hosts.watcher.started(self.hosts.round, name)

    def _seated(self, clients: Iterable[str]) -> dict[str, str]:
        clusters = {client: self._clusters.get(client) for client in clients}
        return seated(clusters, self._living(), self._seats)

    def _opened(self, spec: SessionSpec) -> _Session:
        """Open a session, while one replica after the other may be lost."""
        while True:
            replica = self._seat(spec)
            (link,) = (link for link in self.links if link.host == replica)
            try:
                endpoint = self.hosts.at(link)
                with self.hosts.minding(replica):
                    self.hosts.give_shared(replica, spec)
                    token = endpoint.host.open(spec)
            except TrunkLost:
                continue  # it is noted, and the next seat is another
            door = Door(endpoint.address, token, endpoint.ca)
            return _Session(spec, replica, self._lives[replica], door)

    def _seat(self, spec: SessionSpec) -> str:
        """Say where a session is to be."""
        for other in self._sessions.values() if spec.shared else ():
            if other.spec.shared == spec.shared and not self._has_lost(other):
                return other.replica
        seat = self._seats.get(spec.client)
        if seat is None:
            self._seats |= self._seated([spec.client])
        elif seat in self.hosts.lost:
            self._move(spec.client)
        return self._seats[spec.client]

    def _move(self, client: str) -> None:
        """Give a client of a lost replica another, and so all that were there."""
        if len(self.hosts.lost) == len(self.links):
            self._start_lost()
        open_now = [session.spec.client for session in self._sessions.values()]
        lost = [
            one
            for one in dict.fromkeys([*open_now, client])
            if self._seats.get(one) in self.hosts.lost
        ]
        moved = self._seated(lost)
        self._seats |= moved
        self.hosts.watcher.moved(self.hosts.round, moved)
