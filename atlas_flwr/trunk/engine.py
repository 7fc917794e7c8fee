# SPDX-License-Identifier: Apache-2.0
"""The trunk engine: one frozen base, and a session with adapters for each client."""

from __future__ import annotations

import copy
import resource
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from atlas_flwr.errors import SessionError, TrunkBusy, TrunkError
from atlas_flwr.lora import AdapterState, linear_names
from atlas_flwr.split import part_info, trunk_view
from atlas_flwr.split.model import end_model, run_blocks
from atlas_flwr.trunk.adapters import ActiveAdapters, trainable, wrap
from atlas_flwr.trunk.session import Pass, Session, SessionSpec
from atlas_flwr.types import LossReply, TrunkCall

__all__ = ["Limits", "TrunkEngine", "TrunkHost", "TrunkStats"]


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
        A session unused for longer makes room for others.
    """

    sessions: int = 1024
    passes: int = 64
    passes_per_session: int = 2
    idle_seconds: float = 1800.0


@dataclass(frozen=True)
class TrunkStats:
    """An engine's account of itself.

    Attributes
    ----------
    sessions : int
        Open now.
    passes : int
        Kept for a backward now.
    steps : int
        Training steps done.
    busy_seconds : float
        Spent in passes, summed over threads.
    peak_bytes : int
        Largest resident memory of the process so far.
    """

    sessions: int
    passes: int
    steps: int
    busy_seconds: float
    peak_bytes: int


class TrunkHost(Protocol):
    """The trunk as its owner, the ServerApp, sees it: in process or far away."""

    def open(self, spec: SessionSpec) -> str:
        """Open a session; return its token."""
        ...

    def adapters(self, token: str) -> AdapterState:
        """Copy out what a session has trained."""
        ...

    def close(self, token: str) -> None:
        """Close a session; unknown ones are closed already."""
        ...

    def stats(self) -> TrunkStats:
        """Return an account."""
        ...

    def ping(self) -> None:
        """Raise :class:`~atlas_flwr.errors.TrunkLost` if the trunk is gone."""
        ...


class TrunkEngine:
    """Run the middle of a model for many clients.

    Calls of different sessions may come from different threads at once; those of one
    session are taken one after the other. A step is done once: repeated calls get the
    remembered answer, and the optimiser does not move again.

    Parameters
    ----------
    trunk : nn.Module
        A trunk made by :func:`atlas_flwr.split.partition`; its blocks must cover those
        of every session's plan. It is changed (its linear layers are wrapped).
    limits : Limits
        What to hold at most.
    recompute : bool
        Keep only each pass's input, and run forward again in backward: the same
        numbers, about a third more time, far less memory.
    clock : Callable[[], float]
        Seconds; for tests.
    """

    def __init__(
        self,
        trunk: Any,
        *,
        limits: Limits | None = None,
        recompute: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.trunk = trunk.requires_grad_(False)
        self.info = part_info(trunk)
        self.limits = limits or Limits()
        self.recompute = recompute
        self.clock = clock
        self._active = ActiveAdapters()
        self._shapes = _linear_shapes(trunk)
        names = {local: self.info.global_name(local) for local in linear_names(trunk)}
        wrap(trunk, names, self._active)
        self._views: dict[tuple[int, int], Any] = {}
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()
        self._steps = 0
        self._busy = 0.0

    # --- sessions --------------------------------------------------------------------

    def open(self, spec: SessionSpec) -> str:
        """Open a session; return its token, which cannot be guessed.

        Raises
        ------
        PlanError
            If the plan is illegal, or asks for blocks that this trunk has not.
        AdapterError
            If an adapter is of no layer of its slice.
        TrunkBusy
            If there are too many sessions.
        """
        spec.plan.check(self.info.num_layers)
        blocks = spec.plan.trunk_range(self.info.num_layers)
        view = self._view(blocks.start, blocks.stop)
        shapes = {
            name: shape
            for name, shape in self._shapes.items()
            if self.info.block_of(name) in blocks
        }
        factors = trainable(spec.state.factors, shapes, next(view.parameters()))
        view, dense = _own_dense(view, spec.state)
        session = Session(view, factors, dense, spec, last_used=self.clock())
        with self._lock:
            self._evict()
            if len(self._sessions) >= self.limits.sessions:
                raise TrunkBusy(
                    f"{len(self._sessions)} sessions are open, the most allowed; close "
                    "some, or wait until idle ones are evicted"
                )
            token = secrets.token_urlsafe(24)
            self._sessions[token] = session
        return token

    def adapters(self, token: str) -> AdapterState:
        """Copy out what a session has trained.

        Raises
        ------
        SessionError
            If it is not open.
        """
        with self._session(token) as session:
            return session.state()

    def close(self, token: str) -> None:
        """Close a session and free what it holds."""
        with self._lock:
            self._sessions.pop(token, None)

    def stats(self) -> TrunkStats:
        """Return an account."""
        with self._lock:
            kept = sum(s.open_passes for s in self._sessions.values())
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            return TrunkStats(len(self._sessions), kept, self._steps, self._busy, peak)

    def ping(self) -> None:
        """Do nothing: an engine in this process is there."""

    # --- passes ----------------------------------------------------------------------

    def forward(self, token: str, call: TrunkCall) -> Tensor:
        """Run a session's blocks (see :class:`~atlas_flwr.types.TrunkClient`)."""
        with self._session(token) as session:
            if call.step is None:
                with torch.no_grad():
                    return self._run(session, call)
            known = session.known(call.step, self._local(call.hidden))
            if known is None:
                self._make_room(session)
                known = self._begin(session, call)
                session.keep(call.step, known)
            assert known.answer is not None
            return known.answer.detach()

    def backward(self, token: str, step: int, grad: Tensor) -> Tensor:
        """Back-propagate a step once, and step the session's optimiser."""
        with self._session(token) as session:
            found = session.pending(step)
            if found.grad is None:
                answer = found.answer
                assert answer is not None
                if not answer.requires_grad:
                    answer = self._again(session, found)
                with self._using(session), torch.enable_grad():
                    answer.backward(grad.to(answer))
                assert found.hidden.grad is not None
                found.grad, found.answer = found.hidden.grad, answer.detach()
                self._finish(session, step, found)
            return found.grad

    def loss(
        self,
        token: str,
        call: TrunkCall,
        labels: Tensor | None,
        logits_to_keep: int = 0,
    ) -> LossReply:
        """End the model for a vanilla session; with a step, train on it once."""
        with self._session(token) as session:
            if session.spec.plan.tail is not None:
                raise TrunkError(
                    f"the session's cut is {session.spec.plan}, whose tail is on the "
                    "client; only a vanilla cut (HEAD/-) ends in the trunk"
                )
            if call.step is None or labels is None:
                with torch.no_grad():
                    return self._end(session, call, labels, logits_to_keep)
            known = session.known(call.step, self._local(call.hidden))
            if known is None:
                hidden = self._local(call.hidden).requires_grad_()
                with torch.enable_grad():
                    numbered = replace(call, hidden=hidden)
                    reply = self._end(session, numbered, labels, logits_to_keep)
                known = Pass(hidden, reply=reply)
                self._finish(session, call.step, known)
            assert known.reply is not None
            return known.reply

    def _begin(self, session: Session, call: TrunkCall) -> Pass:
        hidden = self._local(call.hidden).requires_grad_()
        numbered = replace(call, hidden=hidden)
        if self.recompute:
            with torch.no_grad():
                made = Pass(hidden, self._run(session, numbered))
            made.call = numbered
            return made
        with torch.enable_grad():
            return Pass(hidden, self._run(session, numbered))

    def _again(self, session: Session, found: Pass) -> Tensor:
        assert found.call is not None
        with torch.enable_grad():
            return self._run(session, found.call)

    def _finish(self, session: Session, step: int, found: Pass) -> None:
        session.step_optimizer()
        session.keep(step, found)
        with self._lock:
            self._steps += 1

    def _run(self, session: Session, call: TrunkCall) -> Tensor:
        with self._using(session):
            return run_blocks(
                session.view,
                inputs_embeds=self._local(call.hidden, detach=False),
                **self._rest(call),
            )

    def _end(
        self, session: Session, call: TrunkCall, labels: Tensor | None, keep: int
    ) -> LossReply:
        hidden = self._local(call.hidden, detach=False)
        if labels is not None:
            labels = labels.to(self._where().device)
        with self._using(session):
            out = end_model(
                session.view,
                hidden,
                labels=labels,
                logits_to_keep=keep,
                **self._rest(call),
            )
            loss = out["loss"] if labels is not None else None
            if loss is not None and loss.requires_grad:
                loss.backward()
        detached = None if loss is None else loss.detach()
        return LossReply(detached, out["logits"].detach(), hidden.grad)

    # --- inside ----------------------------------------------------------------------

    def _rest(self, call: TrunkCall) -> dict[str, Tensor | None]:
        device = self._where().device
        mask, positions = call.attention_mask, call.position_ids
        return {
            "attention_mask": None if mask is None else mask.to(device),
            "position_ids": None if positions is None else positions.to(device),
        }

    def _where(self) -> Tensor:
        return next(self.trunk.parameters())

    def _local(self, hidden: Tensor, detach: bool = True) -> Tensor:
        moved = hidden.to(self._where())
        return moved.detach() if detach else moved

    @contextmanager
    def _using(self, session: Session) -> Iterator[None]:
        started = time.monotonic()
        with self._active.using(session.factors):
            yield
        with self._lock:
            self._busy += time.monotonic() - started

    @contextmanager
    def _session(self, token: str) -> Iterator[Session]:
        with self._lock:
            session = self._sessions.get(token)
        if session is None:
            raise SessionError(
                "this session is not open: it was closed at its round's end, or evicted "
                "after being idle; the client should take part in the next round"
            )
        with session.lock:
            session.last_used = self.clock()
            yield session

    def _view(self, start: int, stop: int) -> Any:
        with self._lock:
            if (start, stop) not in self._views:
                self._views[start, stop] = trunk_view(self.trunk, start, stop)
            return self._views[start, stop]

    def _evict(self) -> None:
        limit = self.clock() - self.limits.idle_seconds
        idle = [t for t, s in self._sessions.items() if s.last_used < limit]
        for token in idle:
            del self._sessions[token]

    def _make_room(self, session: Session) -> None:
        own = [step for step, found in session.passes.items() if not found.done]
        for old in own[: len(own) - self.limits.passes_per_session + 1]:
            del session.passes[old]
        with self._lock:
            self._evict()
            kept = sum(s.open_passes for s in self._sessions.values())
        if kept >= self.limits.passes:
            raise TrunkBusy(
                f"{kept} forward passes wait for their backward, the most allowed; try "
                "again in a moment"
            )


def _linear_shapes(trunk: nn.Module) -> dict[str, tuple[int, int]]:
    info = part_info(trunk)
    shapes = {}
    for local in linear_names(trunk):
        layer = trunk.get_submodule(local)
        weight = layer.weight
        assert isinstance(weight, Tensor)
        m, n = weight.shape if isinstance(layer, nn.Linear) else weight.shape[::-1]
        shapes[info.global_name(local)] = (m, n)
    return shapes


def _own_dense(view: Any, state: AdapterState) -> tuple[Any, dict[str, nn.Parameter]]:
    """Give a session its own copy of the modules that it trains in full."""
    if not state.dense:
        return view, {}
    own = copy.copy(view)
    own._modules = dict(view._modules)
    for top in {key.partition(".")[0] for key in state.dense}:
        own._modules[top] = copy.deepcopy(getattr(view, top))
    parameters = dict(own.named_parameters())
    dense = {}
    for key, value in state.dense.items():
        parameter = parameters[key].requires_grad_(True)
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(np.asarray(value)))
        dense[key] = parameter
    return own, dense
