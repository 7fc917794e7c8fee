# SPDX-License-Identifier: Apache-2.0
"""Calls of many threads that wait together, gathered for one pass.

The first call of the queue (see :mod:`atlas_flwr.budget.queues`) leads, takes along
what can be joined with it, in the queue's order, and does the work of all.
"""

from __future__ import annotations

import threading
import time
from bisect import insort
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from atlas_flwr.budget.queues import QUEUES
from atlas_flwr.errors import AtlasError, TrunkError
from atlas_flwr.trunk.engine.batching import Batcher
from atlas_flwr.trunk.engine.learner import Learner
from atlas_flwr.trunk.engine.table import Limits
from atlas_flwr.trunk.engine.work import Work

__all__ = ["Gathering", "PassCounts"]

WASTE = 1.25  # rows of a joined pass for each that was asked for
SMALL = 4096  # rows below which a GPU's pass costs the same whatever it holds


@dataclass
class PassCounts:
    """What the base has run.

    Attributes
    ----------
    passes : int
        Forward and backward, over however many sessions.
    joined_calls : int
        Calls that shared a pass with others.
    unjoined_calls : int
        Calls that ran alone while others waited, because they cannot be joined.
    busy_seconds : float
        Spent in passes, summed over those at once.
    """

    passes: int = 0
    joined_calls: int = 0
    unjoined_calls: int = 0
    busy_seconds: float = 0.0


@dataclass(eq=False)
class _Ticket:
    """A call that waits."""

    work: Work
    rank: float = 0.0
    woken: threading.Event = field(default_factory=threading.Event)
    leads: bool = False
    answer: Any = None

    @property
    def learner(self) -> Learner:
        """Of its session; no two calls of one wait at the same time."""
        return self.work.session.learner

    def result(self) -> Any:
        """Return the answer, or raise what it is."""
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


class Gathering:
    """Gather calls, and let a batcher do their work.

    Parameters
    ----------
    batcher : Batcher
        Does it.
    limits : Limits
        How much at once.
    own_threads : bool
        Run passes in threads of its own, as many as run at once, instead of in those
        of the calls that lead. glibc gives threads heaps of their own, up to eight for
        each core, and each keeps what the largest pass in it has freed.

    Attributes
    ----------
    counts : PassCounts
        What has been done.
    """

    def __init__(
        self, batcher: Batcher, limits: Limits, *, own_threads: bool = False
    ) -> None:
        self.batcher = batcher
        self.limits = limits
        self._threads = (
            ThreadPoolExecutor(limits.passes_at_once, "trunk-pass")
            if own_threads
            else None
        )
        self.counts = PassCounts()
        self._lock = threading.Lock()
        self._queue = QUEUES[limits.queue]()
        self._arrived = threading.Condition(self._lock)
        self._waiting: list[_Ticket] = []
        self._running: list[_Ticket] = []
        self._passes = 0
        self._leader: _Ticket | None = None
        self._company: set[Learner] = set()
        self._last_seconds = 0.0

    @property
    def waiting(self) -> int:
        """Calls that wait for their turn now."""
        return len(self._waiting)

    def do(self, work: Work) -> Any:
        """Wait for a call's turn, and do its work, or let another call do it.

        Raises
        ------
        TrunkError
            What went wrong with it; also if a pass that it was joined in has failed.
        """
        if _must_not_wait():
            return self._apart(work)
        ticket = _Ticket(work)
        with self._lock:
            self._arrive(ticket)
        if not ticket.leads:
            ticket.woken.wait()
        if ticket.leads:
            self._lead(ticket)
        return ticket.result()

    def forget(self, learner: Learner) -> None:
        """Wait for calls of these sessions no more."""
        with self._lock:
            self._company.discard(learner)
            self._arrived.notify_all()

    def _apart(self, work: Work) -> Any:
        started = time.perf_counter()
        (answer,) = self.batcher.run([work])
        with self._lock:
            self._count(1, time.perf_counter() - started)
        if isinstance(answer, AtlasError):
            raise answer
        return answer

    def _arrive(self, ticket: _Ticket) -> None:
        beside = [*self._waiting, *self._running]
        if beside:
            self._company.update(t.learner for t in (ticket, *beside))
        ticket.rank = self._queue.rank(ticket.work.waiting)
        insort(self._waiting, ticket, key=lambda t: t.rank)
        self._arrived.notify_all()
        self._appoint()

    def _appoint(self) -> None:
        """Let the first of the queue lead, if a pass may begin."""
        may_begin = self._passes < self.limits.passes_at_once
        if self._waiting and self._leader is None and may_begin:
            self._leader = self._waiting[0]
            self._leader.leads = True
            self._leader.woken.set()

    def _lead(self, ticket: _Ticket) -> None:
        with self._lock:
            try:
                batch = self._gathered(ticket)
            except BaseException:
                self._resign(ticket)
                raise
            self._waiting = [t for t in self._waiting if t not in batch]
            self._running += batch
            for taken in batch:
                self._queue.take(taken.rank)
            self._passes += 1
            self._leader = None
            self._appoint()
        started = time.perf_counter()
        try:
            answers = self._run([t.work for t in batch])
        except BaseException as error:
            answers = [_failure(error, len(batch)) for _ in batch]
            if not isinstance(error, Exception):
                raise
        finally:
            self._finish(batch, answers, time.perf_counter() - started)

    def _resign(self, ticket: _Ticket) -> None:
        """Let another lead, or nobody ever would."""
        self._waiting.remove(ticket)
        self._queue.take(ticket.rank)
        self._leader = None
        self._appoint()

    def _run(self, works: Sequence[Work]) -> Sequence[Any]:
        if self._threads is None:
            return self.batcher.run(works)
        count = torch.get_num_threads()  # OpenMP keeps the number for each thread

        def run() -> Sequence[Any]:
            torch.set_num_threads(count)
            return self.batcher.run(works)

        return self._threads.submit(run).result()

    def _finish(
        self, batch: Sequence[_Ticket], answers: Sequence[Any], seconds: float
    ) -> None:
        with self._lock:
            self._running = [t for t in self._running if t not in batch]
            self._passes -= 1
            self._last_seconds = seconds
            self._count(len(batch), seconds)
            self._appoint()
        for ticket, answer in zip(batch, answers, strict=True):
            ticket.leads, ticket.answer = False, answer
            ticket.woken.set()

    def _count(self, calls: int, seconds: float) -> None:
        self.counts.passes += 1
        self.counts.joined_calls += calls if calls > 1 else 0
        self.counts.busy_seconds += seconds

    def _gathered(self, first: _Ticket) -> list[_Ticket]:
        """Return the calls that run together with the first one."""
        if self.limits.sessions_per_pass == 1:
            return [first]
        if len(self._waiting) == 1 and not self._missing():
            return [first]
        kind = self.batcher.kind(first.work)
        if kind is None:
            self.counts.unjoined_calls += len(self._waiting) > 1
            return [first]
        self._wait_for_company()
        return self._chosen(first, kind)

    def _missing(self) -> set[Learner]:
        """Return the sessions that called beside others before, and do not now."""
        return self._company - {t.learner for t in (*self._waiting, *self._running)}

    def _wait_for_company(self) -> None:
        """Wait while calls keep coming, for half of a pass's time at most."""
        window = min(self.limits.window_seconds, self._last_seconds / 2)
        deadline = time.monotonic() + window
        while missing := self._missing():
            if len(self._waiting) >= self.limits.sessions_per_pass:
                return
            left = min(window / 4, deadline - time.monotonic())
            count = len(self._waiting)
            if left > 0:
                self._arrived.wait(left)
            if len(self._waiting) == count and missing == self._missing():
                self._company -= missing  # until they call beside others again
                return

    def _chosen(self, first: _Ticket, kind: Hashable) -> list[_Ticket]:
        """Choose what is like the first call, in the queue's order."""
        alike = [first]
        alike += [
            t
            for t in self._waiting
            if t is not first and self.batcher.kind(t.work) == kind
        ]
        free = self.limits.passes_at_once - self._passes
        most = min(-(-len(alike) // free), self.limits.sessions_per_pass)
        batch: list[_Ticket] = []
        for ticket in alike:
            if len(batch) < most and self._fits([*batch, ticket]):
                batch.append(ticket)
        return batch

    def _fits(self, batch: Sequence[_Ticket]) -> bool:
        shapes = [tuple(t.work.call.hidden.shape[:2]) for t in batch]
        filled = len(shapes) * max(b for b, _ in shapes) * max(t for _, t in shapes)
        small = SMALL if batch[0].work.call.hidden.is_cuda else 0
        wanted = max(WASTE * sum(b * t for b, t in shapes), small)
        return len(batch) == 1 or filled <= min(wanted, self.limits.rows_per_pass)


def _failure(error: BaseException, calls: int) -> BaseException:
    if calls == 1:
        return error
    made = TrunkError(f"a pass that {calls} sessions shared has failed: {error!r}")
    made.__cause__ = error
    return made


def _must_not_wait() -> bool:
    """Tell whether this is autograd's own thread of a GPU, in a backward pass.

    There is one for all backward passes on that GPU, that of the pass which would be
    waited for among them.
    """
    in_backward = torch._C._current_graph_task_id() != -1
    return in_backward and isinstance(
        threading.current_thread(), threading._DummyThread
    )
