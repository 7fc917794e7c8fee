# SPDX-License-Identifier: Apache-2.0
"""What a deployment consists of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Link", "Node", "Plain", "Site", "Trunk", "joined"]

Plain = bool | int | float | str


@dataclass(frozen=True)
class Link:
    """The machine of the SuperLink and the ServerApp.

    Attributes
    ----------
    host : str
        What nodes dial; the certificate is for it.
    port : int
        Of the SuperLink.
    listen : str
        The address it listens on.
    trunk_port : int, optional
        Where the ServerApp's own trunk listens.
    trunk_mutual : bool
        It asks nodes for certificates.
    """

    host: str
    port: int = 8000
    listen: str = "0.0.0.0"
    trunk_port: int | None = None
    trunk_mutual: bool = False


@dataclass(frozen=True)
class Trunk:
    """A machine of the trunk's own.

    Attributes
    ----------
    host : str
        What nodes and the ServerApp dial; the certificate is for it.
    port : int
        Its port.
    listen : str
        The address it listens on.
    mutual : bool
        It asks nodes and the ServerApp for certificates.
    """

    host: str
    port: int = 7001
    listen: str = "0.0.0.0"
    mutual: bool = False


@dataclass(frozen=True)
class Node:
    """A client's machine.

    Attributes
    ----------
    name : str
        Its folder's, and Flower's for it.
    port : int
        Of its SuperNode, on its own loopback.
    config : Mapping[str, Plain]
        Its node config.
    """

    name: str
    port: int = 9094
    config: Mapping[str, Plain] = field(default_factory=dict)


@dataclass(frozen=True)
class Site:
    """A deployment.

    Attributes
    ----------
    name : str
        What ``flwr`` calls its SuperLink.
    link : Link
        The server.
    trunk : Trunk, optional
        The trunk's machine, where that is another.
    nodes : tuple[Node, ...]
        The clients.
    app : str
        The app's folder on the server, and on the trunk's machine.
    config : Mapping[str, Plain]
        Of the run.
    days : int
        For which certificates are valid.
    """

    name: str
    link: Link
    trunk: Trunk | None
    nodes: tuple[Node, ...]
    app: str
    config: Mapping[str, Plain]
    days: int

    @property
    def mutual(self) -> bool:
        """Whether the trunk, wherever it is, asks nodes for certificates."""
        return self.trunk.mutual if self.trunk else self.link.trunk_mutual


def joined(host: str, port: int) -> str:
    """Write an address as it is dialled."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
