# SPDX-License-Identifier: Apache-2.0
"""Clusters over the rounds: made where that is due, and told of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from logging import INFO

from flwr.app import Message

from atlas_flwr.aggregation import Contribution
from atlas_flwr.aggregation.groups import ClusterAdapters
from atlas_flwr.cohort.exchange import Exchange
from atlas_flwr.cohort.planning import RoundPlanner
from atlas_flwr.cohort.updates import sketch_updates
from atlas_flwr.log import log
from atlas_flwr.report.events import Event

__all__ = ["Reclustering"]


@dataclass
class Reclustering:
    """Clusters clients, and lets what their groups have learned follow them.

    Parameters
    ----------
    planner : RoundPlanner
        Clusters the clients.
    adapters : ClusterAdapters
        What each group has learned.
    group : Callable[[str], str or None]
        Returns a client's group; ``None`` for one that is in none yet.
    alone : bool
        Whether each client is a group of its own, whatever its cluster.
    on_event : Callable[[Event], None]
        Told of new clusters.
    """

    planner: RoundPlanner
    adapters: ClusterAdapters
    group: Callable[[str], str | None]
    alone: bool
    on_event: Callable[[Event], None]
    _told: Mapping[str, int] = field(default_factory=dict)

    def forget(self) -> None:
        """Forget which clusters were told of: another training begins."""
        self._told = {}

    def cluster(self, server_round: int) -> bool:
        """Cluster where that is due; tell whether groups were made anew."""
        discovery = self.planner.discovery
        before = discovery.labels()
        is_new = self.planner.cluster(server_round) is not None
        anew = is_new and bool(before) and not self.alone
        if anew:
            self.adapters.regroup(before, discovery.labels())
        self.tell(server_round)
        return anew

    def tell(self, server_round: int) -> None:
        """Tell of each client's cluster where one has changed or is new."""
        if self.planner.discovery.labels() == self._told:
            return  # the event's figures take twenty clusterings
        if event := self.planner.clustered(server_round):
            self._told = event.clusters
            log(INFO, "clusters: %d, of %d clients", event.k, len(event.clusters))
            self.on_event(event)

    def sketched(
        self,
        server_round: int,
        exchange: Exchange,
        accepted: Sequence[tuple[Message, Contribution]],
    ) -> list[Contribution]:
        """Cluster new clients by their updates.

        Parameters
        ----------
        server_round : int
            From 1.
        exchange : Exchange
            Knows what each client was sent.
        accepted : Sequence[tuple[Message, Contribution]]
            The round's replies.

        Returns
        -------
        list[Contribution]
            Those of clients whose group is not what they were sent count as late.
        """
        new = {p.client for _, p in accepted if self.group(p.client) is None}
        sketch_updates(self.planner.discovery, exchange, accepted)
        anew, held = self.cluster(server_round), self.adapters.groups
        moved = {p.client for _, p in accepted if anew or p.client in new}
        moved = {client for client in moved if self.group(client) in held}
        return [replace(p, late=p.late or p.client in moved) for _, p in accepted]
