# SPDX-License-Identifier: Apache-2.0
"""Phase 3, the server's part: a session on the trunk for each client of a round."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from atlas_flwr.budget import Guest, Host
from atlas_flwr.errors import AdapterError, SessionError, TrunkError
from atlas_flwr.lora import PROMPT_KEY, AdapterState
from atlas_flwr.protocol.doors import way_to
from atlas_flwr.remedies.base import UNCHANGED, ServerHooks
from atlas_flwr.remedies.personal_layers import PersonalLayers
from atlas_flwr.split import SUMMARY_KEY, SplitPlan
from atlas_flwr.trunk import SessionSpec, TrunkHost
from atlas_flwr.trunk.host import Door, Introducing, Judging
from atlas_flwr.trunk.hosts.departures import Computed
from atlas_flwr.types import OptimizerSpec

__all__ = ["TrunkSessions"]

ALL = "all"
# Learned positions around the texts: before all blocks, so never on the trunk.
AROUND_TEXTS = (PROMPT_KEY, SUMMARY_KEY)


@dataclass
class TrunkSessions:
    """Open, collect and close the sessions of one round.

    Parameters
    ----------
    host : TrunkHost
        The trunk, as its owner sees it.
    address, ca : str
        What a client passes to :func:`atlas_flwr.trunk.connect`; no ``ca`` where there
        is no TLS.
    optimizer : OptimizerSpec
        How the trunk's adapters are trained.
    layer_block : Callable[[str], int | None]
        Block that the name of a layer or an array belongs to, counted in the whole
        model; ``None`` for what is outside the blocks.
    num_layers : int
        Blocks of the whole model.
    shared : bool
        Whether all clients of a round train one adapter on the trunk, step by step,
        instead of one each. They must have one cut and the same ranks.
    merge : int
        With ``shared``: batches in one step of that adapter, whichever clients they
        come from.
    hooks : ServerHooks
        Say what clients keep to themselves.
    checks : float
        Share of the messages in which clients check their hosts.
    steps : int
        That a client takes in a round, for the order in which the trunk serves.
    holder : Callable[[str], str]
        Whom the certificate is of that a client shows the trunk; empty for none.
    started : Callable[[str, int, AdapterState], None]
        Is told, of each client and round of training, what its session began with.
    """

    host: TrunkHost
    address: str
    optimizer: OptimizerSpec
    layer_block: Callable[[str], int | None]
    num_layers: int
    shared: bool = False
    merge: int = 1
    hooks: ServerHooks = UNCHANGED
    ca: str = ""
    checks: float = 0.0
    steps: int = 0
    holder: Callable[[str], str] = lambda _: ""
    started: Callable[[str, int, AdapterState], None] = lambda *_: None
    _tokens: dict[str, str] = field(default_factory=dict)
    _shared: set[str] = field(default_factory=set)
    _shared_plan: SplitPlan | None = None  # the cut of those who train one adapter

    def open(
        self,
        client: str,
        plan: SplitPlan,
        state: AdapterState,
        source: AdapterState | None = None,
        probe: bool = False,
        server_round: int = 0,
    ) -> str:
        """Open a session with the trunk's share of ``state``; return its token.

        What ``state`` has folded are the last directions of ``source``, which the trunk
        is given once a round. With ``probe``, the session measures the importance of
        its frozen layers.

        Raises
        ------
        TrunkLost
            If the trunk is gone.
        """
        self.close(client)
        mine = self.on_trunk(plan, state)
        shared = ALL if self.shared and mine.factors else ""
        self._shared_plan = plan if shared else self._shared_plan
        live, folds = self._folds(mine, source)
        merge = self.merge if shared else 1
        spec = SessionSpec(
            plan,
            live,
            self.optimizer,
            shared,
            folds,
            probe,
            merge,
            client,
            self.steps,
            server_round,
            self.holder(client),
        )
        self._tokens[client] = self.host.open(spec)
        return self._tokens[client]

    def admit(
        self,
        what: str,
        server_round: int,
        guests: Sequence[Guest],
        hosts: Collection[Host],
    ) -> Collection[str]:
        """Find clients a place on the trunk; return those that have one.

        Parameters
        ----------
        what, server_round : str, int
            For which message of which round.
        guests, hosts : Sequence[Guest], Collection[Host]
            The clients, and those who would carry the trunk if peers do.
        """
        if isinstance(self.host, Introducing):
            return self.host.admit(what, server_round, guests, hosts)
        return [guest.client for guest in guests]

    def state(self) -> dict[str, object]:
        """Return what a resumed run needs to find clients the same places: JSON."""
        return self.host.state() if isinstance(self.host, Introducing) else {}

    def restore(self, values: Mapping[str, Any]) -> None:
        """Take up what :meth:`state` returned."""
        if isinstance(self.host, Introducing) and values:
            self.host.restore(values)

    def way(self, token: str) -> dict[str, str | list[str]]:
        """Return what a message says of the way to a session."""
        if isinstance(self.host, Introducing):
            return way_to(self.host.doors(token))
        return way_to([Door(self.address, token, self.ca)])

    def is_checked(self) -> bool:
        """Draw whether a client checks its host: by no seed, which hosts would know."""
        return random.SystemRandom().random() < self.checks

    def on_trunk(self, plan: SplitPlan, state: AdapterState) -> AdapterState:
        """Return what of ``state`` is trained on the trunk under ``plan``.

        That includes dense arrays of the trunk's blocks, as IA3's vectors are, and in a
        vanilla split those of the classifier, which is there. A prompt and summary
        positions are before all blocks, and so never on the trunk.
        """
        blocks = plan.trunk_range(self.num_layers)
        places = {None, *blocks} if plan.tail is None else {*blocks}
        names = [n for n in state.layers if self.layer_block(n) in blocks]
        keys = [k for k in state.dense if self.layer_block(k) in places]
        dense = {k: state.dense[k] for k in keys if k not in AROUND_TEXTS}
        return state.select(names, dense)

    def on_client(self, plan: SplitPlan, state: AdapterState) -> AdapterState:
        """Return the layers and arrays that are trained on the client."""
        other = self.on_trunk(plan, state)
        names = state.layers - other.layers
        dense = {k: v for k, v in state.dense.items() if k not in other.dense}
        return state.select(names, dense)

    def common(self, state: AdapterState) -> AdapterState:
        """Return what of ``state`` all train as one; nothing where each has its own."""
        if self._shared_plan is None:
            return AdapterState()
        return self.on_trunk(self._shared_plan, state)

    def personal(self, plan: SplitPlan, state: AdapterState) -> PersonalLayers | None:
        """Return what of ``state`` a client keeps to itself, if anything."""
        return self.hooks.personal(plan, state)

    def _folds(
        self, mine: AdapterState, source: AdapterState | None
    ) -> tuple[AdapterState, dict[str, int]]:
        """Name the directions that are folded, instead of sending them each time."""
        if not mine.folded or source is None:
            return mine, {}
        if mine.origin not in self._shared:
            self.host.share(mine.origin, source.factors)
            self._shared.add(mine.origin)
        firsts = {n: source.factors[n].rank - f.rank for n, f in mine.folded.items()}
        return replace(mine, folded={}), firsts

    def importance(self, client: str) -> Mapping[str, float]:
        """Return what a client's probing session has measured, by layer.

        Raises
        ------
        SessionError
            If the session was evicted.
        TrunkLost
            If the trunk is gone.
        """
        return self.host.importance(self._tokens[client])

    def judge(self, client: str, computed: Computed) -> None:
        """Want a session's adapters to be what its client has computed.

        Raises
        ------
        SessionError
            If they are not.
        """
        if isinstance(self.host, Judging):
            try:
                self.host.judge([self._tokens[client]], computed)
            except TrunkError as error:
                raise SessionError(f"client {client}: {error}") from None

    def collect(self, client: str) -> AdapterState:
        """Return the trained adapters of a client's session and close it.

        Raises
        ------
        SessionError
            If the session was evicted.
        AdapterError
            If they are no numbers: of one client they would spoil everybody's.
        TrunkLost
            If the trunk is gone.
        """
        state = self.host.adapters(self._tokens[client])
        self.close(client)
        _check_finite(client, state)
        return state

    def close(self, client: str) -> None:
        """Close a client's session, if it has one."""
        token = self._tokens.pop(client, None)
        if token is not None:
            self.host.close(token)

    def close_all(self, spared: Collection[str] = ()) -> None:
        """Close every session but some: a round ended, whoever did not come back."""
        for client in list(self._tokens):
            if client not in spared:
                self.close(client)
        for name in self._shared:
            self.host.unshare(name)
        self._shared.clear()


def _check_finite(client: str, state: AdapterState) -> None:
    factors = ((n, t) for n, f in state.factors.items() for t in (f.A, f.B))
    sound = [(name, bool(side.isfinite().all())) for name, side in factors]
    sound += [(key, bool(np.isfinite(v).all())) for key, v in state.dense.items()]
    for name, fits in sound:
        if not fits:
            raise AdapterError(
                f"client {client}: what its trunk has learned of {name!r} has NaN or "
                "infinity"
            )
