# SPDX-License-Identifier: Apache-2.0
"""What replicas and peers have in common: one handle on the trunks of several hosts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

from atlas_flwr.errors import SessionError
from atlas_flwr.lora import LoraFactors
from atlas_flwr.trunk.engine.stats import TrunkStats
from atlas_flwr.trunk.hosts.peer_hosts import HostWatcher, PeerHosts

__all__ = ["SeveralHosts"]

W = TypeVar("W", bound=HostWatcher)
S = TypeVar("S")


class SeveralHosts(Generic[W, S]):
    """The part of a :class:`~atlas_flwr.trunk.TrunkHost` that no place matters to.

    Attributes
    ----------
    hosts : PeerHosts
        Starts the trunks.
    """

    hosts: PeerHosts[W]
    _sessions: dict[str, S]

    def share(self, name: str, products: Mapping[str, LoraFactors]) -> None:
        """Hold products that sessions fold, for those hosts that come to need them."""
        self.hosts.share(name, products)

    def unshare(self, name: str) -> None:
        """Forget shared products, everywhere."""
        self.hosts.unshare(name)

    def stats(self) -> TrunkStats:
        """Return the sums of all hosts' accounts; of peaks, the fullest host's."""
        return self.hosts.stats()

    def _session(self, token: str) -> S:
        """Return what is known of a session.

        Raises
        ------
        SessionError
            If there is none of this token.
        """
        if token not in self._sessions:
            raise SessionError("this session is not open: it was closed already")
        return self._sessions[token]
