# SPDX-License-Identifier: Apache-2.0
"""The trunk engine: one frozen base, and a session with adapters for each client."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from atlas_flwr.errors import TrunkBusy
from atlas_flwr.lora import AdapterState, LoraFactors
from atlas_flwr.trunk.engine.base import SharedBase
from atlas_flwr.trunk.engine.batching import JoiningBatcher
from atlas_flwr.trunk.engine.gathering import Gathering
from atlas_flwr.trunk.engine.inference import TextCaches
from atlas_flwr.trunk.engine.opening import Opening
from atlas_flwr.trunk.engine.residence import Residence, with_room
from atlas_flwr.trunk.engine.session import SessionSpec
from atlas_flwr.trunk.engine.stats import TrunkStats, process_peak_bytes
from atlas_flwr.trunk.engine.steps import Pass
from atlas_flwr.trunk.engine.table import Limits, SessionTable
from atlas_flwr.trunk.engine.work import (
    Backward,
    Beginning,
    Ending,
    Evaluation,
    Extension,
)
from atlas_flwr.types import Continuation, LossReply, TrunkCall

__all__ = ["TrunkEngine"]

T = TypeVar("T")


class TrunkEngine:
    """Run the middle of a model for many clients.

    Calls of different sessions may come from different threads at once; those that wait
    together run as one pass over the base, whatever their adapters and cuts (see
    :class:`Limits`). Those of one session are taken one after the other, and so are
    those of sessions that share adapters. A step is done once: repeated calls get the
    remembered answer, and the optimiser does not move again. Calls that come one after
    the other give the same bits every time; to those that were joined, which others
    were in their pass makes a difference of float rounding. With
    ``Limits(sessions_per_pass=1)`` it makes none.

    Parameters
    ----------
    trunk : nn.Module
        A trunk made by :func:`atlas_flwr.split.partition`; its blocks must cover those
        of every session's plan. It is changed: its weights are frozen and its linear
        layers wrapped, so it serves one engine only.
    limits : Limits
        What to hold at most.
    recompute : bool
        Keep only each pass's input, and run forward again in backward: the same
        numbers, about a third more time, far less memory.
    own_threads : bool
        Run passes in few threads of its own: for a transport whose calls come in many
        (see :class:`~atlas_flwr.trunk.engine.gathering.Gathering`).
    clock : Callable[[], float]
        Seconds, for finding idle sessions.
    """

    def __init__(
        self,
        trunk: Any,
        *,
        limits: Limits | None = None,
        recompute: bool = False,
        own_threads: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.base = SharedBase(trunk)
        self.limits = limits or Limits()
        self.recompute = recompute
        self.clock = clock
        residence = Residence(self.base.reference_tensor.device, clock)
        self._table = SessionTable(self.limits, clock, residence)
        self._opening = Opening(self.base, self._table, clock)
        self._passes = Gathering(
            JoiningBatcher(self.base, self._table.relieve),
            self.limits,
            own_threads=own_threads,
        )
        self._texts = TextCaches(self.limits, clock)
        self._counts = threading.Lock()
        self._steps = 0
        self._bytes_a_row = 0.0  # as the last pass kept
        self._bytes_in = 0
        self._bytes_out = 0

    # --- as a host -------------------------------------------------------------------

    def open(self, spec: SessionSpec) -> str:
        """Open a session; return its token, which cannot be guessed.

        Raises
        ------
        PlanError
            If the plan is illegal, or asks for blocks that this trunk does not hold.
        AdapterError
            If an adapter is of no layer of its slice, or a dense array of no parameter.
        TrunkBusy
            If there are too many sessions, or no memory is left for one.
        """
        return self._opening.open(spec)

    def share(self, name: str, products: Mapping[str, LoraFactors]) -> None:
        """Hold products that many sessions fold, once for all of them.

        Parameters
        ----------
        name : str
            What specs call it by, as their state's ``origin``.
        products : Mapping[str, LoraFactors]
            By layer; those of other layers than the trunk's are left out.

        Raises
        ------
        AdapterError
            If a product has another shape than its layer, NaN or infinity.
        """
        self._opening.share(name, products)

    def unshare(self, name: str) -> None:
        """Forget shared products; sessions that are open keep theirs."""
        self._opening.unshare(name)

    def adapters(self, token: str) -> AdapterState:
        """Copy out what a session has trained.

        Where batches are merged, those that still wait for others are stepped on first.

        Raises
        ------
        SessionError
            If it is not open.
        """
        with self._table.using(token, on_device=False) as session:
            if session.learner.is_unsettled:
                self._table.bring(session)
            return session.state()

    def importance(self, token: str) -> dict[str, float]:
        """Return what a probing session has measured, by layer; else nothing.

        Raises
        ------
        SessionError
            If it is not open.
        """
        with self._table.using(token, on_device=False) as session:
            return session.probe.means() if session.probe else {}

    def close(self, token: str) -> None:
        """Close a session and free what it holds; unknown ones are closed already."""
        session = self._table.remove(token)
        self._texts.forget(token)
        if session is not None:
            self._passes.forget(session.learner)

    def stats(self) -> TrunkStats:
        """Return an account."""
        load, device = self._table.load, self.base.reference_tensor.device
        counts = self._passes.counts
        on_gpu = device.type == "cuda"
        return TrunkStats(
            sessions=len(self._table),
            passes=load.passes,
            steps=self._steps,
            busy_seconds=counts.busy_seconds,
            peak_bytes=process_peak_bytes(),
            kept_bytes=load.nbytes,
            bytes_in=self._bytes_in,
            bytes_out=self._bytes_out,
            device_peak_bytes=torch.cuda.max_memory_allocated(device) if on_gpu else 0,
            base_passes=counts.passes,
            joined_calls=counts.joined_calls,
            unjoined_calls=counts.unjoined_calls,
            caches=len(self._texts),
            cache_bytes=self._texts.nbytes,
            evicted_caches=self._texts.evicted,
            waiting=self._passes.waiting,
            evicted_sessions=self._table.evicted,
            sessions_in_host=self._table.away,
        )

    def ping(self) -> None:
        """Do nothing: an engine in this process is there."""

    def check_open(self, token: str, holder: str | None = None) -> SessionSpec:
        """Refuse a token of no open session, or another holder's, without waiting.

        Raises
        ------
        SessionError
            See :meth:`~atlas_flwr.trunk.engine.table.SessionTable.check`.
        """
        return self._table.check(token, holder)

    def idle(self, token: str) -> float:
        """Return for how many seconds nobody called a session; infinite if gone."""
        return self._table.idle(token)

    def count_bytes(self, received: int, sent: int) -> None:
        """Add to the account the frames of a call that came over a transport."""
        with self._counts:
            self._bytes_in += received
            self._bytes_out += sent

    # --- passes ----------------------------------------------------------------------

    def forward(self, token: str, call: TrunkCall) -> Tensor:
        """Run a session's blocks (see :class:`~atlas_flwr.types.TrunkClient`).

        Raises
        ------
        SessionError
            If the session is not open, its cut has no tail, so that :meth:`loss` ends
            its steps, or the step was completed with other inputs.
        TrunkBusy
            If too many passes wait for their backward; ask again.
        TrunkError
            If a shape is wrong.
        """
        with self._table.using(token) as session:
            session.check_u_shaped("forward")
            call = self._with_room(partial(self.base.received, call))
            if call.step is None:
                answer: Tensor = self._passes.do(Evaluation(session, call))
                return answer
            known = session.log.find(call.step, call)
            if known is None:
                session.log.make_room(call.step)
                rows = call.hidden.shape[:2].numel()
                self._table.admit(session, call.step, int(self._bytes_a_row * rows))
                known = self._passes.do(Beginning(session, call, self.recompute))
                self._bytes_a_row = known.nbytes / max(rows, 1)
                session.log.begin(call.step, known)
            assert known.answer is not None
            return known.answer

    def backward(self, token: str, step: int, grad: Tensor) -> Tensor:
        """Back-propagate a step once, and let the session's optimiser step.

        Raises
        ------
        SessionError
            If the session is not open, its cut has no tail, the step is not open, or it
            was completed with another gradient.
        TrunkError
            If the gradient has another shape than the answer, or is not finite; the
            step has to be run forward again.
        """
        with self._table.using(token) as session:
            session.check_u_shaped("backward")
            # A copy, with which a repeated call is compared.
            like = self.base.reference_tensor
            grad = self._with_room(partial(grad.detach().to, like, copy=True))
            found = session.log.take(step, grad)
            if found.grad is None:
                found.check_grad(step, grad)
                work = Backward(session, found.call, step, found, grad)
                try:
                    found.grad = self._passes.do(work)
                except TrunkBusy:
                    session.log.begin(step, found)  # asked again, it is run again
                    raise
                found.given = grad
                session.log.complete(step, found)
                self._count_step()
            assert found.grad is not None
            return found.grad

    def loss(
        self,
        token: str,
        call: TrunkCall,
        labels: Tensor | None,
        logits_to_keep: int = 0,
    ) -> LossReply:
        """End the model for a vanilla session; with a step, train on it once.

        Raises
        ------
        SessionError
            If the session is not open, or the step was completed with other inputs or
            labels.
        TrunkError
            If the session's cut has a tail, a shape is wrong, or the loss of a training
            step is not finite; then nothing was trained.
        """
        with self._table.using(token) as session:
            session.check_vanilla()
            call = self._with_room(partial(self.base.received, call))
            if labels is not None:
                labels = labels.to(self.base.reference_tensor.device)
            work = Ending(session, call, labels, logits_to_keep)
            if call.step is None or labels is None:
                reply: LossReply = self._passes.do(work)
                return reply
            known = session.log.find(call.step, call, labels, logits_to_keep)
            if known is None:
                # A copy of the labels, with which a repeated call is compared.
                known = Pass(call, labels=labels.clone(), logits_to_keep=logits_to_keep)
                known.reply = self._passes.do(work)
                session.log.complete(call.step, known)
                self._count_step()
            assert known.reply is not None
            return known.reply

    def extend(
        self, token: str, call: TrunkCall, place: Continuation, keep: int = 0
    ) -> Tensor:
        """Go on with a session's texts (see :class:`~atlas_flwr.types.TrunkClient`).

        Raises
        ------
        SessionError
            If the session is not open.
        CacheLost
            If the texts are not kept any more; they have to come whole, as call 0.
        TrunkError
            If a shape is wrong, or the model keeps no cache.
        """
        with self._table.using(token) as session:
            updates = session.learner.updates
            kept = self._texts.take(
                token, place, lambda: self.base.texts(session), updates
            )
            past = kept.cache.get_seq_length() if place.past is None else place.past
            call = replace(call, step=None)
            call = self._with_room(partial(self.base.received, call, past))
            work = Extension(session, call, kept, place, keep)
            answer: Tensor = self._passes.do(work)
            self._texts.keep(token, place.texts, kept, partial(self._table.has, token))
            return answer

    def forget(self, token: str, texts: int) -> None:
        """Free what is kept of a session's texts."""
        self._texts.forget(token, texts)

    def _with_room(self, work: Callable[[], T]) -> T:
        return with_room(work, self._table.relieve)

    def _count_step(self) -> None:
        with self._counts:
            self._steps += 1
