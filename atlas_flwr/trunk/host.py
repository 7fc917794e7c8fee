# SPDX-License-Identifier: Apache-2.0
"""The trunk as its owner, the ServerApp, sees it: in process or far away."""

from __future__ import annotations

import resource
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from atlas_flwr.budget.pairing import Guest, Host
from atlas_flwr.lora import AdapterState, LoraFactors
from atlas_flwr.trunk.credentials import Credentials
from atlas_flwr.trunk.session import SessionSpec

__all__ = [
    "Door",
    "Endpoint",
    "Introducing",
    "TrunkHost",
    "TrunkStats",
    "process_peak_bytes",
]


@dataclass(frozen=True)
class TrunkStats:
    """A trunk's account of itself.

    Attributes
    ----------
    sessions : int
        Open now.
    passes : int
        Kept for a backward now.
    steps : int
        Training steps done.
    busy_seconds : float
        Spent in passes, summed over threads.
    peak_bytes : int
        Largest resident memory of the process so far.
    kept_bytes : int
        Activations kept for a backward now, the base's and the adapters' weights aside.
    bytes_in, bytes_out : int
        Of all frames received and answered; 0 where calls come without frames.
    device_peak_bytes : int
        Largest memory allocated on the trunk's GPU; 0 on a CPU.
    base_passes : int
        Passes over the base, forward and backward; several sessions' calls may be one.
    joined_calls : int
        Calls that shared a pass.
    unjoined_calls : int
        Calls that ran alone while others waited, because they cannot share one.
    caches, cache_bytes : int
        Generations whose keys and values are kept now, and their bytes.
    evicted_caches : int
        Generations that were forgotten for want of room.
    waiting : int
        Calls that wait for their turn now.
    evicted_sessions : int
        Sessions that were forgotten, being idle.
    sessions_in_host : int
        Idle sessions whose state has left the trunk's GPU for the host's memory.
    """

    sessions: int
    passes: int
    steps: int
    busy_seconds: float
    peak_bytes: int
    kept_bytes: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    device_peak_bytes: int = 0
    base_passes: int = 0
    joined_calls: int = 0
    unjoined_calls: int = 0
    caches: int = 0
    cache_bytes: int = 0
    evicted_caches: int = 0
    waiting: int = 0
    evicted_sessions: int = 0
    sessions_in_host: int = 0


def process_peak_bytes() -> int:
    """Return the largest resident memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


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


class Door(NamedTuple):
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
    token: str
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
