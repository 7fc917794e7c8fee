# SPDX-License-Identifier: Apache-2.0
"""A client's session on the trunk: its adapters, its optimiser, its recent steps."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from atlas_flwr.errors import SessionError, TrunkError
from atlas_flwr.lora import AdapterState, ImportanceProbe, LoraFactors
from atlas_flwr.split import SplitPlan
from atlas_flwr.trunk.engine.learner import Learner
from atlas_flwr.trunk.engine.steps import Load, StepLog
from atlas_flwr.trunk.seams import Seams
from atlas_flwr.types import OptimizerSpec

__all__ = ["Session", "SessionSpec"]


@dataclass(frozen=True)
class SessionSpec:
    """What a session is opened with.

    Attributes
    ----------
    plan : SplitPlan
        The client's cut; the trunk runs the blocks between.
    state : AdapterState
        Adapters of those blocks, by layer, and what is folded into them; their IA3
        vectors; in a vanilla split also the dense arrays of the classifier. Empty:
        nothing is trained here.
    optimizer : OptimizerSpec
        How they are trained.
    shared : str
        Sessions with the same name here, open at the same time, train one and the same
        adapters, in the order in which their gradients come; the first one's state is
        what they begin with. Empty: its own.
    folds : Mapping[str, int]
        What the base is to have beside its weights: of the products that were shared
        as ``state.origin``, by layer, the directions from this one on.
    probe : bool
        Whether to measure the importance of the frozen layers in backward passes.
    merge : int
        Batches of the sessions that share, whoever's, in one optimiser step on the mean
        of their gradients.
    client : str
        Whose it is, by the name that outlives a run, for who finds it a place and for
        an account of who was there; told to no peer.
    round : int
        Server round that it is for, for that account; 0 for none.
    holder : str
        Whose certificate its calls must be made with, where the trunk asks for
        certificates; empty: anybody's. Told to no peer.
    seams : Seams, optional
        Its place in a chain whose hosts call each other.
    steps : int
        How many its client will take, for the queue of the calls that wait; 0: unknown.

    Raises
    ------
    TrunkError
        If ``merge`` is below 1, or above it where nothing is shared.
    """

    plan: SplitPlan
    state: AdapterState = field(default_factory=AdapterState)
    optimizer: OptimizerSpec = field(default_factory=OptimizerSpec)
    shared: str = ""
    folds: Mapping[str, int] = field(default_factory=dict)
    probe: bool = False
    merge: int = 1
    client: str = ""
    steps: int = 0
    round: int = 0
    holder: str = ""
    seams: Seams | None = None

    def __post_init__(self) -> None:
        if self.merge < 1 or (self.merge > 1 and not self.shared):
            raise TrunkError(
                f"merge={self.merge} with shared={self.shared!r}; it must be at least "
                "1, and only sessions that share adapters can merge their batches: "
                "give them one name in shared="
            )


@dataclass
class Away:
    """How long a session's client stays away between its calls.

    Attributes
    ----------
    calls : int
        That came.
    """

    calls: int = 0
    _seconds: float = 0.0
    _gaps: int = 0
    _since: float | None = None

    def come(self, now: float) -> None:
        """Note a call at this second of the engine's clock."""
        self.calls += 1
        if self._since is not None:
            self._seconds += max(0.0, now - self._since)  # calls may overlap
            self._gaps += 1
            self._since = None

    def go(self, now: float) -> None:
        """Note that it was answered."""
        self._since = now

    @property
    def mean(self) -> float:
        """Seconds between an answer and the next call; infinite before the second."""
        return self._seconds / self._gaps if self._gaps else math.inf


class Session:
    """State of one client on the trunk. One call at a time: hold :attr:`lock`.

    Parameters
    ----------
    spec : SessionSpec
        As opened.
    view : Any
        The session's blocks, shared with all others; its classifier, if it trains one,
        is its own.
    learner : Learner
        What it trains; other sessions may train the same.
    folded : Mapping[str, LoraFactors]
        Products that the base is to have for it, by layer; never trained.
    log : StepLog
        Its steps.
    now : float
        Seconds on the engine's clock.

    Attributes
    ----------
    away : Away
        Where its client's time goes.
    load : Load
        What its open steps keep, published for other threads to read.
    remembered_bytes : int
        What its questions and answers take, published likewise.
    is_begun : bool
        Whether any call came yet.
    is_done : bool
        Whether it may be waiting to be read, published likewise: of the steps that were
        told it has taken the last, or has none open. Its client keeps some to itself
        where gradients are small, and a fingerprint takes fewer.
    """

    def __init__(
        self,
        spec: SessionSpec,
        view: Any,
        learner: Learner,
        folded: Mapping[str, LoraFactors],
        log: StepLog,
        now: float,
    ) -> None:
        self.spec = spec
        self.view = view
        self.learner = learner
        self.folded = folded
        self.probe = ImportanceProbe() if spec.probe else None
        self.log = log
        self.last_used = now
        self.is_begun = self.is_done = False
        self.away = Away()
        self.load = Load()
        self.remembered_bytes = 0
        # Others that train the same may be stepping, and go through all their logs.
        with learner.lock:
            learner.logs.add(log)

    @property
    def left(self) -> float:
        """Seconds that its client has before it outside the trunk, as it was so far.

        Where nobody said how many steps it will take, those of one call.
        """
        calls = self.spec.steps * (1 if self.spec.plan.tail is None else 2)
        return self.away.mean * max(calls - self.away.calls, 1)

    @property
    def lock(self) -> threading.Lock:
        """Held during a call; sessions that train the same take turns."""
        return self.learner.lock

    @property
    def factors(self) -> Mapping[str, LoraFactors]:
        """Its adapters, by layer."""
        return self.learner.factors

    @property
    def vectors(self) -> Mapping[str, Tensor]:
        """Its IA3 vectors, by layer."""
        return self.learner.vectors

    @property
    def parameters(self) -> Sequence[Tensor]:
        """All that it trains."""
        return self.learner.parameters

    def publish(self) -> None:
        """Let other threads read what it keeps now."""
        self.load = self.log.load
        self.remembered_bytes = self.log.remembered_bytes
        # Of a vanilla session that tells nothing: it never has a step open.
        rests = self.spec.plan.tail is not None and not self.load.passes
        has_all = self.spec.steps <= self.log.last + 1
        self.is_done = self.spec.steps > 0 and (has_all or rests)

    def learn(self, grads: Sequence[Tensor | None], step: int | None = None) -> None:
        """Take in a step's gradients of :attr:`parameters`."""
        self.learner.learn(grads, self.log, step)

    def state(self) -> AdapterState:
        """Copy everything that was trained here, after a last step if one is due."""
        self.learner.settle()
        return self.learner.state()

    def check_u_shaped(self, verb: str) -> None:
        """Refuse what a session without a tail cannot do.

        Raises
        ------
        SessionError
            If it is such a session.
        """
        if self.spec.plan.tail is None:
            raise SessionError(
                f"{verb}() of a session whose cut is {self.spec.plan}: the trunk ends "
                "the model, and loss() is the whole of each of its steps; call that, "
                "or open the session with a tail"
            )

    def check_vanilla(self) -> None:
        """Refuse to end a model whose tail is on the client.

        Raises
        ------
        TrunkError
            If it is.
        """
        if self.spec.plan.tail is not None:
            raise TrunkError(
                f"the session's cut is {self.spec.plan}, whose tail is on the client; "
                "only a vanilla cut (HEAD/-) ends in the trunk"
            )
