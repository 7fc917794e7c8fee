# SPDX-License-Identifier: Apache-2.0
"""Where sessions' state lies: on the trunk's device or, while they wait, in the host.

A session that makes no call needs no GPU memory. When another one needs it, those that
have waited longest move to the host's memory with their adapters, moments and
remembered answers, and back before their next pass, bit for bit. A step of theirs that
is open longer than :data:`PATIENCE` loses its graph, and is run forward again by its
backward. On a CPU nothing moves, since it is there already; graphs are given up alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import TypeVar
from weakref import WeakSet

import torch

from atlas_flwr.errors import TrunkBusy, TrunkError
from atlas_flwr.trunk.engine.learner import Learner
from atlas_flwr.trunk.engine.session import Session

__all__ = ["HOST", "PATIENCE", "Residence", "stepping", "with_room"]

PATIENCE = 30.0  # seconds after which a client with an open step counts as idle
HOST = torch.device("cpu")
T = TypeVar("T")


class Residence:
    """Moves sessions, of which nothing is running; safe to use from many threads.

    Parameters
    ----------
    device : torch.device
        The trunk's.
    clock : Callable[[], float]
        Seconds.

    Attributes
    ----------
    moves : int
        How often adapters have left for the host.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float]) -> None:
        self.device = device
        self.clock = clock
        self.moves = 0
        self._away: WeakSet[Learner] = WeakSet()

    def is_away(self, session: Session) -> bool:
        """Whether its state is in the host's memory."""
        return session.learner in self._away

    def nbytes(self, sessions: Iterable[Session]) -> int:
        """Return what sessions take on the device, or did after their last call."""
        here = [s for s in sessions if not self.is_away(s)]
        learners = {id(s.learner): s.learner.nbytes for s in here}
        return sum(learners.values()) + sum(
            s.remembered_bytes + s.load.nbytes for s in here
        )

    def back(self, session: Session) -> None:
        """Bring a session back; its lock is held."""
        if self.is_away(session):
            _move(session.learner, self.device)
            self._away.discard(session.learner)

    def leave(self, sessions: Sequence[Session]) -> int:
        """Let sessions that share adapters go; their lock is held.

        Returns
        -------
        int
            Bytes that are free now.
        """
        before = self.nbytes(sessions)
        for session in sessions:
            session.log.forget_graphs()
            session.publish()
        learner = sessions[0].learner
        if self.device != HOST and learner.can_move and learner not in self._away:
            _move(learner, HOST)
            self._away.add(learner)
            self.moves += 1
        return before - self.nbytes(sessions)

    def relieve(self, sessions: Iterable[Session], wanted: float) -> int:
        """Let idle sessions go, the longest unused first, until enough is free.

        A session that is in a call is none of them. Nobody waits for a lock here, so
        callers may hold one.

        Parameters
        ----------
        sessions : Iterable[Session]
            All.
        wanted : float
            Bytes.

        Returns
        -------
        int
            Bytes that are free now.
        """
        freed = 0
        for mates in _by_last_use(sessions):
            if freed >= wanted:
                break
            lock = mates[0].lock
            if not lock.acquire(blocking=False):
                continue
            try:
                if all(map(self._is_idle, mates)):
                    freed += self.leave(mates)
            finally:
                lock.release()
        return freed

    def _is_idle(self, session: Session) -> bool:
        waited = self.clock() - session.last_used
        return not session.log.load.passes or waited >= PATIENCE


def _by_last_use(sessions: Iterable[Session]) -> list[list[Session]]:
    """Group sessions that share adapters; the group last used longest ago comes first.

    Some may be used meanwhile, so times are read once.
    """
    by_learner = sorted(sessions, key=lambda s: id(s.learner))
    groups = [list(g) for _, g in groupby(by_learner, key=lambda s: id(s.learner))]
    timed = [(max(s.last_used for s in mates), k) for k, mates in enumerate(groups)]
    return [groups[k] for _, k in sorted(timed)]


def _move(learner: Learner, device: torch.device) -> None:
    learner.move(device)
    for log in learner.logs:
        log.move(device)


def with_room(
    work: Callable[[], T],
    relieve: Callable[[], int],
    undo: Callable[[], None] = lambda: None,
    *,
    tries: int = 2,
) -> T:
    """Do work; if memory is out, let idle sessions go and do it once more.

    Parameters
    ----------
    work : Callable[[], T]
        Can be repeated.
    relieve : Callable[[], int]
        Makes room.
    undo : Callable[[], None]
        What to do before a repetition.
    tries : int
        1 for work that its caller alone can repeat, from what it began with.

    Raises
    ------
    TrunkBusy
        If memory is out then, too.
    """
    for _ in range(tries):
        try:
            return work()
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
        # Not above: there the error still holds what the work has made.
        undo()
        relieve()
    raise TrunkBusy(
        "the trunk has no memory left for this call, though idle sessions have made "
        "room; try again in a moment. If it stays so: a smaller batch-size or "
        "max-length, trunk-recompute=true, or trunk-limit below what the device has"
    )


@contextmanager
def stepping() -> Iterator[None]:
    """Say what it means if memory ends while sessions learn."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise TrunkError(
            "memory ended while the optimiser stepped, and the sessions' adapters may "
            "be between two steps; do the round again with a trunk-limit that leaves "
            "the device some room"
        ) from None


def _is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error is that of an allocator, of a GPU or of the host."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
