# SPDX-License-Identifier: Apache-2.0
"""The open sessions: found by token, limited in number, evicted when forgotten."""

from __future__ import annotations

import math
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields

from atlas_flwr.budget.queues import QUEUES
from atlas_flwr.errors import SessionError, TrunkBusy, TrunkError
from atlas_flwr.trunk.engine.learner import Learner
from atlas_flwr.trunk.engine.residence import HOST, Residence, with_room
from atlas_flwr.trunk.engine.session import Session, SessionSpec
from atlas_flwr.trunk.engine.steps import Load
from atlas_flwr.trunk.seams import Seams

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
    session_bytes : int, optional
        What all sessions take together: their activations, adapters, moments and
        remembered answers. Over it those that wait longest move from a GPU to the
        host's memory (see :class:`~atlas_flwr.trunk.engine.residence.Residence`); where
        that does not do, no further pass begins beside those under way. One that is
        alone always may.
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
    session_bytes: int | None = None
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
    residence : Residence, optional
        Moves idle sessions; by default none moves.

    Attributes
    ----------
    evicted : int
        Sessions that were forgotten, being idle.
    """

    def __init__(
        self,
        limits: Limits,
        clock: Callable[[], float],
        residence: Residence | None = None,
    ) -> None:
        self.limits = limits
        self.clock = clock
        self.residence = residence or Residence(HOST, clock)
        self.evicted = 0
        self._sessions: dict[str, Session] = {}
        self._keys: dict[str, str] = {}  # tokens, by what neighbours in a chain have
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def load(self) -> Load:
        """What the open steps of all sessions keep."""
        with self._lock:
            return self._load()

    @property
    def away(self) -> int:
        """Sessions that are in the host's memory now."""
        return sum(map(self.residence.is_away, self._all()))

    def add(self, session: Session) -> str:
        """Add a session; return its token, which cannot be guessed.

        If it has no room on a GPU, and nobody there is idle, it waits in the host.

        Raises
        ------
        TrunkBusy
            If there are too many.
        """
        with self._lock:
            self._evict(full=len(self) >= self.limits.sessions)
            if len(self) >= self.limits.sessions:
                raise TrunkBusy(
                    f"{len(self)} sessions are open, the most allowed; ask fewer "
                    "clients in a round (fraction-train), share them among several "
                    "trunks (trunk-replicas), or raise Limits.sessions"
                )
            token = secrets.token_urlsafe(24)
            self._sessions[token] = session
            self._know(session.spec.seams, token)
        self._make_room()
        return token

    def remove(self, token: str) -> Session | None:
        """Forget a session; return it, if it was there."""
        with self._lock:
            return self._sessions.pop(token, None)

    def shared(self, name: str) -> Learner | None:
        """Return what the open sessions of this name train, if there are any.

        A session that was closed counts no more, though a call of it may still run.
        """
        with self._lock:
            mates = (s for s in self._sessions.values() if s.spec.shared == name)
            return next((mate.learner for mate in mates), None)

    def relieve(self, wanted: float = math.inf) -> int:
        """Let idle sessions make room; return the bytes that are free now."""
        return self.residence.relieve(self._all(), wanted)

    def has(self, token: str) -> bool:
        """Tell whether a session is open."""
        with self._lock:
            return token in self._sessions

    def idle(self, token: str) -> float:
        """Return for how many seconds nobody called a session; infinite if gone."""
        with self._lock:
            session = self._sessions.get(token)
        return math.inf if session is None else self.clock() - session.last_used

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

    def check(self, token: str, holder: str | None = None) -> SessionSpec:
        """Return what a session was opened with, for who may call it.

        Parameters
        ----------
        token : str
            Its own, or the key that its neighbours in a chain have.
        holder : str, optional
            Of the certificate (see
            :attr:`~atlas_flwr.trunk.credentials.Credentials.holder`); ``None`` where
            none was asked for.

        Raises
        ------
        SessionError
            If it is not open, or was opened for another holder; which, is not told.
        """
        spec = self.find(self._keys.get(token, token)).spec
        theirs = spec.holder
        if holder is not None and theirs not in ("", holder):
            raise SessionError(
                f"this session is another certificate's than the one shown, {holder!r}:"
                " a token works for the node that it was sent to. A node whose "
                "certificate got another name must be started again before the next run"
            )
        return spec

    def _know(self, seams: Seams | None, token: str) -> None:
        """Note a session's key; forget those of sessions that are gone."""
        if seams is not None:
            known = self._keys.items()
            self._keys = {k: t for k, t in known if t in self._sessions}
            self._keys[seams.key] = token

    @contextmanager
    def using(self, token: str, *, on_device: bool = True) -> Iterator[Session]:
        """Take a session for one call; other calls of it wait.

        Parameters
        ----------
        token : str
            Whose.
        on_device : bool
            Whether it has to be where the trunk computes.

        Raises
        ------
        SessionError
            If it is not open.
        TrunkBusy
            If there is no room for it there now.
        """
        session, came = self.find(token), self.clock()
        with session.lock:
            session.is_begun = True
            session.away.come(came)
            session.last_used = self.clock()
            try:
                if on_device and self.residence.is_away(session):
                    self.bring(session)
                yield session
            finally:
                session.publish()
                session.last_used = self.clock()
                session.away.go(session.last_used)

    def bring(self, session: Session) -> None:
        """Bring a session, whose lock is held, back to where the trunk computes.

        Raises
        ------
        TrunkBusy
            If there is no room for it there now.
        """
        needed = session.learner.nbytes + session.log.remembered_bytes
        self._make_room(needed)
        with self._lock:
            self._check_room(session, needed)
        # What a failed move has brought lies there beside the rest, and is used later.
        with_room(lambda: self.residence.back(session), self.relieve)

    def admit(self, session: Session, step: int, nbytes: int = 0) -> None:
        """Count one pass more for a session that is in use.

        One before a step of the session that is open already is never refused. Of
        batches in flight together the later wait for the earlier: were those refused,
        the later ones of several sessions could fill the limit, and wait without end.

        Parameters
        ----------
        session : Session
            Whose.
        step : int
            Its number.
        nbytes : int
            What it is expected to keep: it counts already while it waits, or all that
            wait together would be let in.

        Raises
        ------
        TrunkBusy
            If the open passes of all sessions are at a limit.
        """
        self._make_room(nbytes)
        with self._lock:
            self._evict()
            session.publish()
            if not session.log.has_later(step):
                self._check_load()
                self._check_room(session, nbytes)
            session.load += Load(1, nbytes)

    def _check_load(self) -> None:
        """Refuse a pass beside as many as are allowed."""
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

    def _make_room(self, nbytes: int = 0) -> None:
        """Let idle sessions go, if all do not have room beside what is to come."""
        if (short := self._short(nbytes)) > 0:
            self.relieve(short)

    def _check_room(self, session: Session, nbytes: int) -> None:
        """Refuse a call that has no room beside others' open steps."""
        most, short = self.limits.session_bytes, self._short(nbytes, self._sessions)
        others = (s.load.nbytes for s in self._sessions.values() if s is not session)
        if short > 0 and any(others):
            raise TrunkBusy(
                f"this call needs {nbytes:,} bytes, {short:,} more than sessions may "
                f"take beside one another, which is {most:,}; try again in a moment, "
                "recompute activations (trunk-recompute), or raise trunk-limit"
            )

    def _short(
        self, nbytes: int = 0, sessions: Mapping[str, Session] | None = None
    ) -> int:
        """Return by how many bytes sessions and what is to come pass the limit."""
        if self.limits.session_bytes is None:
            return 0
        found = self._all() if sessions is None else sessions.values()
        return self.residence.nbytes(found) + nbytes - self.limits.session_bytes

    def _all(self) -> list[Session]:
        with self._lock:
            return list(self._sessions.values())

    def _load(self) -> Load:
        return sum((s.load for s in self._sessions.values()), Load())

    def _evict(self, full: bool = False) -> None:
        """Forget sessions whose clients are silent.

        One that has taken its steps waits for its owner, who reads it when the slowest
        client is done, or one that checks its trunk; and closes it with its round.
        """
        limit = self.clock() - self.limits.idle_seconds
        idle = [
            token
            for token, session in self._sessions.items()
            if session.last_used < limit
            and (full or (session.is_begun and not session.is_done))
        ]
        for token in idle:
            del self._sessions[token]
        self.evicted += len(idle)
