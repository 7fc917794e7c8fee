# SPDX-License-Identifier: Apache-2.0
"""A round on a simulated clock over chains of peers: relayed by the guest, or direct.

Run from the top of the repository::

    python benchmarks/peer_chains.py

SmolLM2's shape, 8 texts of 48 tokens a step, a cut of 1/1, uncompressed, and
trunk-recompute. Clients compute at 10 to 100 GFLOP/s; a third of them lend so little
that two, three or five make a chain, and all guests have room. Both are paired by speed
and link at the price that they have. Each step is client, link, trunk, and so on
through the chain and back (atlas_flwr.budget.clock): a host does one pass at a time,
the longest way first, and its guests share its link evenly. Prints a Markdown table,
the means of two seeds.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from atlas_flwr.budget import (
    COMMON_FLOPS,
    QUEUES,
    Guest,
    Host,
    Rates,
    Traveller,
    TrunkRate,
    pair,
    simulate,
    step_time,
    ways_of,
)
from atlas_flwr.budget.chains import Need, Way
from atlas_flwr.budget.pairing import crossings
from atlas_flwr.config import load_config
from atlas_flwr.server_apps.peers import PeerNeed
from atlas_flwr.train.weights import ModelFiles

CLIENTS, STEPS, SEEDS = 90, 8, range(2)
MEGA, GIGA, MIB = 1e6, 1e9, 1 << 20
BATCH, LENGTH = 8, 48
# Slowest links of guests and of hosts; the fastest are twenty times as fast.
FLEETS = {
    "0.5 to 10, hosts too": (0.5 * MEGA, 0.5 * MEGA),
    "0.5 to 10, hosts 5 to 100": (0.5 * MEGA, 5 * MEGA),
    "5 to 100, hosts too": (5 * MEGA, 5 * MEGA),
}
LENT = (560, 480, 410)  # MiB


@dataclass(frozen=True)
class Machine:
    flops: float
    bits: float


@dataclass(frozen=True)
class Fleet:
    """Clients, the first third of which are hosts."""

    need: PeerNeed
    bytes_of: Need
    machines: list[Machine]
    lent: int

    def ways(self, direct: bool) -> dict[int, Way]:
        """Pair all of them."""
        blocks = range(1, self.need.outline.num_layers - 1)
        hosts = [
            Host(str(k), self.lent, speed=m.flops / COMMON_FLOPS, link=m.bits)
            for k, m in enumerate(self.machines[: CLIENTS // 3])
        ]
        guests = [Guest(str(k), link=m.bits) for k, m in enumerate(self.machines)]
        bears = ways_of(hosts, blocks, self.bytes_of, CLIENTS)
        found = pair(guests, hosts, bears, even=self.need.even, direct=direct)
        return {int(client): way for client, way in found.ways.items()}


@dataclass(frozen=True)
class Found:
    """What a round came to: seconds, and bytes over guests' and hosts' links."""

    hosts: float
    seconds: float
    mean: float
    guest: float
    host: float


def run(fleet: Fleet, direct: bool) -> Found:
    """Run a round."""
    ways = fleet.ways(direct)
    one = Rates(1.0, 1.0, 1.0)
    work = step_time(
        fleet.need.rule.architecture, one, head=1, tail=1, batch=BATCH, length=LENGTH
    )
    bits = work.link / 4  # of one crossing
    strangers = Counter(
        int(k.host) for c, way in ways.items() for k in way if int(k.host) != c
    )
    shares = {h: fleet.machines[h].bits / max(n, 1) for h, n in strangers.items()}
    blocks = fleet.need.outline.num_layers - 2
    places = {k: n for n, k in enumerate({k: None for w in ways.values() for k in w})}
    rates = [
        TrunkRate(
            work.trunk * len(k.blocks) / blocks / fleet.machines[int(k.host)].flops
        )
        for k in places
    ]

    def between(client: int, one: int, other: int) -> float:
        """Seconds of a crossing between two machines, of which one may be a guest."""
        if one == other:
            return 0.0
        ends = (
            fleet.machines[end].bits if end == client else shares[end]
            for end in (one, other)
        )
        return bits / min(ends)

    travellers, moved = [], 0.0
    for client, way in ways.items():
        hosts = [int(k.host) for k in way]
        first, *rest = (between(client, client, host) for host in hosts)
        seams = [between(client, one, other) for one, other in pairwise(hosts)]
        own = work.client / 2 / fleet.machines[client].flops
        travellers.append(
            Traveller(
                own,
                own,
                first,
                steps=STEPS,
                trunks=tuple(places[k] for k in way),
                links=tuple(rest),
                seams=tuple(seams) if direct else (),
            )
        )
        moved += 4 * STEPS * bits / 8 * crossings(str(client), way, direct)
    if len(ways) < CLIENTS:
        raise SystemExit(f"{CLIENTS - len(ways)} sit out: let hosts lend more")
    found = simulate(travellers, rates, queue=QUEUES["longest-path"])
    return Found(
        sum(map(len, ways.values())) / len(ways),
        found.seconds,
        sum(found.ends) / len(found.ends),
        moved / len(ways) / MEGA,
        4 * STEPS * bits / 8 * max(strangers.values()) / MEGA,
    )


def machines(chance: random.Random, guests: float, hosts: float) -> list[Machine]:
    slowest = [hosts] * (CLIENTS // 3) + [guests] * (CLIENTS - CLIENTS // 3)
    return [
        Machine(10 * GIGA * 10 ** chance.random(), bits * 20 ** chance.random())
        for bits in slowest
    ]


def main() -> None:
    config = load_config(
        {
            "model": "smollm2",
            "batch-size": BATCH,
            "max-length": LENGTH,
            "cut": "1/1",
            "trunk-recompute": True,
        }
    )
    files = ModelFiles.of(config, "cpu")
    need = PeerNeed(config, files.outline(), files.dtype)
    bytes_of = cache(need.__call__)
    print("| links, Mbit/s | hosts a chain | chains | MB of a guest | ", end="")
    print("of the fullest host | seconds a round | of the mean client |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, slowest in FLEETS.items():
        for lent in LENT:
            for direct in (False, True):
                rounds = [
                    run(
                        Fleet(
                            need,
                            bytes_of,
                            machines(random.Random(s), *slowest),
                            lent * MIB,
                        ),
                        direct,
                    )
                    for s in SEEDS
                ]
                mean = [
                    sum(getattr(f, field) for f in rounds) / len(rounds)
                    for field in ("hosts", "guest", "host", "seconds", "mean")
                ]
                hosts, guest, host, seconds, each = mean
                how = "direct" if direct else "relay"
                print(
                    f"| {name} | {hosts:.1f} | {how} | {guest:.0f} | {host:.0f} | "
                    f"{seconds:.0f} | {each:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
