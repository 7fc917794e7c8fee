# SPDX-License-Identifier: Apache-2.0
"""What a chain's host hands to its neighbours, and what they have brought it.

A thread that hands something over waits until it is kept there, and for nothing that is
computed. Guests' calls that will do so are limited to half a service's threads, and the
others told to come again: so there are always threads that keep what comes, and no two
hosts wait for each other (docs/decisions/peers.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import BoundedSemaphore, Lock
from weakref import WeakKeyDictionary, finalize

from torch import Tensor

from atlas_flwr.errors import (
    AtlasError,
    SessionError,
    TrunkBusy,
    TrunkError,
    WireError,
)
from atlas_flwr.trunk.engine.engine import TrunkEngine
from atlas_flwr.trunk.seams import Neighbour, Seams
from atlas_flwr.trunk.transports.framed import FramedTrunk
from atlas_flwr.trunk.transports.requests import Request, Verb

__all__ = ["KEPT", "Handing"]

CALLS = 32  # half of those that a Ray actor or a gRPC service takes at once
KEPT = 2  # things of a session for each pass that it may have open
BROUGHT = ("grad", "hidden")
SHARE = 0.9  # of the time that its guest still waits, that a host waits for the next


def _dialled(neighbour: Neighbour) -> FramedTrunk:
    from atlas_flwr.trunk.transports.addresses import connect

    return connect(neighbour.address, neighbour.key, neighbour.ca or None)


@dataclass
class _Session:
    """What is kept for a session.

    Attributes
    ----------
    come : dict[tuple[str, str], Tensor]
        What neighbours brought, by ticket and name: in a vanilla split hidden states
        and gradients of a step have one ticket, and what is brought again may be late.
    links : dict[str, FramedTrunk]
        Connections to them, by their keys.
    dialling : Lock
        Held while one is made.
    """

    come: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    links: dict[str, FramedTrunk] = field(default_factory=dict)
    dialling: Lock = field(default_factory=Lock)

    def close(self) -> None:
        """Close the connections."""
        for link in self.links.values():
            link.close()


class Handing:
    """A host's seams; safe to use from many threads.

    What is kept for a session goes with it: it hangs on the session's own
    :class:`~atlas_flwr.trunk.seams.Seams`, which nothing else keeps.

    Parameters
    ----------
    calls : int
        Guests' calls whose answers are for a neighbour, at once; of a service with a
        limited number of threads it is half of them.
    dial : Callable[[Neighbour], FramedTrunk]
        Connects to a neighbour.
    """

    def __init__(
        self, calls: int = CALLS, dial: Callable[[Neighbour], FramedTrunk] = _dialled
    ) -> None:
        self.calls, self.dial = calls, dial
        self._free = BoundedSemaphore(calls)
        self._sessions: WeakKeyDictionary[Seams, _Session] = WeakKeyDictionary()
        self._lock = Lock()

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Compute what is for a neighbour, and hand it over.

        Raises
        ------
        TrunkBusy
            If there are too many that do.
        """
        if not self._free.acquire(blocking=False):
            raise TrunkBusy(
                f"{self.calls} calls of chains are under way, as many as this host "
                "takes at once; try again in a moment"
            )
        try:
            yield
        finally:
            self._free.release()

    def keep(
        self, engine: TrunkEngine, request: Request, tensors: dict[str, Tensor]
    ) -> None:
        """Keep what a neighbour brings, until its session has used it.

        Raises
        ------
        SessionError
            If it has not the key of an open session.
        WireError
            If it brings something else than hidden states or gradients.
        """
        seams = engine.check_open(request.token).seams
        if seams is None or seams.key != request.token:
            raise SessionError(
                "only a session's neighbours in its chain bring it something, with the "
                "key that the owner told them"
            )
        if len(tensors) != 1 or not tensors.keys() <= {*BROUGHT}:
            raise WireError(
                f"a neighbour in the chain brings {sorted(tensors)}; it is one of "
                f"{', '.join(BROUGHT)}"
            )
        ((name, tensor),) = tensors.items()
        come, most = self._of(seams).come, KEPT * engine.limits.passes_per_session
        with self._lock:
            come.pop((request.ticket, name), None)
            come[request.ticket, name] = tensor
            for old in list(come)[:-most]:
                del come[old]

    def taken(self, seams: Seams, ticket: str, name: str) -> Tensor:
        """Return what a neighbour has brought; it stays, for a call made again.

        Raises
        ------
        SessionError
            If it is not here.
        """
        found = self._of(seams).come.get((ticket, name))
        if found is None:
            raise SessionError(
                f"the {name} that a neighbour in the chain was to bring is not here, "
                "or no more; run the step again from its forward"
            )
        return found

    def hand(
        self,
        engine: TrunkEngine,
        seams: Seams,
        neighbour: Neighbour,
        request: Request,
        frame: bytes,
        came: float,
    ) -> None:
        """Bring a neighbour what it goes on with.

        Parameters
        ----------
        engine : TrunkEngine
            Counts the bytes.
        seams : Seams
            Of the session whose answer it is.
        neighbour : Neighbour
            Whose it is.
        request : Request
            The guest's.
        frame : bytes
            What it gets.
        came : float
            When the guest's request came, by the monotonic clock.

        Raises
        ------
        TrunkError
            The neighbour's own, or that it does not answer; it is named.
        """
        left = SHARE * (request.patience - (time.monotonic() - came))
        try:
            if left <= 0:
                raise TrunkError(f"no time of {request.patience:.0f} s is left for it")
            mine = self._of(seams)
            with mine.dialling:
                link = mine.links.get(neighbour.key)
                if link is None:
                    link = mine.links[neighbour.key] = self.dial(neighbour)
            link.exchange(
                Request(
                    Verb.HAND,
                    neighbour.key,
                    request.codec,
                    frame,
                    ticket=request.ticket,
                    patience=left,
                )
            )
        except AtlasError as error:
            kind = type(error) if isinstance(error, TrunkError) else TrunkError
            raise kind(
                f"{neighbour.address}, its neighbour in the chain, was not handed what "
                f"it goes on with: {error}"
            ) from None
        engine.count_bytes(0, len(frame))

    def _of(self, seams: Seams) -> _Session:
        """Return what is kept for a session, as long as that is open or in use."""
        with self._lock:
            found = self._sessions.get(seams)
            if found is None:
                found = self._sessions[seams] = _Session()
                finalize(seams, found.close).atexit = False
            return found
