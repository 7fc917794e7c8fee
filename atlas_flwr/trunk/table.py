# SPDX-License-Identifier: Apache-2.0
"""The open sessions: found by token, limited in number, evicted when forgotten."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

from atlas_flwr.budget.queues import QUEUES
from atlas_flwr.errors import SessionError, TrunkBusy, TrunkError
from atlas_flwr.trunk.session import Session
from atlas_flwr.trunk.steps import Load

__all__ = ["Limits", "SessionTable"]


@dataclass(frozen=True)
class Limits:
    """What the engine holds at most.

    Attributes
    ----------
    sessions : int
        Sessions at once.
    passes : int
        Forward passes of all sessions whose activations are kept for a backward.
    passes_per_session : int
        Of one session; beyond it the oldest is dropped, as its client has moved on.
    idle_seconds : float
        A session unused for longer is evicted. One that was never used waits for its
        client's turn, and is evicted only when room is needed.
    kept_bytes : int, optional
        Activations of all sessions: no further pass begins while they exceed it.
    sessions_per_pass : int
        Whose calls, if they wait at the same time, run as one pass. At 1 each call runs
        alone, and the same calls give the same bits whatever other sessions do
        meanwhile; above it they give them to float tolerance.
    rows_per_pass : int
        Positions of such a pass, with all that is filled up.
    window_seconds : float
        How long a pass waits at most for sessions that called beside others before. It
        is less after short passes, and nothing where no such session is missing.
    passes_at_once : int
        Passes that run at the same time, each in a thread.
    caches : int
        Generations whose keys and values are kept at once, of all sessions.
    queue : str
        The order of calls that wait, one of :data:`atlas_flwr.budget.queues.QUEUES`.
    cache_bytes : int
        Their bytes. Over either limit those used longest ago are forgotten; their
        clients send their texts again.

    Raises
    ------
    TrunkError
        If a limit is not positive, or there is no such queue.
    """

    sessions: int = 1024
    passes: int = 64
    passes_per_session: int = 2
    idle_seconds: float = 1800.0
    kept_bytes: int | None = None
    sessions_per_pass: int = 64
    rows_per_pass: int = 16384
    window_seconds: float = 0.05
    passes_at_once: int = 1
    queue: str = "longest-path"
    caches: int = 256
    cache_bytes: int = 4 * 2**30

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and value <= 0:
                raise TrunkError(f"limit {field.name} is {value}; it must be above 0")
        if self.queue not in QUEUES:
            names = ", ".join(QUEUES)
            raise TrunkError(
                f"limit queue is {self.queue!r}; it must be one of {names}"
            )


class SessionTable:
    """Sessions by token; safe to use from many threads.

    Parameters
    ----------
    limits : Limits
        What to hold at most.
    clock : Callable[[], float]
        Seconds.

    Attributes
    ----------
    evicted : int
        Sessions that were forgotten, being idle.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self.limits = limits
        self.clock = clock
        self.evicted = 0
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def load(self) -> Load:
        """What the open steps of all sessions keep."""
        with self._lock:
            return self._load()

    def add(self, session: Session) -> str:
        """Add a session; return its token, which cannot be guessed.

        Raises
        ------
        TrunkBusy
            If there are too many.
        """
        with self._lock:
            self._evict(full=len(self) >= self.limits.sessions)
            if len(self) >= self.limits.sessions:
                raise TrunkBusy(
                    f"{len(self)} sessions are open, the most allowed; close some, "
                    "wait until idle ones are evicted, or raise Limits.sessions"
                )
            token = secrets.token_urlsafe(24)
            self._sessions[token] = session
        return token

    def remove(self, token: str) -> Session | None:
        """Forget a session; return it, if it was there."""
        with self._lock:
            return self._sessions.pop(token, None)

    def find(self, token: str) -> Session:
        """Return a session, which another call may be using.

        Raises
        ------
        SessionError
            If it is not open.
        """
        with self._lock:
            session = self._sessions.get(token)
        if session is None:
            raise SessionError(
                "this session is not open: it was closed at its round's end, or "
                "evicted after being idle; the client can take part in the next round"
            )
        return session

    @contextmanager
    def using(self, token: str) -> Iterator[Session]:
        """Take a session for one call; other calls of it wait.

        Raises
        ------
        SessionError
            If it is not open.
        """
        session, came = self.find(token), self.clock()
        with session.lock:
            session.is_begun = True
            session.away.come(came)
            session.last_used = self.clock()
            try:
                yield session
            finally:
                session.load = session.log.load
                session.last_used = self.clock()
                session.away.go(session.last_used)

    def admit(self, session: Session, nbytes: int = 0) -> None:
        """Count one pass more for a session that is in use.

        Parameters
        ----------
        session : Session
            Whose.
        nbytes : int
            What it is expected to keep: it counts already while it waits, or all that
            wait together would be let in.

        Raises
        ------
        TrunkBusy
            If the open passes of all sessions are at a limit.
        """
        with self._lock:
            self._evict()
            session.load = session.log.load
            now, most = self._load(), self.limits.kept_bytes
            if now.passes >= self.limits.passes:
                raise TrunkBusy(
                    f"{now.passes} forward passes wait for their backward, the most "
                    "allowed; try again in a moment, or raise Limits.passes"
                )
            if most is not None and now.nbytes >= most:
                raise TrunkBusy(
                    f"{now.nbytes:,} bytes of activations wait for their backward, the "
                    f"limit is {most:,}; try again in a moment, or recompute them"
                )
            session.load += Load(1, nbytes)

    def _load(self) -> Load:
        return sum((s.load for s in self._sessions.values()), Load())

    def _evict(self, full: bool = False) -> None:
        limit = self.clock() - self.limits.idle_seconds
        idle = [
            token
            for token, session in self._sessions.items()
            if session.last_used < limit and (session.is_begun or full)
        ]
        for token in idle:
            del self._sessions[token]
        self.evicted += len(idle)
