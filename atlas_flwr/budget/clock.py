# SPDX-License-Identifier: Apache-2.0
r"""A round of split training on a simulated clock: clients, links and trunks.

Each step of a client is a series of stages, and each stage holds one thing: the client
itself, its link up, its link down, a trunk, which all its clients share, or a seam
between two trunks; where the blocks are spread over several, one after the other. A
step may be in several *parts* (micro-batches), which follow each other through the
stages; the next step begins when the last part is back. A trunk takes the calls that
wait in the order of its queue, and joins calls of one kind in a pass, which takes

.. math:: t = \max(t_0, n \cdot t_{row})

seconds for n rows: a GPU computes while its kernels are launched, and the slower of the
two is what counts. What the clock leaves out: the moment that a trunk waits for
company, retries, what parts cost beyond their share of a step, how long an empty
message takes, and links that clients share.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Literal, NamedTuple

from atlas_flwr.budget.queues import Fifo, Queue, Waiting
from atlas_flwr.errors import BudgetError

__all__ = ["Round", "Traveller", "TrunkRate", "simulate"]

Place = Literal["client", "up", "down", "seam", "forward", "backward", "whole"]
# Of a step's work on a trunk, and of its launches, by pass.
SHARES: Mapping[Place, float] = {"forward": 1 / 3, "backward": 2 / 3, "whole": 1.0}
STARTS: Mapping[Place, int] = {"forward": 1, "backward": 1, "whole": 2}


class Stage(NamedTuple):
    """Where a step is: on its client, on a link, or in a pass of a trunk."""

    place: Place
    seconds: float = 0.0
    trunk: int = -1


@dataclass(frozen=True)
class Traveller:
    """A client of the round, and the seconds that one of its steps takes where.

    Attributes
    ----------
    head, tail : float
        Forward and backward of its own blocks, of which forward is a third each.
        ``tail=None`` is a vanilla split, whose tail the trunk runs.
    link : float
        One crossing of the step's tensors, up or down; to the first trunk, if
        ``links`` are given.
    rows : float
        Work that the step brings to the trunk: positions, or any other unit of ``row``.
    steps : int
        Of the round.
    trunks : tuple[int, ...]
        Which of the trunks it passes, in the order of forward.
    cluster : str
        For queues that are fair.
    links : tuple[float, ...]
        Of trunks after the first, one crossing each. The client carries what one trunk
        answers to the next. Empty: nothing of that takes time.
    seams : tuple[float, ...]
        One crossing from each trunk to the next, which hands on itself; the last
        answers the client over the last of ``links``. Empty: none does.

    Raises
    ------
    BudgetError
        If ``links`` or ``seams`` are not one less than trunks, a time or ``rows`` is
        below 0, or a number below 1.
    """

    head: float
    tail: float | None
    link: float
    rows: float = 1.0
    steps: int = 1
    trunks: tuple[int, ...] = (0,)
    cluster: str = ""
    links: tuple[float, ...] = ()
    seams: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        own = (self.head, self.tail or 0.0, self.link, self.rows)
        times = (*own, *self.links, *self.seams)
        between = len(self.trunks) - 1
        if {len(self.links), len(self.seams)} - {0, between}:
            raise BudgetError(
                f"{self}: of links and seams there must be {between}, one less than "
                "trunks, or none"
            )
        if min(times) < 0 or min(self.steps, len(self.trunks)) < 1:
            raise BudgetError(
                f"{self}: times and rows must be at least 0, steps and trunks at least "
                "1"
            )

    @property
    def stages(self) -> Sequence[Stage]:
        """The stages of a step, in order."""
        own = Stage("client", self.head / 3), Stage("client", self.head * 2 / 3)
        *near, last = self.trunks
        there = [
            stage
            for k, trunk in enumerate(near)
            for stage in (Stage("forward", trunk=trunk), *self._between(k, k + 1))
        ]
        back = [
            stage
            for k, trunk in reversed([*enumerate(near)])
            for stage in (*self._between(k + 1, k), Stage("backward", trunk=trunk))
        ]
        first, far = self._links[0], self._links[-1]
        there = [own[0], Stage("up", first), *there]
        back = [*back, Stage("down", first), own[1]]
        if self.tail is None:
            # The last trunk ends the model: its forward and backward are one pass.
            return [*there, Stage("whole", trunk=last), *back]
        ends = Stage("down", far), Stage("client", self.tail), Stage("up", far)
        passes = Stage("forward", trunk=last), Stage("backward", trunk=last)
        return [*there, passes[0], *ends, passes[1], *back]

    @property
    def _links(self) -> Sequence[float]:
        """One crossing between the client and each of its trunks."""
        rest = self.links or (self.link,) * (len(self.trunks) - 1)
        return self.link, *rest

    def _between(self, one: int, other: int) -> Sequence[Stage]:
        """The stages from a trunk to its neighbour."""
        if self.seams:
            return [Stage("seam", self.seams[min(one, other)])]
        if self.links:
            return [Stage("down", self._links[one]), Stage("up", self._links[other])]
        return []

    @property
    def outside(self) -> float:
        """Seconds of a step outside the trunk."""
        return sum(stage.seconds for stage in self.stages)


@dataclass(frozen=True)
class TrunkRate:
    """What a trunk does.

    Attributes
    ----------
    row : float
        Seconds that a position takes, forward and backward together. Forward is a third
        of it; in a vanilla step one pass is both.
    start : float
        Seconds that a pass takes at least, whatever it holds; one that is both, twice.
    sessions_per_pass : int
        Calls that one pass may join.
    passes_at_once : int
        Passes that run beside each other, each as fast as alone: GPUs, or cores.

    Raises
    ------
    BudgetError
        If a time is below 0, or a number below 1.
    """

    row: float
    start: float = 0.0
    sessions_per_pass: int = 1
    passes_at_once: int = 1

    def __post_init__(self) -> None:
        numbers = (self.sessions_per_pass, self.passes_at_once)
        if min(self.row, self.start) < 0 or min(numbers) < 1:
            raise BudgetError(f"{self}: times must be at least 0, numbers at least 1")

    def seconds(self, place: Place, rows: float) -> float:
        """Return what a pass takes."""
        return max(self.start * STARTS[place], rows * self.row * SHARES[place])


@dataclass(frozen=True)
class Round:
    """What came of it.

    Attributes
    ----------
    ends : Sequence[float]
        Seconds after which each client was through.
    busy : Sequence[float]
        Seconds that each trunk ran passes, summed over those at once.
    passes : int
        How many.
    """

    ends: Sequence[float]
    busy: Sequence[float]
    passes: int

    @property
    def seconds(self) -> float:
        """Of the whole round."""
        return max(self.ends)


class _Call(NamedTuple):
    rank: float
    number: int
    client: int
    stage: int


@dataclass
class _Trunk:
    rate: TrunkRate
    queue: Queue
    free: int
    waiting: dict[Place, list[_Call]] = field(default_factory=dict)

    def next(self) -> tuple[Place, list[_Call]] | None:
        """Take the calls of the next pass, if one may begin."""
        places: list[Place] = [place for place, calls in self.waiting.items() if calls]
        if not self.free or not places:
            return None
        first = min(places, key=lambda place: self.waiting[place][0])
        calls = self.waiting[first]
        most = min(-(-len(calls) // self.free), self.rate.sessions_per_pass)
        taken = [heapq.heappop(calls) for _ in range(most)]
        for call in taken:
            self.queue.take(call.rank)
        self.free -= 1
        return first, taken


def simulate(
    clients: Sequence[Traveller],
    trunks: Sequence[TrunkRate],
    *,
    queue: Callable[[], Queue] = Fifo,
    parts: int = 1,
) -> Round:
    """Run a round in which all clients begin at once.

    Parameters
    ----------
    clients : Sequence[Traveller]
        Who takes part; at least one.
    trunks : Sequence[TrunkRate]
        Those that they call.
    queue : Callable[[], Queue]
        Makes the order of each trunk's calls, one of :data:`~.queues.QUEUES`.
    parts : int
        Micro-batches in flight in each step; 1 is none.

    Raises
    ------
    BudgetError
        If there are no clients, ``parts`` is below 1, or a client calls no trunk there.
    """
    if not clients or parts < 1:
        raise BudgetError(f"{len(clients)} clients and parts={parts}; at least 1 each")
    for client in clients:
        if not {*client.trunks} <= {*range(len(trunks))}:
            raise BudgetError(f"{client} passes trunks of which {len(trunks)} are here")
    return _Clock(clients, trunks, queue, parts).run()


class _Clock:
    def __init__(
        self,
        clients: Sequence[Traveller],
        trunks: Sequence[TrunkRate],
        queue: Callable[[], Queue],
        parts: int,
    ) -> None:
        self.clients, self.parts = clients, parts
        self.stages = [client.stages for client in clients]
        self.outside = [client.outside for client in clients]
        self.trunks = [_Trunk(t, queue(), t.passes_at_once) for t in trunks]
        self.numbers = count()
        self.events: list[tuple[float, int, int, Sequence[tuple[int, int]]]] = []
        self.free_at: defaultdict[tuple[int, str], float] = defaultdict(float)
        self.steps, self.back = [0] * len(clients), [0] * len(clients)
        self.ends = [0.0] * len(clients)
        self.busy = [0.0] * len(trunks)
        self.passes = 0

    def run(self) -> Round:
        for client in range(len(self.clients)):
            self._begin(0.0, client)
        while self.events:
            now = self.events[0][0]
            while self.events and self.events[0][0] == now:
                _, _, trunk, arrivals = heapq.heappop(self.events)
                if trunk >= 0:
                    self.trunks[trunk].free += 1
                for client, stage in arrivals:
                    self._arrive(now, client, stage)
            for number in range(len(self.trunks)):
                self._serve(now, number)
        return Round(self.ends, self.busy, self.passes)

    def _begin(self, now: float, client: int) -> None:
        self._push(now, -1, [(client, 0)] * self.parts)

    def _push(self, at: float, trunk: int, arrivals: Sequence[tuple[int, int]]) -> None:
        heapq.heappush(self.events, (at, next(self.numbers), trunk, arrivals))

    def _arrive(self, now: float, client: int, stage: int) -> None:
        if stage == len(self.stages[client]):
            self._came_back(now, client)
            return
        place, seconds, trunk = self.stages[client][stage]
        if trunk >= 0:
            self._wait(client, stage, place, self.trunks[trunk])
            return
        begins = max(now, self.free_at[client, place])
        ends = begins + seconds / self.parts
        self.free_at[client, place] = ends
        self._push(ends, -1, [(client, stage + 1)])

    def _came_back(self, now: float, client: int) -> None:
        self.back[client] += 1
        if self.back[client] < self.parts:
            return
        self.back[client] = 0
        self.steps[client] += 1
        if self.steps[client] < self.clients[client].steps:
            self._begin(now, client)
        else:
            self.ends[client] = now

    def _wait(self, client: int, stage: int, place: Place, trunk: _Trunk) -> None:
        who = self.clients[client]
        behind = sum(s.seconds for s in self.stages[client][stage:])
        left = (who.steps - self.steps[client] - 1) * self.outside[client] + behind
        rank = trunk.queue.rank(Waiting(left, who.cluster, who.rows))
        call = _Call(rank, next(self.numbers), client, stage)
        heapq.heappush(trunk.waiting.setdefault(place, []), call)

    def _serve(self, now: float, number: int) -> None:
        trunk = self.trunks[number]
        while found := trunk.next():
            place, calls = found
            rows = sum(self.clients[c.client].rows for c in calls) / self.parts
            seconds = trunk.rate.seconds(place, rows)
            self.busy[number] += seconds
            self.passes += 1
            onwards = [(c.client, c.stage + 1) for c in calls]
            self._push(now + seconds, number, onwards)
