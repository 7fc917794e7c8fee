# SPDX-License-Identifier: Apache-2.0
"""A deployment's description in YAML, read with every mistake told at once."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from atlas_flwr.config import load_config
from atlas_flwr.data.definitions import OneOfEach
from atlas_flwr.errors import ConfigError, SiteError
from atlas_flwr.sites.description import Link, Node, Plain, Site, Trunk
from atlas_flwr.sites.run_configs import WRITTEN, refusals
from atlas_flwr.sites.scripts import APP
from atlas_flwr.wire.codecs import CODEC_CHOICES

__all__ = ["read_site"]

NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
KEY = re.compile(r"[a-z][a-z0-9-]*")
APPS = re.compile(r"/[^\"\\`${}:\x00-\x1f\x7f]*")  # for compose files and scripts
SURROGATE = re.compile("[\ud800-\udfff]")  # halves of characters, which YAML may name
OURS = (*WRITTEN, "trunk-address")


def read_site(path: Path) -> Site:
    """Read a site's file.

    Raises
    ------
    SiteError
        With everything that is wrong with it.
    """
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), OneOfEach)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SiteError([f"{path} cannot be read: {error}"]) from None
    reader = _Reader()
    site = reader.site(loaded)
    if reader.problems:
        raise SiteError(reader.problems)
    return site


class _Reader:
    """Reads on after a mistake, so that the next one is found, too."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def site(self, loaded: Any) -> Site:
        keys = ("name", "link", "trunk", "nodes", "run", "valid-days")
        found = self._section(loaded, "the file", keys)
        run = self._section(found.get("run", {}), "run", ("app", "config"))
        site = Site(
            name=self._name(found.get("name", "site"), "name"),
            link=self._link(found.get("link")),
            trunk=self._trunk(found["trunk"]) if "trunk" in found else None,
            nodes=self._nodes(found.get("nodes")),
            app=self._app(run.get("app", APP)),
            config=self._plain(run.get("config", {}), "run.config"),
            days=self._number(found.get("valid-days", 365), "valid-days", 3650),
        )
        self._whole(site)
        # Where something is wrong with its machines, the keys are looked at alone.
        self.problems += _key_refusals(site) if self.problems else refusals(site)
        return site

    def _whole(self, site: Site) -> None:
        """Check what is between sections."""
        self.problems += [
            f"run.config.{key} is not yours to give: it follows from link and trunk"
            for key in OURS
            if key in site.config
        ]
        ports = [site.link.port, site.link.trunk_port]
        if site.trunk and site.link.trunk_port:
            self.problems.append(
                "link.trunk-port is of a trunk inside the ServerApp, and trunk: of one "
                "on a machine of its own; leave one of them out"
            )
        elif ports[0] == ports[1]:
            self.problems.append(f"link.port and link.trunk-port are both {ports[0]}")
        if site.trunk and site.link.trunk_mutual:
            self.problems.append(
                "link.trunk-mutual is of a trunk inside the ServerApp; write mutual "
                "under trunk:"
            )
        away = site.link.host and not _is_loopback(site.link.host)
        peers = site.config.get("trunk") == "peers"
        if away and not (site.trunk or site.link.trunk_port or peers):
            self.problems.append(
                "nodes have no trunk to dial: give link.trunk-port (the ServerApp "
                "serves it), trunk: (a machine of its own), or run.config.trunk: peers"
            )

    def _link(self, given: Any) -> Link:
        keys = ("host", "port", "listen", "trunk-port", "trunk-mutual")
        found = self._section(given, "link", keys)
        own = found.get("trunk-port")
        return Link(
            self._host(found.get("host"), "link.host"),
            self._port(found.get("port", Link.port), "link.port"),
            self._ip(found.get("listen", Link.listen), "link.listen"),
            None if own is None else self._port(own, "link.trunk-port"),
            self._switch(found.get("trunk-mutual", False), "link.trunk-mutual"),
        )

    def _trunk(self, given: Any) -> Trunk:
        found = self._section(given, "trunk", ("host", "port", "listen", "mutual"))
        return Trunk(
            self._host(found.get("host"), "trunk.host"),
            self._port(found.get("port", Trunk.port), "trunk.port"),
            self._ip(found.get("listen", Trunk.listen), "trunk.listen"),
            self._switch(found.get("mutual", False), "trunk.mutual"),
        )

    def _nodes(self, given: Any) -> tuple[Node, ...]:
        if not isinstance(given, list) or not given:
            self.problems.append("nodes is no list; write `- name: ...` for each node")
            return ()
        nodes = tuple(self._node(each, n) for n, each in enumerate(given))
        names = [node.name for node in nodes]
        for name in sorted({n for n in names if n and names.count(n) > 1}):
            self.problems.append(f"{names.count(name)} nodes are called {name!r}")
        return nodes

    def _node(self, given: Any, number: int) -> Node:
        where = f"nodes[{number}]"
        found = self._section(given, where, ("name", "port", "config"))
        return Node(
            self._name(found.get("name"), f"{where}.name"),
            self._port(found.get("port", Node.port), f"{where}.port"),
            self._plain(found.get("config", {}), f"{where}.config"),
        )

    def _section(
        self, given: Any, where: str, keys: Collection[str]
    ) -> Mapping[str, Any]:
        if not isinstance(given, dict):
            got = "is missing" if given is None else f"is {given!r}"
            self.problems.append(f"{where} {got}; it has {', '.join(keys)}")
            return {}
        self.problems += [
            f"{where} has {key!r}, which is nothing; there are {', '.join(keys)}"
            for key in given
            if key not in keys
        ]
        return given

    def _name(self, given: Any, where: str) -> str:
        if isinstance(given, str) and NAME.fullmatch(given):
            return given
        self.problems.append(
            f"{where} is {given!r}; it is 1 to 40 of a-z, 0-9 and - (folders have it)"
        )
        return ""

    def _host(self, given: Any, where: str) -> str:
        if isinstance(given, str) and (_is_ip(given) or _is_dns(given)):
            return given
        self.problems.append(
            f"{where} is {given!r}; it is a name or an IP address without a port, as "
            "server.example.org"
        )
        return ""

    def _ip(self, given: Any, where: str) -> str:
        if isinstance(given, str) and _is_ip(given):
            return given
        self.problems.append(f"{where} is {given!r}; it is an address, as 0.0.0.0")
        return ""

    def _port(self, given: Any, where: str) -> int:
        return self._number(given, where, 65535)

    def _number(self, given: Any, where: str, most: int) -> int:
        if isinstance(given, int) and given is not True and 0 < given <= most:
            return given
        self.problems.append(f"{where} is {given!r}; it is from 1 to {most}")
        return 0

    def _switch(self, given: Any, where: str) -> bool:
        if not isinstance(given, bool):
            self.problems.append(f"{where} is {given!r}; it is true or false")
        return given is True

    def _app(self, given: Any) -> str:
        sound = isinstance(given, str) and not SURROGATE.search(given)
        if sound and APPS.fullmatch(given):
            return str(given)
        self.problems.append(
            f"run.app is {given!r}; it is an absolute path, as {APP}, without any of "
            '" ` \\ $ { } :'
        )
        return APP

    def _plain(self, given: Any, where: str) -> Mapping[str, Plain]:
        if not isinstance(given, dict):
            self.problems.append(f"{where} is {given!r}; it is a list of key: value")
            return {}
        sound = {}
        for key, value in given.items():
            if not isinstance(key, str) or not KEY.fullmatch(key):
                self.problems.append(
                    f"{where} has the key {key!r}; keys are kebab-case"
                )
            elif not _is_plain(value):
                self.problems.append(
                    f"{where}.{key} is {value!r}; it is text of one line, a number, "
                    "true or false"
                )
            else:
                sound[key] = value
        return sound


def _key_refusals(site: Site) -> Iterator[str]:
    """Yield why a run would refuse the user's keys, whatever its machines are."""
    keys = {key: value for key, value in site.config.items() if key not in OURS}
    try:
        load_config(keys, {"codec": CODEC_CHOICES})
    except ConfigError as error:
        yield from (f"run.config: {text}" for text in error.problems)


def _is_plain(value: Any) -> bool:
    """Tell whether scripts can say a value, and Flower's messages carry it."""
    if isinstance(value, str):
        return "\n" not in value and not SURROGATE.search(value)
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return isinstance(value, float)


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (
        _is_ip(host) and ipaddress.ip_address(host).is_loopback
    )


def _is_dns(text: str) -> bool:
    return len(text) <= 253 and all(map(LABEL.fullmatch, text.split(".")))
