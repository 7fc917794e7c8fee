# SPDX-License-Identifier: Apache-2.0
"""The trunk as its owner, the ServerApp, sees it: in process or far away."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

from atlas_flwr.budget.pairing import Guest, Host
from atlas_flwr.lora import AdapterState, LoraFactors
from atlas_flwr.trunk.credentials import Credentials
from atlas_flwr.trunk.engine.session import SessionSpec
from atlas_flwr.trunk.engine.stats import TrunkStats
from atlas_flwr.trunk.hosts.departures import Computed

__all__ = [
    "Door",
    "Endpoint",
    "Introducing",
    "Judging",
    "TrunkHost",
]


@runtime_checkable
class TrunkHost(Protocol):
    """Sessions of clients, opened and closed by their server."""

    def open(self, spec: SessionSpec) -> str:
        """Open a session; return its token."""
        ...

    def share(self, name: str, products: Mapping[str, LoraFactors]) -> None:
        """Hold products that many sessions fold, once for all of them."""
        ...

    def unshare(self, name: str) -> None:
        """Forget shared products."""
        ...

    def adapters(self, token: str) -> AdapterState:
        """Copy out what a session has trained."""
        ...

    def importance(self, token: str) -> Mapping[str, float]:
        """Return what a probing session has measured, by layer."""
        ...

    def close(self, token: str) -> None:
        """Close a session; unknown ones are closed already."""
        ...

    def stats(self) -> TrunkStats:
        """Return an account."""
        ...

    def ping(self) -> None:
        """Raise :class:`~atlas_flwr.errors.TrunkLost` if the trunk is gone."""
        ...


@dataclass(frozen=True)
class Door:
    """Where a client reaches a session.

    Attributes
    ----------
    address : str
        What it passes to :func:`atlas_flwr.trunk.connect`.
    token : str
        The session's.
    ca : str
        The certificate that it passes beside it, PEM; empty where there is no TLS.
    """

    address: str
    token: str = field(repr=False)
    ca: str = ""


@runtime_checkable
class Introducing(Protocol):
    """A host whose sessions are in several places, each client's in its own."""

    def admit(
        self,
        what: str,
        server_round: int,
        guests: Sequence[Guest],
        hosts: Collection[Host],
    ) -> Collection[str]:
        """Find clients a place each; return those that have one."""
        ...

    def state(self) -> dict[str, object]:
        """Return what a resumed run needs to find clients the same places: JSON."""
        ...

    def restore(self, values: Mapping[str, Any]) -> None:
        """Take up what :meth:`state` returned."""
        ...

    def doors(self, token: str) -> Sequence[Door]:
        """Return where a session is: of a chain of trunks, in their order."""
        ...

    def mend(self, tokens: Collection[str], *, failed: bool) -> Sequence[Door]:
        """Open a session anew elsewhere if a place that it was in is lost.

        Parameters
        ----------
        tokens : Collection[str]
            Of its doors.
        failed : bool
            Whether its client failed, perhaps since it does not reach that place: then
            it is given another once.

        Returns
        -------
        Sequence[Door]
            The new ones; none where nothing is lost, or nobody has room.
        """
        ...


@runtime_checkable
class Judging(Introducing, Protocol):
    """One whose clients check what those places hand over."""

    def judge(self, tokens: Collection[str], computed: Computed) -> None:
        """Want what a session has learned to be what its client has computed.

        Parameters
        ----------
        tokens : Collection[str]
            Its own, or of its doors.
        computed : Computed
            What the client tells.

        Raises
        ------
        TrunkError
            If it is not.
        """
        ...


class Endpoint(NamedTuple):
    """A trunk that serves.

    Attributes
    ----------
    host : TrunkHost
        For its owner.
    address : str
        What clients pass to :func:`atlas_flwr.trunk.connect`.
    ca : str
        The certificate that they pass beside it, PEM; empty where there is no TLS.
    shown : Credentials, optional
        What its owner shows it, and clients of the owner's own machine may.
    """

    host: TrunkHost
    address: str
    ca: str = ""
    shown: Credentials | None = None
