# SPDX-License-Identifier: Apache-2.0
"""A run's trunk as one, or as several replicas behind one handle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from logging import INFO, WARNING

from atlas_flwr.budget.chains import Link
from atlas_flwr.log import log
from atlas_flwr.report.events import Event, ReplicaLost, ReplicaMoved
from atlas_flwr.server_apps.build import RunContext, covering_plan
from atlas_flwr.trunk import Endpoint
from atlas_flwr.trunk.hosts.peer_hosts import PeerHosts
from atlas_flwr.trunk.hosts.replicas import Replicas

__all__ = ["replicas_of"]

StartTrunk = Callable[[], AbstractContextManager[Endpoint]]


@dataclass(frozen=True)
class _Telling:
    """Writes down what happens to replicas.

    Attributes
    ----------
    on_event : Callable[[Event], None]
        Receives it.
    """

    on_event: Callable[[Event], None]

    def started(self, server_round: int, replica: str) -> None:
        """One that was lost is there again."""
        log(WARNING, "%s of the trunk is started again", replica)

    def seated(self, what: str, seats: Mapping[str, str]) -> None:
        """Clients have a replica each."""
        found = sorted(Counter(seats.values()).items())
        loads = ", ".join(f"{replica}: {number}" for replica, number in found)
        log(INFO, "%s, clients by replica of the trunk: %s", what, loads)

    def lost(self, server_round: int, host: str, reason: str) -> None:
        """A replica does not answer any more."""
        log(WARNING, "%s of the trunk is lost: %s", host, reason)
        self.on_event(ReplicaLost(server_round, host, reason))

    def moved(self, server_round: int, seats: Mapping[str, str]) -> None:
        """Clients of one that was lost have others."""
        log(WARNING, "%d clients go on at other replicas of the trunk", len(seats))
        self.on_event(ReplicaMoved(server_round, seats))


@contextmanager
def replicas_of(
    setting: RunContext, starts: Sequence[StartTrunk], at_once: int
) -> Iterator[Endpoint]:
    """Yield a run's trunk: itself where it is one, else a host that stands for all.

    Parameters
    ----------
    setting : RunContext
        The run.
    starts : Sequence[Callable[[], AbstractContextManager[Endpoint]]]
        Each starts one, or finds it; again if that one is lost.
    at_once : int
        How many it may start at the same time.
    """
    config, layers = setting.config, setting.outline.num_layers
    if len(starts) == 1:
        with starts[0]() as found:
            yield found
        return
    blocks = covering_plan(config, setting.outline).trunk_range(layers)
    links = [
        Link(f"replica {number}", blocks.start, blocks.stop)
        for number in range(1, len(starts) + 1)
    ]
    by_name = {link.host: start for link, start in zip(links, starts, strict=True)}
    told = _Telling(setting.on_event)
    hosts = PeerHosts(lambda link: by_name[link.host](), told, at_once)
    replicas = Replicas(hosts, links, config.trunk_restarts)
    try:
        replicas.start()
        yield Endpoint(replicas, "")
    finally:
        hosts.stop()
