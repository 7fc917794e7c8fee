# SPDX-License-Identifier: Apache-2.0
"""Phases 1 and 2 over the rounds: who is like whom, and what each is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from logging import WARNING
from typing import Any

import numpy as np
from flwr.app import ConfigRecord
from flwr.serverapp import Grid
from numpy.typing import NDArray

from atlas_flwr.budget import Guest, Host, per_byte
from atlas_flwr.clustering import Clusters, detect_drift
from atlas_flwr.cohort.assigned import Assignments
from atlas_flwr.cohort.discovery import Discovery
from atlas_flwr.cohort.fingerprints import ask_fingerprints
from atlas_flwr.cohort.roster import Roster
from atlas_flwr.cohort.trunk_sessions import TrunkSessions
from atlas_flwr.errors import AdapterError, BudgetError, RoundError
from atlas_flwr.log import log
from atlas_flwr.protocol import keys
from atlas_flwr.protocol.profile import Assigned, Profile
from atlas_flwr.report.events import Clustered

__all__ = ["RoundPlanner"]


@dataclass
class RoundPlanner:
    """What is known of every client: its cluster, its importances, what it was given.

    Parameters
    ----------
    roster : Roster
        Who is behind each node.
    discovery : Discovery
        Sketches and clusters.
    assignments : Assignments
        Cuts and ranks.
    sessions : TrunkSessions, optional
        The trunk, through which split clients take their fingerprints.
    asks : bool
        Whether clients know ``query.fingerprint``.
    importance : bool
        Whether to ask for the importance of layers, too.
    needs_sketches : bool
        Whether sketches are needed even where nobody is clustered.
    every : int
        Rounds between clusterings; 0 for new ones only as more clients are known.
    """

    roster: Roster
    discovery: Discovery
    assignments: Assignments
    sessions: TrunkSessions | None = None
    asks: bool = False
    importance: bool = False
    needs_sketches: bool = False
    every: int = 0
    _importances: dict[int | None, Mapping[str, float]] = field(default_factory=dict)

    def forget(self) -> None:
        """Forget what clients said and were given: another training begins."""
        self.discovery.forget()
        self.assignments.forget()

    def take(
        self,
        server_round: int,
        nodes: Sequence[int],
        config: ConfigRecord,
        grid: Grid,
        shapes: Mapping[str, tuple[int, int]],
    ) -> list[int]:
        """Ask the nodes of a training round; return those that can take part.

        Raises
        ------
        RoundError
            If none can, and nobody has a cluster yet.
        """
        if not self.asks:
            return list(nodes)
        everyone = not self.discovery.fitted or self.is_due(server_round)
        asked = nodes if everyone else self.unknown(nodes)
        self.ask(server_round, asked, config, grid, shapes)
        able = [n for n in nodes if self.discovery.knows(self.roster.client(n))]
        if nodes and not able:
            told = f"round {server_round}: none of {len(nodes)} clients has a sketch"
            if not self.discovery.fitted:
                raise RoundError(
                    f"{told}: nobody can be clustered; why is in the warnings above"
                )
            log(WARNING, "%s, so nobody trains in it", told)
        return able

    def ask(
        self,
        server_round: int,
        nodes: Sequence[int],
        config: ConfigRecord,
        grid: Grid,
        shapes: Mapping[str, tuple[int, int]],
    ) -> None:
        """Ask nodes for fingerprints, and refuse by name what does not fit.

        Parameters
        ----------
        server_round, config : int, ConfigRecord
            Go into the messages.
        nodes : Sequence[int]
            To ask; may be empty.
        grid : Grid
            Reaches them.
        shapes : Mapping[str, tuple[int, int]]
            (d_out, d_in) of the adapted layers.
        """
        if not nodes:
            return
        nodes = self.admitted("fingerprint", server_round, nodes)
        entries = ConfigRecord({**config, keys.SERVER_ROUND: server_round})
        found = ask_fingerprints(
            grid, nodes, entries, self.roster, self.sessions, self.importance
        )
        self._tell_drift(found.sketches)
        for client, sketch in found.sketches.items():
            try:
                if self.importance:
                    share = per_byte(found.sensitivities[client], shapes)
                    examples = found.examples.get(client, 1.0)
                    self.assignments.learn(client, share, examples)
                self.discovery.add(client, sketch)
            except (AdapterError, BudgetError) as error:
                log(WARNING, "client %s: fingerprint refused: %s", client, error)

    def _tell_drift(self, sketches: Mapping[str, NDArray[np.float32]]) -> None:
        """Name the clients whose data have changed since they were last asked."""
        known = self.discovery.sketches
        again = [c for c, new in sketches.items() if _has_parts(known.get(c), new)]
        if not again:
            return
        before, after = ([s[c] for c in again] for s in (known, sketches))
        drift = detect_drift(np.stack(before), np.stack(after))
        moved = [c for c, has in zip(again, drift.drifted, strict=True) if has]
        if moved:
            log(WARNING, "the data of clients %s have changed", ", ".join(moved))

    def unknown(self, nodes: Sequence[int]) -> list[int]:
        """Return the nodes that have yet to be asked."""
        if not self.asks:
            return []
        known, measured = self.discovery.knows, self.assignments.importances
        clients = {n: self.roster.client(n) for n in nodes}
        return [
            n
            for n, client in clients.items()
            if not known(client)
            or (self.importance and client not in measured)
            or (self.needs_sketches and client not in self.discovery.sketches)
        ]

    def is_due(self, server_round: int) -> bool:
        """Tell whether clients are asked and clustered anew in a round."""
        return bool(self.every) and (server_round - 1) % self.every == 0

    @property
    def has_grown(self) -> bool:
        """Whether far more clients are known than the clusters were made of.

        That is twice as many, or for the first time all of the federation: where few
        take part in a round, its first clusters are of few.
        """
        known, fitted = self.discovery.sketches, self.discovery.fitted_on
        fleet = self.roster.fleet.keys()  # of those known some may have left
        is_first = fleet <= known.keys() and not fleet <= {*fitted}
        return len(known) >= 2 * len(fitted) or is_first

    def cluster(self, server_round: int) -> Clusters | None:
        """Cluster where that is due; ``None`` where it is not."""
        self._importances = {}
        is_due = self.is_due(server_round) or self.has_grown
        if self.discovery.fitted and not is_due:
            return None
        return self.discovery.fit()

    def clustered(self, server_round: int) -> Clustered | None:
        """Return what there is to tell of the clusters; ``None`` without any."""
        found, known = self.discovery.clusters, self.discovery
        if found is None:
            return None
        return Clustered(
            server_round,
            known.labels(),
            found.k,
            found.silhouette,
            stability=known.stability(),
            memberships=known.memberships(),
            joined=found.joins if known.least > 1 else None,
        )

    def assigned(self, node: int) -> Assigned | None:
        """Return what a node is given, by its memory and its cluster's importances."""
        profile = self._profile(node)
        return self.assignments.of(profile, self._importance(profile.client))

    def admitted(self, what: str, server_round: int, nodes: Sequence[int]) -> list[int]:
        """Return the nodes that have a place on the trunk, for a kind of message."""
        if self.sessions is None or not nodes:
            return list(nodes)
        guests = {node: self._guest(self._profile(node)) for node in nodes}
        hosts = [self._host(p) for p in self.roster.fleet.values() if p.offer.memory]
        found = [*guests.values()]
        able = self.sessions.admit(what, server_round, found, hosts)
        return [node for node, guest in guests.items() if guest.client in able]

    def _profile(self, node: int) -> Profile:
        return self.roster.profiles.get(node, Profile(self.roster.client(node)))

    def _guest(self, profile: Profile) -> Guest:
        cluster = self.discovery.label(profile.client)
        return Guest(profile.client, profile.offer.trust, cluster, profile.offer.link)

    def _host(self, profile: Profile) -> Host:
        offer, cluster = profile.offer, self.discovery.label(profile.client)
        return Host(
            profile.client, offer.memory, offer.trust, cluster, offer.speed, offer.link
        )

    def sketches(
        self, group: Callable[[str], str | None]
    ) -> dict[str, NDArray[np.float64]]:
        """Return the mean sketch of each group, of those clients that have one."""
        members: dict[str, list[NDArray[np.float64]]] = {}
        for client, sketch in self.discovery.sketches.items():
            name = group(client)
            if name is not None:
                members.setdefault(name, []).append(_direction(sketch))
        return {
            name: np.asarray(np.mean(found, axis=0)) for name, found in members.items()
        }

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, object]]:
        """Return what a resumed run needs: arrays, and JSON values."""
        found = self.discovery
        arrays, values = self.assignments.state()
        sketches = {f"sketch/{c}": sketch for c, sketch in found.sketches.items()}
        return {**sketches, **arrays}, {
            "sketched": list(found.sketches),
            "fitted-on": list(found.fitted_on),
            "cluster-numbers": list(found.numbers),
            "next-cluster-number": found.next_number,
            "places": self.sessions.state() if self.sessions else {},
            **values,
        }

    def restore(
        self, arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any]
    ) -> None:
        """Take up what :meth:`state` returned."""
        self.discovery.restore(
            {c: arrays[f"sketch/{c}"] for c in values["sketched"]},
            values["fitted-on"],
            values["cluster-numbers"],
            values["next-cluster-number"],
        )
        self.assignments.restore(arrays, values)
        if self.sessions is not None:
            self.sessions.restore(values.get("places", {}))

    def _importance(self, client: str) -> Mapping[str, float]:
        label = self.discovery.label(client)
        if label not in self._importances:
            measured = self.assignments.importances
            members = [c for c in measured if self.discovery.label(c) == label]
            self._importances[label] = self.assignments.cluster(members)
        return self._importances[label]


def _direction(sketch: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the mean of a sketch's parts, scaled to unit norm."""
    mean = np.atleast_2d(sketch).mean(0, dtype=np.float64)
    direction: NDArray[np.float64] = mean / max(float(np.linalg.norm(mean)), 1e-12)
    return direction


def _has_parts(old: NDArray[np.float32] | None, new: NDArray[np.float32]) -> bool:
    same = old is not None and old.shape == new.shape
    return same and new.ndim == 2 and new.shape[0] >= 2
