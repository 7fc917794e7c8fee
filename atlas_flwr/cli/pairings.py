# SPDX-License-Identifier: Apache-2.0
"""Who would carry the trunk for whom, as ``atlas-flwr plan`` shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atlas_flwr.budget import Guest, Host, Pairing
    from atlas_flwr.budget.chains import Way
    from atlas_flwr.config import RunConfig
    from atlas_flwr.server_apps.peers import PeerNeed
    from atlas_flwr.train.weights import ModelFiles

__all__ = ["pairing_shown"]

MIB = 1 << 20


def pairing_shown(config: RunConfig, files: ModelFiles, clients: int) -> str:
    """Say who would carry the trunk for whom, before anybody is clustered.

    Parameters
    ----------
    config : RunConfig
        The run's.
    files : ModelFiles
        Its model.
    clients : int
        How many there are.
    """
    from atlas_flwr.budget import Guest, Host, pair, ways_of
    from atlas_flwr.client_apps.identity import dealt_offer
    from atlas_flwr.server_apps.build import covering_plan
    from atlas_flwr.server_apps.peers import PeerNeed, last_resort

    outline = files.outline()
    blocks = covering_plan(config, outline).trunk_range(outline.num_layers)
    need = PeerNeed(config, outline, files.dtype)
    offers = {str(i): dealt_offer(config, i, clients) for i in range(clients)}
    last = last_resort(config)
    hosts = [
        Host(name, offer.memory, offer.trust, speed=offer.speed, link=offer.link)
        for name, offer in offers.items()
        if offer.memory
    ]
    lent = {host.client: host.memory for host in hosts}
    everyone = [*hosts, *([last] if last else [])]
    guests = [Guest(name, o.trust, link=o.link) for name, o in offers.items()]
    ways = ways_of(everyone, blocks, need, clients)
    found = pair(
        guests, everyone, ways, even=need.even, direct=config.peer_chains == "direct"
    )
    head = (
        f"peers: {len(hosts)} of {clients} clients lend memory; the trunk has "
        f"{len(blocks)} blocks and takes {need(len(blocks), 1) / MIB:.0f} MiB with one "
        "guest"
    )
    steps = _Steps({h.client: h for h in everyone}, {g.client: g for g in guests}, need)
    return "\n".join([head, *_lines(found, lent, steps)])


class _Steps(NamedTuple):
    """What a step takes, by the speeds and links that are said."""

    hosts: dict[str, Host]
    guests: dict[str, Guest]
    need: PeerNeed

    def seconds(self, way: Way, names: list[str]) -> float:
        """Return what a way's slowest guest waits for, without its own work."""
        from atlas_flwr.budget.pairing import crossings

        common, blocks = self.need.common_step, way[-1].stop - way[0].first
        passed = [(self.hosts[link.host], len(link.blocks) / blocks) for link in way]
        computed = common.trunk * sum(share / host.speed for host, share in passed)
        others = [[host for host, _ in passed if host.client != name] for name in names]
        shared = sum(common.link / host.link for found in others for host in found)
        direct = self.need.config.peer_chains == "direct"
        own = (
            crossings(name, way, direct) * common.link / self.guests[name].link
            for name in names
        )
        return len(names) * computed + shared + max(own)


def _lines(found: Pairing, lent: dict[str, int], steps: _Steps) -> Iterator[str]:
    guests: dict[Way, list[str]] = {}
    for client, way in found.ways.items():
        guests.setdefault(way, []).append(client)
    for way, names in guests.items():
        hosts = " → ".join(
            _host(k.host, k.first, k.stop, lent, steps.need, len(names)) for k in way
        )
        seconds = steps.seconds(way, names)
        yield f"  {hosts}: carries {', '.join(names)}; {seconds:.2g} s a step"
    if found.alone and not guests:
        yield "  nobody has room for any client, and the run would end so; lend more"
    elif found.alone:
        yield f"  nobody has room for {', '.join(found.alone)}, who take turns"


def _host(
    host: str, first: int, stop: int, lent: dict[str, int], need: PeerNeed, guests: int
) -> str:
    taken = need(stop - first, guests) / MIB
    of = f" of {lent[host] / MIB:.0f}" if host in lent else ""
    return f"{host} [blocks {first} to {stop - 1}, {taken:.0f}{of} MiB]"
