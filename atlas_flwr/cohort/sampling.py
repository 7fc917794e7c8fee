# SPDX-License-Identifier: Apache-2.0
"""Node sampling: as many as FedAvg takes, drawn from the run's seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from logging import INFO, WARNING

from flwr.serverapp import Grid
from flwr.serverapp.strategy.strategy_utils import sample_nodes

from atlas_flwr.cohort.roster import Roster
from atlas_flwr.log import flower_log, log
from atlas_flwr.seeds import derive_seed

__all__ = ["draw", "sample", "sample_size"]


def sample(
    grid: Grid,
    roster: Roster,
    size: tuple[float, int, int],
    seed: int,
    what: str,
    server_round: int,
) -> list[int]:
    """Wait for nodes as FedAvg does, learn who they are, and draw some of them.

    Who is still at a former round is not drawn. Where that is everybody, as after one
    in which nobody answered in time, all begin again: late replies are taken in with
    those of a round, and would not be where nobody is asked.

    Parameters
    ----------
    grid : Grid
        Reaches them.
    roster : Roster
        Learns who is behind each.
    size : tuple[float, int, int]
        Fraction of the connected nodes, fewest of them, fewest connected.
    seed, server_round : int
        Draw.
    what : str
        ``"train"`` or ``"evaluate"``.
    """
    fraction, minimum, available = size
    count = sample_size(len(list(grid.get_node_ids())), fraction, minimum)
    _, connected = sample_nodes(grid, available, count)
    roster.learn(grid, connected)
    known = roster.order(connected)
    free = _free(known, roster)
    if what == "train" and known and not free:
        told = "round %d: all of %d clients are late, and are asked anew"
        log(WARNING, told, server_round, len(known))
        roster.give_up()
        free = _free(known, roster)
    nodes = draw(free, min(count, len(free)), seed, what, server_round)
    message = "configure_%s: Sampled %s nodes (out of %s)"
    flower_log(INFO, message, what, len(nodes), len(connected))
    return nodes


def _free(nodes: Sequence[int], roster: Roster) -> list[int]:
    """Leave out who is at a former round, perhaps on a node that it had then."""
    busy = set(map(roster.client, roster.busy()))
    return [node for node in nodes if roster.client(node) not in busy]


def sample_size(num_nodes: int, fraction: float, minimum: int) -> int:
    """Return FedAvg's sample size: ``max(int(num_nodes * fraction), minimum)``."""
    return max(int(num_nodes * fraction), minimum)


def draw(nodes: Sequence[int], size: int, seed: int, *names: object) -> list[int]:
    """Draw ``size`` of the nodes without replacement, keeping their order.

    Parameters
    ----------
    nodes : Sequence[int]
        Candidates, in an order that is the same in every run.
    size : int
        At most ``len(nodes)`` are drawn.
    seed : int
        The run's seed.
    *names : object
        What is drawn for: the round, ``"train"`` or ``"evaluate"``.
    """
    if size >= len(nodes):
        return list(nodes)
    rng = random.Random(derive_seed(seed, "sample", *names))
    chosen = set(rng.sample(range(len(nodes)), size))
    return [node for index, node in enumerate(nodes) if index in chosen]
