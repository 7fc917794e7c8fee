# SPDX-License-Identifier: Apache-2.0
"""Who this client is: its number, its device and its shard of the tasks."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import TypeVar

from flwr.app import Context

from atlas_flwr.config import RunConfig, parse_bytes
from atlas_flwr.config.parsing import (
    parse_cut,
    parse_lent,
    parse_link,
    parse_speed,
    split_list,
)
from atlas_flwr.data import Shard, load_task, make_shard
from atlas_flwr.errors import ConfigError
from atlas_flwr.protocol.profile import Offer, Profile
from atlas_flwr.seeds import derive_seed
from atlas_flwr.trunk.credentials import Credentials
from atlas_flwr.trunk.transports.access import Access

__all__ = ["Identity", "dealt_device", "dealt_offer"]

T = TypeVar("T")


@dataclass(frozen=True)
class Identity:
    """A client of a federation.

    Attributes
    ----------
    index : int
        ``partition-id`` of the node config.
    count : int
        ``num-partitions``.
    memory : int, optional
        Bytes that training may take.
    cut : str
        What it says of where it is cut; empty or ``'auto'`` leaves it to the server.
    offer : Offer
        What it would carry of the trunk for others.
    shown : Credentials, optional
        What it shows a trunk that asks for certificates.
    """

    index: int
    count: int
    memory: int | None
    cut: str = ""
    offer: Offer = field(default_factory=Offer)
    shown: Credentials | None = None

    @classmethod
    def of(cls, context: Context, config: RunConfig) -> Identity:
        """Read the node config.

        In a simulation Flower sets ``partition-id`` and ``num-partitions``; a SuperNode
        takes them from ``--node-config``, together with an optional ``memory`` such as
        ``'3GiB'``, which goes before the run config's ``devices``, ``cut``, which goes
        before its ``cut``, and ``trunk-memory``, ``trunk-speed``, ``trunk-link`` and
        ``trust``, which go before ``peer-memory``, ``peer-speeds``, ``peer-links`` and
        ``peer-trust``. A node that serves a trunk names the file access.json of it as
        ``trunk-access``, and if others dial it elsewhere, ``trunk-address``. One whose
        trunk asks for certificates names the files of its own, PEM, as ``trunk-cert``
        and ``trunk-key``.

        Raises
        ------
        ConfigError
            If a key is missing or out of range, or a file that one names is no use.
        """
        node = context.node_config
        missing = [k for k in ("partition-id", "num-partitions") if k not in node]
        if missing:
            raise ConfigError(
                [
                    f"node config lacks {key!r}; start the SuperNode with "
                    "--node-config 'partition-id=0 num-partitions=3'"
                    for key in missing
                ]
            )
        index, count = (_whole(node, k) for k in ("partition-id", "num-partitions"))
        if not 0 <= index < count:
            raise ConfigError(
                [f"partition-id={index}; it must be in 0..{count - 1} (num-partitions)"]
            )
        dealt, cut = dealt_device(config, index, count)
        memory = _said(node, "memory", parse_bytes, dealt)
        cut = _own_cut(node, config) or cut
        offer = _offer(node, config, index, count)
        return cls(index, count, memory, cut, offer, _shown(node))

    def shard(self, config: RunConfig, index: int | None = None) -> Shard:
        """Return this client's text, or in a simulation another client's."""
        tasks = [load_task(name) for name in config.task_list]
        return make_shard(
            self.index if index is None else index,
            self.count,
            tasks,
            train_examples=config.train_examples,
            test_examples=config.test_examples,
            seed=config.seed,
            alpha=config.label_skew or None,
            skew_tests=config.test_skew,
        )

    def profile(self, config: RunConfig) -> Profile:
        """Return what the server is told of this client."""
        task = load_task(config.task_of(self.index))
        holder = self.shown.holder if self.shown else ""
        given = self.memory, task.name, self.count, self.offer
        return Profile(str(self.index), *given, holder=holder, cut=self.cut)


def dealt_device(config: RunConfig, index: int, count: int) -> tuple[int | None, str]:
    """Return client ``index``'s memory and cut: ``devices`` repeated over all clients.

    With ``device-order='shuffled'`` the repeated list is permuted by the run's seed, so
    that a device does not tell a task.
    """
    return _dealt(config, "devices", config.kinds, count)[index]


def _own_cut(node: Mapping[str, object], config: RunConfig) -> str:
    """Return the node config's ``cut``, if there is one that fits the run's split."""
    cut = str(node.get("cut", ""))
    if not cut or cut == "auto":
        return cut
    try:
        _, tail = parse_cut(cut)
    except ValueError as error:
        raise ConfigError([f"cut={cut!r} (node config): {error}; or auto"]) from None
    if config.split != "none" and (tail is None) != (config.split == "vanilla"):
        raise ConfigError(
            [
                f"cut={cut!r} (node config) does not fit the run's split="
                f"{config.split!r}: u-shaped wants HEAD/TAIL, vanilla HEAD/-"
            ]
        )
    return cut


def _dealt(config: RunConfig, what: str, items: Sequence[T], count: int) -> list[T]:
    dealt = [items[i % len(items)] for i in range(count)]
    if config.device_order == "shuffled":
        random.Random(derive_seed(config.seed, what)).shuffle(dealt)
    return dealt


def dealt_offer(config: RunConfig, index: int, count: int) -> Offer:
    """Return what the run config deals client ``index`` to carry of the trunk.

    ``peer-memory``, ``peer-speeds`` and ``peer-links`` are dealt as devices are, but
    apart from them; ``peer-trust`` is repeated over the clients in their order.
    """
    sizes = config.peer_bytes or (0,)
    speeds = [*map(parse_speed, split_list(config.peer_speeds))] or [1.0] * len(sizes)
    links = [*map(parse_link, split_list(config.peer_links))] or [inf] * len(sizes)
    offers = list(zip(sizes, speeds, links, strict=True))
    memory, speed, link = _dealt(config, "peers", offers, count)[index]
    groups = split_list(config.peer_trust) or ("",)
    return Offer(memory, speed, link, _groups(groups[index % len(groups)]))


def _offer(
    node: Mapping[str, object], config: RunConfig, index: int, count: int
) -> Offer:
    """Return what the node config offers, or else the run config deals this client."""
    offer = dealt_offer(config, index, count)
    offer = replace(
        offer,
        memory=_said(node, "trunk-memory", parse_lent, offer.memory),
        speed=_said(node, "trunk-speed", parse_speed, offer.speed),
        link=_said(node, "trunk-link", parse_link, offer.link),
        trust=_said(node, "trust", _groups, offer.trust),
    )
    if path := str(node.get("trunk-access", "")):
        access = Access.read(path)
        address = str(node.get("trunk-address", "")) or access.address
        offer = replace(offer, access=replace(access, address=address).to_json())
    return offer


def _said(
    node: Mapping[str, object], key: str, read: Callable[[str], T], otherwise: T
) -> T:
    """Read a key of the node config, if it is there."""
    text = str(node.get(key, ""))
    if not text:
        return otherwise
    try:
        return read(text)
    except ValueError as error:
        raise ConfigError([f"{key}={text!r} (node config): {error}"]) from None


def _whole(node: Mapping[str, object], key: str) -> int:
    """Read a number of the node config."""
    value = node[key]
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(
            [f"{key}={value!r} (node config): must be a whole number, as in {key}=1"]
        )
    return value


def _shown(node: Mapping[str, object]) -> Credentials | None:
    names = ("trunk-cert", "trunk-key")
    certificate, key = (str(node.get(name, "")) for name in names)
    if not certificate and not key:
        return None
    return Credentials.read(certificate, key, names)


def _groups(text: str) -> frozenset[str]:
    return frozenset(name.strip() for name in text.split("+"))
