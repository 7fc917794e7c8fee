# SPDX-License-Identifier: Apache-2.0
"""How long a round would take, as ``atlas-flwr plan --round`` shows it."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from atlas_flwr.budget import Rates, Traveller
    from atlas_flwr.config import RunConfig
    from atlas_flwr.server_apps.assignment import DeviceRule

__all__ = ["check_round", "round_shown"]

PARTS = (1, 2, 4)


def check_round(config: RunConfig) -> None:
    """Refuse a run in which no trunk stands between all clients.

    Raises
    ------
    ConfigError
        If there is none, or clients carry it.
    """
    from atlas_flwr.errors import ConfigError

    why = config.unsplit
    if not why and config.trunk == "peers":
        why = "trunk='peers': each host has a queue of its own"
    if why:
        raise ConfigError(
            [
                f"--round with {why}, and the clock is of one trunk for all; leave "
                "--round out, or plan a run with such a trunk"
            ]
        )


def round_shown(
    config: RunConfig,
    rule: DeviceRule,
    rates: Rates,
    clients: int,
    spread: float,
    trunks: int,
) -> str:
    """Simulate a round in which clients are dealt the devices in turn.

    Parameters
    ----------
    config : RunConfig
        The run's.
    rule : DeviceRule
        Gives devices their cuts.
    rates : Rates
        Of the fastest client, its link, and each trunk.
    clients : int
        How many there are.
    spread : float
        Speeds and links are log-uniform from a ``spread``-th to the whole of the rates,
        drawn by the run's seed.
    trunks : int
        Replicas, whose clients are as many.
    """
    from atlas_flwr.budget import QUEUES, TrunkRate, simulate

    travellers = drawn(config, rule, rates, clients, spread, trunks)
    made = [TrunkRate(1.0)] * trunks  # as work is counted in seconds
    path = max(t.steps * (t.outside + t.rows) for t in travellers)
    lines = [
        f"a round of {clients} clients, {travellers[0].steps} steps each, on "
        f"{trunks} trunk{'s' * (trunks > 1)}; speeds and links are drawn over "
        f"{spread:g}x; the slowest client alone would take {_told(path)} s",
        f"  {'trunk-queue':14}{'micro-batches':>14}{'seconds':>10}{'trunk busy':>12}",
    ]
    for name, queue in QUEUES.items():
        for parts in PARTS:
            found = simulate(travellers, made, queue=queue, parts=parts)
            busy = 100 * sum(found.busy) / (found.seconds * trunks)
            mark = "*" if (name, parts) == (config.trunk_queue, 1) else " "
            lines.append(
                f"{mark} {name:14}{parts:>14}{_told(found.seconds):>10}{busy:>10.0f} %"
            )
    return "\n".join(lines)


def _told(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.3g}"


def drawn(
    config: RunConfig,
    rule: DeviceRule,
    rates: Rates,
    clients: int,
    spread: float,
    trunks: int,
) -> list[Traveller]:
    """Draw the clients of a round."""
    from atlas_flwr.budget import Traveller

    chance = random.Random(config.seed)
    cuts = [rule.cut_at(cut).planned(memory) for memory, cut in config.kinds]
    made = []
    for number in range(clients):
        cut = cuts[number % len(cuts)]
        own = replace(
            rates,
            client_flops=rates.client_flops * spread ** (chance.random() - 1),
            link_bits=rates.link_bits * spread ** (chance.random() - 1),
        )
        step = rule.seconds(own, cut.head, cut.tail)
        blocks = cut.head + (cut.tail or 0)
        made.append(
            Traveller(
                head=step.client * cut.head / blocks,
                tail=None if cut.tail is None else step.client * cut.tail / blocks,
                link=step.link / (2 if cut.tail is None else 4),
                rows=step.trunk,
                steps=config.local_steps * config.accumulate,
                trunks=(number % trunks,),
            )
        )
    return made
