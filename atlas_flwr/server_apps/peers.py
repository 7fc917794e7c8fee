# SPDX-License-Identifier: Apache-2.0
"""A run's trunk on its peers: in a simulation, in their clients' places."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from logging import INFO, WARNING

import torch

from atlas_flwr.budget import (
    COMMON_FLOPS,
    Host,
    Pairing,
    Rates,
    StepTime,
    TrunkSession,
    trunk_memory,
)
from atlas_flwr.budget.chains import Link, Way
from atlas_flwr.config import RunConfig
from atlas_flwr.log import log
from atlas_flwr.report.events import (
    Event,
    PeerLost,
    PeerMoved,
    PeersPaired,
)
from atlas_flwr.server_apps.assignment import DeviceRule
from atlas_flwr.server_apps.build import RunContext, covering_plan
from atlas_flwr.split import SplitPlan
from atlas_flwr.train.outline import Outline
from atlas_flwr.trunk import Endpoint, Limits
from atlas_flwr.trunk.hosts.peer_hosts import PeerHosts
from atlas_flwr.trunk.hosts.peer_model import PeerModel
from atlas_flwr.trunk.hosts.peers import Peers
from atlas_flwr.trunk.transports.handing import KEPT

__all__ = ["SERVER", "PeerNeed", "last_resort", "peers_of"]

SERVER = "server"  # the host that is a last resort, and the group that allows it
LAST_PRICE = 1e6  # of a guest there: above all that peers cost, below none at all
UNLIMITED = 1 << 62

StartPlan = Callable[[SplitPlan, str], AbstractContextManager[Endpoint]]


@dataclass(frozen=True)
class PeerNeed:
    """What a peer's trunk takes: bytes by the memory model, and time.

    Attributes
    ----------
    config : RunConfig
        Of a step, and of the ranks, the highest of which all guests are counted at.
    outline : Outline
        Of the model.
    dtype : torch.dtype
        Of the base.
    """

    config: RunConfig
    outline: Outline
    dtype: torch.dtype

    @cached_property
    def rule(self) -> DeviceRule:
        """What knows the model's sizes: they are traced when they are first needed."""
        return DeviceRule.of(self.config, self.outline, self.dtype)

    def __call__(self, blocks: int, guests: int) -> int:
        """Return the bytes of so many blocks with so many guests."""
        config, tail = self.config, None if self.config.split == "vanilla" else 1
        head = self.outline.num_layers - blocks - (tail or 0)
        rule = self.rule
        session = TrunkSession(head, tail, rule.highest_rank)
        return trunk_memory(
            rule.architecture,
            sessions=[session] * guests,
            batch=config.batch_size,
            length=config.crossing_positions
            or config.max_length + config.learned_positions,
            in_flight=max(guests, 1),
            recompute=config.trunk_recompute,
            covers=(head, tail),
            logits_to_keep=rule.logits_to_keep,
            dtype_bytes=rule.dtype_bytes,
            handed=self._handed,
        ).total

    @property
    def _handed(self) -> int:
        """What neighbours in a chain have brought a session and is kept, at most."""
        if self.config.peer_chains == "relay":
            return 0
        return KEPT * max(Limits.passes_per_session, self.config.in_flight)

    @cached_property
    def common_step(self) -> StepTime:
        """Model a guest's step with a host of speed 1, over a link of 1 bit/s."""
        plan = covering_plan(self.config, self.outline)
        rates = Rates(COMMON_FLOPS, COMMON_FLOPS, link_bits=1.0)
        return self.rule.seconds(rates, plan.head, plan.tail)

    @property
    def even(self) -> float:
        """Bits a second of a link that takes as long as a host of speed 1 computes."""
        return self.common_step.link / self.common_step.trunk


@dataclass(frozen=True)
class _Telling:
    """Writes down what happens between peers.

    Attributes
    ----------
    on_event : Callable[[Event], None]
        Receives it.
    """

    on_event: Callable[[Event], None]

    def paired(self, server_round: int, what: str, found: Pairing) -> None:
        """Guests were paired."""
        hosts = {link.host for way in found.ways.values() for link in way}
        log(INFO, "%s: %d clients on %d peers", what, len(found.ways), len(hosts))
        if found.alone:
            log(WARNING, "no peer has room for clients %s", ", ".join(found.alone))
        ways = {client: way_text(way) for client, way in found.ways.items()}
        self.on_event(PeersPaired(server_round, what, ways, tuple(found.alone)))

    def lost(self, server_round: int, host: str, reason: str) -> None:
        """A host does not answer any more."""
        log(WARNING, "peer %s is lost: %s", host, reason)
        self.on_event(PeerLost(server_round, host, reason))

    def moved(self, server_round: int, client: str, way: Way) -> None:
        """A guest of a lost host has another, or none."""
        text = way_text(way)
        log(WARNING, "client %s: now carried by %s", client, text or "nobody")
        self.on_event(PeerMoved(server_round, client, text))


def way_text(way: Way) -> str:
    """Write a way, e.g. ``"3[1-15]"`` or, for a chain, ``"3[1-8] 5[9-15]"``."""
    return " ".join(f"{k.host}[{k.first}-{k.stop - 1}]" for k in way)


def last_resort(config: RunConfig) -> Host | None:
    """Return the server as a host, if the run has it carry whom no peer can."""
    if config.peer_fallback == "none":
        return None
    return Host(SERVER, UNLIMITED, frozenset({"", SERVER}), price=LAST_PRICE)


@contextmanager
def peers_of(
    setting: RunContext, start: StartPlan, at_once: int = 1
) -> Iterator[Endpoint]:
    """Yield a host that stands for all peers; end what they run.

    Parameters
    ----------
    setting : RunContext
        The run.
    start : Callable[[SplitPlan, str], AbstractContextManager[Endpoint]]
        Starts a trunk for a cut, in the place of a client.
    at_once : int
        How many it may start at the same time.
    """
    config, outline = setting.config, setting.outline
    count = outline.num_layers

    def started(link: Link) -> AbstractContextManager[Endpoint]:
        plan = SplitPlan(link.first, count - link.stop or None)
        return start(plan, link.host)

    hosts = PeerHosts(started, _Telling(setting.on_event), at_once)
    need = PeerNeed(config, outline, setting.files.dtype)
    model = PeerModel(
        covering_plan(config, outline).trunk_range(count),
        count,
        outline.block_of,
        need,
        need.even,
    )
    try:
        direct = config.peer_chains == "direct"
        yield Endpoint(Peers(hosts, model, last=last_resort(config), direct=direct), "")
    finally:
        hosts.stop()
