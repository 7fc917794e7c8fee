# SPDX-License-Identifier: Apache-2.0
"""How sessions begin: what each holds, and what it shares with others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

from atlas_flwr.errors import AdapterError, SessionError
from atlas_flwr.lora import AdapterState, LoraFactors, trailing
from atlas_flwr.trunk.engine.base import SharedBase, Slice
from atlas_flwr.trunk.engine.learner import Learner
from atlas_flwr.trunk.engine.residence import with_room
from atlas_flwr.trunk.engine.session import Session, SessionSpec
from atlas_flwr.trunk.engine.steps import StepLog
from atlas_flwr.trunk.engine.table import SessionTable

__all__ = ["Opening"]


class Opening:
    """Opens sessions of one base.

    Parameters
    ----------
    base : SharedBase
        Whose blocks they run.
    table : SessionTable
        Where they are held, within its limits.
    clock : Callable[[], float]
        Seconds, as the table's.
    """

    def __init__(
        self, base: SharedBase, table: SessionTable, clock: Callable[[], float]
    ) -> None:
        self._base = base
        self._table = table
        self._clock = clock
        self._joining = threading.Lock()
        self._shared: dict[str, dict[str, LoraFactors]] = {}

    def share(self, name: str, products: Mapping[str, LoraFactors]) -> None:
        """Hold products that many sessions fold, by what specs call them."""
        self._shared[name] = self._base.placed(products)

    def unshare(self, name: str) -> None:
        """Forget shared products; sessions that are open keep theirs."""
        self._shared.pop(name, None)

    def open(self, spec: SessionSpec) -> str:
        """Open a session; return its token.

        Raises
        ------
        SessionError
            If it folds products that nobody has shared.
        PlanError, AdapterError, TrunkBusy
            See :meth:`~atlas_flwr.trunk.engine.engine.TrunkEngine.open`.
        """
        given = self._with_shared(spec)
        own = with_room(
            partial(self._base.slice, spec.plan, given), self._table.relieve
        )
        most = self._table.limits.passes_per_session
        # Of a step any batch in flight may be asked for again; logits are large.
        is_large = spec.plan.tail is None and spec.optimizer.accumulate == 1
        log = StepLog(most, 1 if is_large else max(most, 2))
        # Of two that come at once, the second is to find the first.
        with self._joining if spec.shared else nullcontext():
            learner = self._learner(spec, own)
            # Its state is copied by now, and would be held twice.
            spec = replace(spec, state=AdapterState(origin=spec.state.origin))
            session = Session(spec, own.view, learner, own.folded, log, self._clock())
            return self._table.add(session)

    def _with_shared(self, spec: SessionSpec) -> AdapterState:
        if not spec.folds:
            return spec.state
        held = self._shared.get(spec.state.origin)
        if held is None:
            raise SessionError(
                f"the session folds what is shared as {spec.state.origin!r}, and "
                "nothing is: share() it first, in the same round"
            )
        rests = {name: trailing(held[name], k) for name, k in spec.folds.items()}
        folded = {name: rest for name, rest in rests.items() if rest is not None}
        return replace(spec.state, folded=folded)

    def _learner(self, spec: SessionSpec, own: Slice) -> Learner:
        if not spec.shared:
            return Learner(own.factors, own.dense, spec.optimizer)
        fresh = Learner(own.factors, own.dense, spec.optimizer, spec.merge)
        found = self._table.shared(spec.shared) or fresh
        both = fresh.factors, found.factors
        ranks, theirs = ({name: f.rank for name, f in its.items()} for its in both)
        if ranks != theirs or own.dense or fresh.merge != found.merge:
            raise AdapterError(
                f"sessions that share {spec.shared!r} have {len(theirs)} adapted "
                f"layers at ranks of their own, no dense arrays and merge="
                f"{found.merge}; this one has {len(ranks)} layers, {len(own.dense)} "
                f"dense arrays, merge={fresh.merge}, or other ranks: give all of them "
                "one cut and the same ranks and merge"
            )
        return found
