# SPDX-License-Identifier: Apache-2.0
"""A round on a simulated clock: a central trunk, and peers paired in several ways.

Run from the top of the repository::

    python benchmarks/peers.py

SmolLM2's shape, 8 texts of 48 tokens a step, a cut of 1/1. Links are log-uniform from 5
to 100 Mbit/s, and in a second table from 0.5 to 10, clients compute at 10 to 100
GFLOP/s, a third of them lend 4 GiB. Each step is client, link, trunk, link and back
(atlas_flwr.budget.clock): a trunk does one pass at a time, the longest way first, and
its guests share its link evenly. What is learned does not depend on any of it
(tests/server_apps/test_peers.py). Prints what a common step is (docs/decisions/peer-
rates.md), and Markdown tables.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

from atlas_flwr.budget import (
    COMMON_FLOPS,
    QUEUES,
    Architecture,
    Guest,
    Host,
    Rates,
    Round,
    Traveller,
    TrunkRate,
    pair,
    simulate,
    step_time,
    ways_of,
)
from atlas_flwr.config import load_config
from atlas_flwr.server_apps.peers import PeerNeed
from atlas_flwr.train.weights import ModelFiles

CLIENTS, STEPS, SEED = 100, 8, 0
MEGA, GIGA = 1e6, 1e9
BATCH, LENGTH, WIRE = 8, 48, 4
SLOWEST = (5 * MEGA, 0.5 * MEGA)
SERVERS = {"a CPU": 200 * GIGA, "a GPU": 20_000 * GIGA}
SERVER_LINK = 1000 * MEGA


@dataclass(frozen=True)
class Machine:
    flops: float
    bits: float


def machines(chance: random.Random, slowest: float) -> list[Machine]:
    return [
        Machine(10 * GIGA * 10 ** chance.random(), slowest * 20 ** chance.random())
        for _ in range(CLIENTS)
    ]


class Carried:
    """A round of split steps, each client with the trunk that carries it."""

    def __init__(
        self,
        architecture: Architecture,
        clients: list[Machine],
        trunks: dict[int, Machine],
        carried: dict[int, int],
    ) -> None:
        self.clients, self.trunks, self.carried = clients, trunks, carried
        self.guests = Counter(carried.values())
        one = Rates(1.0, 1.0, 1.0)
        work = step_time(architecture, one, head=1, tail=1, batch=BATCH, length=LENGTH)
        self.client_work, self.trunk_work = work.client, work.trunk
        self.bits = work.link / 4  # of one crossing

    def crossing(self, client: int) -> float:
        """Seconds that a step's tensors take one way."""
        host = self.carried[client]
        if host == client:
            return 0.0
        strangers = self.guests[host] - (self.carried.get(host) == host)
        share = self.trunks[host].bits / max(strangers, 1)
        return self.bits / min(self.clients[client].bits, share)

    def round(self) -> Round:
        """Run it."""
        hosts = sorted(self.guests)
        travellers = []
        for client, host in self.carried.items():
            own = self.client_work / 2 / self.clients[client].flops
            link, trunks = self.crossing(client), (hosts.index(host),)
            travellers.append(Traveller(own, own, link, steps=STEPS, trunks=trunks))
        rates = [TrunkRate(self.trunk_work / self.trunks[h].flops) for h in hosts]
        return simulate(travellers, rates, queue=QUEUES["longest-path"])

    def moved(self) -> Counter:
        """Bytes over each trunk's link."""
        found = Counter()
        for client, host in self.carried.items():
            if client != host:
                found[host] += 4 * STEPS * self.bits / 8
        return found


def weak_with_strong(
    clients: list[Machine], room: dict[int, int], seconds: Callable[[int, int], float]
) -> dict[int, int]:
    """Pair as FedPairing does, one to one, and again until all have a host.

    Its edges weigh how far two machines' speeds differ and how fast the link between
    them is (arXiv 2308.13849); the heaviest is taken first. Both weigh alike here.
    """
    speeds = [machine.flops for machine in clients]
    spread, fastest = max(speeds) - min(speeds), max(m.bits for m in clients)

    def weight(pair: tuple[int, int]) -> float:
        guest, host = pair
        apart = (speeds[guest] - speeds[host]) / spread
        return apart**2 + 1 / seconds(guest, host) / fastest

    left, found = dict(room), dict[int, int]()
    edges = sorted(product(range(len(clients)), room), key=weight, reverse=True)
    while len(found) < len(clients) and any(left.values()):
        free = {host for host, most in left.items() if most}
        for guest, host in edges:
            if guest not in found and host in free:
                found[guest] = host
                free.discard(host)
                left[host] -= 1
    return found


def row(name: str, made: Carried, server: bool) -> str:
    """Return a row of the table."""
    found = made.round()
    moved = made.moved()
    mean = sum(found.ends) / len(found.ends)
    at_server = sum(moved.values()) / MEGA if server else 0.0
    fullest = max(moved.values()) / MEGA
    load = 100 * max(found.busy) / found.seconds
    return (
        f"| {name} | {at_server:.0f} | {fullest:.0f} | {found.seconds:.0f} | "
        f"{mean:.0f} | {load:.0f} | {max(made.guests.values())} |"
    )


def main() -> None:
    config = load_config(
        {"model": "smollm2", "batch-size": BATCH, "max-length": LENGTH, "cut": "1/1"}
    )
    files = ModelFiles.of(config, "cpu")
    outline = files.outline()
    need = PeerNeed(config, outline, files.dtype)
    print(
        f"a common step takes {need.common_step.trunk:.2f} s, and so does its crossing "
        f"at {need.even / MEGA:.1f} Mbit/s"
    )
    for slowest in SLOWEST:
        print(f"\nlinks from {slowest / MEGA:g} to {20 * slowest / MEGA:g} Mbit/s\n")
        table(need, slowest)


def table(need: PeerNeed, slowest: float) -> None:
    """Print what a round takes a fleet whose slowest link has so many bits a second."""
    architecture = need.rule.architecture
    blocks = range(1, need.outline.num_layers - 1)
    chance = random.Random(SEED)
    clients = machines(chance, slowest)
    clusters = [chance.randrange(4) for _ in clients]
    lending = sorted(chance.sample(range(CLIENTS), CLIENTS // 3))

    def hosts(speeds: bool = False, links: bool = False) -> list[Host]:
        return [
            Host(
                str(h),
                4 << 30,
                cluster=clusters[h],
                speed=clients[h].flops / COMMON_FLOPS if speeds else 1.0,
                link=clients[h].bits if links else math.inf,
            )
            for h in lending
        ]

    def paired(**said: bool) -> dict[int, int]:
        guests = [
            Guest(str(c), cluster=clusters[c], link=clients[c].bits)
            for c in range(CLIENTS)
        ]
        given = hosts(**said)
        ways = ways_of(given, blocks, need, CLIENTS)
        found = pair(guests, given, ways, even=need.even)
        return {int(c): int(way[0].host) for c, way in found.ways.items()}

    room = ways_of(hosts(), blocks, need, CLIENTS)
    places = [int(way[0].host) for way, most in room.items() for _ in range(most)]
    chance.shuffle(places)
    drawn = dict(zip(range(CLIENTS), places, strict=False))
    by_host = {int(way[0].host): most for way, most in room.items()}

    def seconds(guest: int, host: int) -> float:
        return 1 / min(clients[guest].bits, clients[host].bits)

    print(
        "| trunk | MB over the server's link | MB over the fullest trunk's link | "
        "seconds a round | of the mean client | load of the fullest trunk, % | guests |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, flops in SERVERS.items():
        central = {CLIENTS: Machine(flops, SERVER_LINK)}
        everyone = dict.fromkeys(range(CLIENTS), CLIENTS)
        made = Carried(architecture, clients, central, everyone)
        print(row(f"central, {name}", made, server=True))
    trunks = dict(enumerate(clients))
    for name, carried in {
        "peers, drawn": drawn,
        "peers, weak with strong": weak_with_strong(clients, by_host, seconds),
        "peers, paired, all machines alike": paired(),
        "peers, paired by link": paired(links=True),
        "peers, paired by speed": paired(speeds=True),
        "peers, paired by speed and link": paired(speeds=True, links=True),
    }.items():
        if len(carried) < CLIENTS:
            name = f"{name} ({CLIENTS - len(carried)} sit out)"
        made = Carried(architecture, clients, trunks, carried)
        print(row(name, made, server=False))


if __name__ == "__main__":
    main()
