# SPDX-License-Identifier: Apache-2.0
"""How fast a trunk may be called: by a session, and by who has none.

Both are token buckets: so many calls at once, and then so many a second. Who calls
faster is told that the trunk is busy, asks again, and gets the same answers later.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Callable, Hashable
from urllib.parse import unquote

from atlas_flwr.errors import TooFast

__all__ = ["Buckets", "Rates", "address_of"]

# Above what one session reaches: small models answer 650 (benchmarks/watching.py).
RATE = 1000
BURST = 2  # seconds of calls that may come at once
LEAST_BURST = 64  # calls; the 20 by which codec='auto' measures a link must not wait
GUESSES, GUESSED_AT_ONCE = 20, 200  # wrong tokens or secrets of one address, a second
ROOM = 4096  # what is remembered of each kind


class Buckets:
    """A token bucket for each key; safe to call from many threads.

    Parameters
    ----------
    rate : float
        Calls a second.
    burst : float
        Calls at once, after a pause.
    clock : Callable[[], float]
        Seconds.
    room : int
        Keys that are remembered; beyond it those used longest ago have full buckets.
    """

    def __init__(
        self, rate: float, burst: float, clock: Callable[[], float], room: int = ROOM
    ) -> None:
        self.rate, self.burst, self.clock, self.room = rate, burst, clock, room
        self._left: dict[Hashable, tuple[float, float]] = {}  # how many, and since when
        self._lock = threading.Lock()

    def take(self, key: Hashable) -> bool:
        """Take a call; return whether there was one to take."""
        with self._lock:
            now = self.clock()
            left, since = self._left.pop(key, (self.burst, now))
            left = min(left + (now - since) * self.rate, self.burst)
            taken = left >= 1
            self._left[key] = (left - taken, now)
            if len(self._left) > self.room:
                del self._left[next(iter(self._left))]
        return taken

    def give_back(self, key: Hashable) -> None:
        """Undo a :meth:`take` that got one."""
        with self._lock:
            if key in self._left:
                left, since = self._left[key]
                self._left[key] = (left + 1, since)


class Rates:
    """The limits of a service; safe to call from many threads.

    Parameters
    ----------
    rate : float
        Calls a second of a session, twice as many at once (64 at least). 0 is no limit,
        of guesses neither.
    clock : Callable[[], float]
        Seconds; for tests.
    """

    def __init__(
        self, rate: float = RATE, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rate = rate
        burst = max(BURST * rate, LEAST_BURST)
        self._calls = Buckets(rate, burst, clock)
        self._guesses = Buckets(GUESSES, GUESSED_AT_ONCE, clock)
        self._known: dict[tuple[str, str], None] = {}
        self._lock = threading.Lock()

    def called(self, token: str) -> None:
        """Count a call of an open session.

        Raises
        ------
        TooFast
            If there were too many.
        """
        if self.rate and not self._calls.take(token):
            raise TooFast(
                f"more than {self.rate:g} calls a second of one session, the most that "
                "this trunk takes (trunk-rate): call again in a moment"
            )

    def shown(self, address: str, secret: str, is_right: bool) -> None:
        """Let a caller pass, unless its address has shown too many wrong secrets.

        A right one is then refused, too, or guessing would go on as fast. Those that
        were right before, from there, always pass: a guesser behind the same address
        does not keep out who trains already.

        Parameters
        ----------
        address : str
            Where the call came from.
        secret : str
            A session's token, or the owner's secret.
        is_right : bool
            Whether it opens anything.

        Raises
        ------
        TooFast
            If there were too many.
        """
        pair = address, secret
        if not self.rate or (is_right and pair in self._known):
            return
        if not self._guesses.take(address):
            raise TooFast(
                f"more than {GUESSES} wrong tokens or secrets a second came from "
                f"{address}: call again in a moment"
            )
        if is_right:
            self._guesses.give_back(address)
            self._remember(pair)

    def _remember(self, pair: tuple[str, str]) -> None:
        with self._lock:
            self._known[pair] = None
            if len(self._known) > ROOM:
                del self._known[next(iter(self._known))]


def address_of(peer: str) -> str:
    """Return the address in what gRPC says of a caller, ``ipv4:10.0.0.1:5000``.

    One machine has many IPv6 addresses: their first 64 bits are taken.
    """
    kind, _, rest = peer.partition(":")
    host = unquote(rest).rpartition(":")[0].strip("[]")
    if kind != "ipv6":
        return host if kind == "ipv4" else peer
    found = ipaddress.IPv6Address(host.partition("%")[0])
    if found.ipv4_mapped:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, 64), strict=False))
