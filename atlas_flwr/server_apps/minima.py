# SPDX-License-Identifier: Apache-2.0
"""Fewest clients that a run asks for, held against those that there are.

In a simulation nobody joins later: a run that wants more than there are would wait for
ever. A minimum that is the app's is lowered, one that was given for the run is refused.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from logging import WARNING

from flwr.app import UserConfigValue
from flwr.serverapp import Grid
from flwr.superlink.grid import HttpGrid

from atlas_flwr.cohort.roster import Roster
from atlas_flwr.config import RunConfig, split_list
from atlas_flwr.errors import ConfigError
from atlas_flwr.log import log
from atlas_flwr.ordering import by_number
from atlas_flwr.protocol.sketches import FEWEST_SKETCHED
from atlas_flwr.protocol.sums import FEWEST

__all__ = ["Minima", "may_come_later", "with_minima_met"]

LEAST = "min-cluster-size"  # never lowered: it is a promise to clients
SECURE = "secure-aggregation"
KEYS = ("min-available-nodes", "min-train-nodes", "min-evaluate-nodes")
POLL = 0.1


class Minima:
    """The minima that no round can meet.

    Parameters
    ----------
    merged : Mapping[str, UserConfigValue]
        The run's keys and values.
    given : Collection[str]
        Keys that were given for this run; the others are the app's.
    clients : int
        Clients in all.
    refused : int
        Of whom the run cannot take so many, whoever they are.
    able : int
        Of whom so many at least take part.

    Attributes
    ----------
    there : int
        Clients less those that are left out; in a simulation ids are numbers.
    """

    def __init__(
        self,
        merged: Mapping[str, UserConfigValue],
        given: Collection[str],
        clients: int,
        refused: int = 0,
        able: int = 0,
    ) -> None:
        left_out = {*split_list(str(merged.get("without-clients", "")))}
        self.clients = clients
        known = {str(client) for client in range(clients)}
        self._strange = sorted(left_out - known, key=by_number) if clients else []
        there = len(known - left_out)
        self.there = max(there - refused, able)  # who is refused may be left out, too
        self._given = given
        least = merged.get(LEAST, 1)
        self._least = least if isinstance(least, int) else 1
        # ATLAS sums sketches, one for each cluster.
        summed = FEWEST_SKETCHED if merged.get("strategy") == "atlas" else FEWEST
        self._summed = summed if merged.get(SECURE) is True else 0
        self._above = {
            key: value
            for key in KEYS
            if clients > 0
            and isinstance(value := merged.get(key), int)
            and value > self.there
        }

    @property
    def lowered(self) -> dict[str, int]:
        """What those of the app become; nothing where nobody is left."""
        if not self.there:
            return {}
        return {key: self.there for key in self._above if key not in self._given}

    def notes(self) -> tuple[str, ...]:
        """Say so, a line each."""
        return tuple(
            f"{key} is lowered from {self._above[key]} to {value}: so many clients "
            "there are"
            for key, value in self.lowered.items()
        )

    def problems(self) -> Iterator[str]:
        """Yield what cannot be lowered, as the user wants it."""
        if self._strange:
            # Who would be unlearned is in the run, if the name is a slip.
            yield (
                f"without-clients names {', '.join(self._strange)}, and there is no "
                f"such client: those of a simulation are 0 to {self.clients - 1}"
            )
        if self.there == 0 and self.clients > 0:
            yield (
                f"without-clients leaves none of the {self.clients} clients, and "
                "nobody would train; leave fewer out, or have more (-n)"
            )
            return
        left_out = self.clients - self.there
        less = f", of whom {self.there} take part" if left_out else ""
        for key, value in self._above.items():
            if key in self._given:
                yield (
                    f"{key}={value} with {self.clients} clients{less}: the run would "
                    f"wait for ever; lower it to {self.there} at most, or have "
                    f"{value + left_out} clients (-n)"
                )
        if self.clients > 0 and self._least > self.there:
            yield (
                f"{LEAST}={self._least} with {self.clients} clients{less}: no cluster "
                f"can have so many; lower it to {self.there} at most, or have "
                f"{self._least + left_out} clients (-n)"
            )
        if self.clients > 0 and self._summed > self.there:
            yield (
                f"{SECURE}=true with {self.clients} clients{less}: a secure sum is of "
                f"{self._summed} at least; have {self._summed + left_out} clients "
                f"(-n), or set {SECURE}=false"
            )


def may_come_later(grid: Grid) -> bool:
    """Whether nodes may join: a deployment's SuperNodes, not a simulation's."""
    return isinstance(grid, HttpGrid)


def with_minima_met(
    config: RunConfig, given: Collection[str], grid: Grid, roster: Roster
) -> RunConfig:
    """Lower a simulation's minima to its clients; ``roster`` learns who they are.

    Raises
    ------
    ConfigError
        If that would change what was given for the run, or nobody would take part.
    """
    if may_come_later(grid):
        return config
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(POLL)  # Flower registers them a moment after the ServerApp
    roster.learn(grid, nodes)
    profiles, without = roster.profiles.values(), split_list(config.without_clients)
    clients = max((p.partitions for p in profiles), default=0)
    able = sum(profile.client not in without for profile in profiles)
    names = (*KEYS, LEAST, SECURE, "strategy", "without-clients")
    merged = {key: getattr(config, key.replace("-", "_")) for key in names}
    found = Minima(merged, given, clients, roster.refused, able)
    if problems := list(found.problems()):
        raise ConfigError(problems)
    for note in found.notes():
        log(WARNING, "%s", note)
    lowered = found.lowered
    return replace(
        config,
        min_available_nodes=lowered.get(KEYS[0], config.min_available_nodes),
        min_train_nodes=lowered.get(KEYS[1], config.min_train_nodes),
        min_evaluate_nodes=lowered.get(KEYS[2], config.min_evaluate_nodes),
    )
