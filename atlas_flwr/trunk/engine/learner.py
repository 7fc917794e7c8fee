# SPDX-License-Identifier: Apache-2.0
"""What sessions train, and its optimiser: one session's own, or several sessions'."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from atlas_flwr.lora import AdapterState, LoraFactors, ia3_key, ia3_vectors
from atlas_flwr.trunk.engine.buffer import ParameterBuffer, step_together
from atlas_flwr.trunk.engine.steps import StepLog
from atlas_flwr.types import OptimizerSpec

__all__ = ["Learner"]


class Learner:
    """Parameters and AdamW. One call at a time: hold :attr:`lock`.

    Parameters
    ----------
    factors : Mapping[str, LoraFactors]
        Adapters, as parameters, by layer.
    dense : Mapping[str, nn.Parameter]
        Parameters that are trained in full, IA3's vectors among them.
    optimizer : OptimizerSpec
        How they are trained.
    merge : int
        Clients' batches in an optimiser step, which is taken on the mean of their
        gradients; a batch is ``optimizer.accumulate`` backward passes.

    Attributes
    ----------
    parameters : Sequence[Tensor]
        Factors, IA3's vectors, then what else is trained; as they lie in the buffers.
    vectors : Mapping[str, Tensor]
        IA3's, by layer.
    logs : WeakSet[StepLog]
        Steps of the sessions that it belongs to.
    buffers : Sequence[ParameterBuffer]
        One for all adapters, if there are any, and one for each other parameter.
    updates : int
        Optimiser steps so far.
    layout : str
        Equal for learners whose buffers have the same adapters in the same places.
    """

    def __init__(
        self,
        factors: Mapping[str, LoraFactors],
        dense: Mapping[str, nn.Parameter],
        optimizer: OptimizerSpec,
        merge: int = 1,
    ) -> None:
        vectors = ia3_vectors(dense)
        others = [v for key, v in dense.items() if key not in map(ia3_key, vectors)]
        self.buffers = _buffers(factors, vectors, others)
        self.dense: dict[str, Tensor] = {**dense}
        self._scales = {name: f.scale for name, f in factors.items()}
        self._vectors = tuple(vectors)
        self._name()
        self.spec = optimizer
        self.merge = merge
        self.lock = threading.Lock()
        self.logs: WeakSet[StepLog] = WeakSet()
        self._waiting = 0
        self._early: dict[int, Callable[[], None]] = {}
        self._next = 0  # the step that is to be added
        self.updates = 0
        self.layout = _layout(factors, dense)

    def _name(self) -> None:
        """Find the parameters in the buffers by their layers."""
        self.parameters = [p for b in self.buffers for p in b.parameters]
        rest = iter(self.parameters)
        self.factors = {
            name: LoraFactors(next(rest), next(rest), scale)
            for name, scale in self._scales.items()
        }
        self.vectors = {name: next(rest) for name in self._vectors}
        self.dense.update({ia3_key(name): v for name, v in self.vectors.items()})

    @property
    def nbytes(self) -> int:
        """What parameters and moments take."""
        return sum(buffer.nbytes for buffer in self.buffers)

    @property
    def is_unsettled(self) -> bool:
        """Whether merged gradients still wait for others."""
        return self.merge > 1 and self._waiting > 0

    @property
    def can_move(self) -> bool:
        """Whether it is adapters alone: modules that are trained in full stay."""
        return len(self.dense) == len(self._vectors)

    def move(self, device: torch.device) -> None:
        """Bring parameters, moments and waiting gradients to a device, bit for bit."""
        for buffer in self.buffers:
            buffer.move(device)
        self._name()

    def learn(
        self,
        grads: Sequence[Tensor | None],
        log: StepLog,
        step: int | None = None,
    ) -> None:
        """Add the gradients of :attr:`parameters`; step when enough have come.

        A step makes open passes stale. Those of its own session are dropped, unless
        another session's call may be what brought the step, so that no client can
        foresee it. All others are run forward again when their gradients come, so that
        those of one step are taken at the same adapters.
        """
        self.in_order(step, lambda: self.add(grads))
        if self.counts_in():
            step_together([(self.spec, self.buffers)])
            self.stepped(log)

    def add(self, grads: Sequence[Tensor | None]) -> None:
        """Add gradients of :attr:`parameters`; ``None`` where one had no part."""
        rest = iter(grads)
        for buffer in self.buffers:
            buffer.add([next(rest) for _ in buffer.parameters])

    def in_order(self, step: int | None, add: Callable[[], None]) -> None:
        """Add gradients in the order of their steps, whatever order they come in.

        So the sum has the same bits, though calls of batches that are in flight
        together overtake one another. It takes memory for those alone that come early.
        Of sessions that share what they train, and of steps without a number, they are
        added as they come.
        """
        if step is None or self.spec.accumulate == 1 or len(self.logs) > 1:
            add()
            return
        self._early[step] = add
        while self._next in self._early:
            self._early.pop(self._next)()
            self._next += 1

    def _add_early(self) -> None:
        """Add what still waits for a step that never came."""
        for step in sorted(self._early):
            self._early.pop(step)()
            self._next = step + 1

    def counts_in(self) -> bool:
        """Count a backward pass whose gradients were added; tell if a step is due."""
        self._waiting += 1
        if self._waiting < self.spec.accumulate * self.merge:
            for buffer in self.buffers:
                buffer.wait()
            return False
        self._prepare()
        return True

    def stepped(self, log: StepLog) -> None:
        """Treat the passes that a step, brought about by this session, made stale."""
        alone = self.merge == 1 and len(self.logs) == 1
        every_pass = self.spec.accumulate * self.merge == 1
        self._make_stale(log if alone or every_pass else None)

    def settle(self) -> None:
        """Step on the mean of merged gradients that still wait for others."""
        if self.is_unsettled:
            self._prepare()
            step_together([(self.spec, self.buffers)])
            self._make_stale(None)

    def _prepare(self) -> None:
        self._add_early()
        batches = self._waiting / self.spec.accumulate
        self._waiting = 0
        if batches != 1:
            for buffer in self.buffers:
                buffer.divide(batches)

    def _make_stale(self, own: StepLog | None) -> None:
        self.updates += 1
        if not self.parameters:
            return
        for log in self.logs:
            if log is own:
                log.drop_open()
            else:
                log.forget_graphs()

    def state(self) -> AdapterState:
        """Copy everything that is trained."""
        factors = {
            name: LoraFactors(_copied(f.A), _copied(f.B), f.scale)
            for name, f in self.factors.items()
        }
        dense: dict[str, NDArray[np.float32]] = {
            key: _copied(value).numpy() for key, value in self.dense.items()
        }
        return AdapterState(factors, dense)


def _buffers(
    factors: Mapping[str, LoraFactors],
    vectors: Mapping[str, Tensor],
    others: Sequence[Tensor],
) -> list[ParameterBuffer]:
    adapters = [t for f in factors.values() for t in (f.A, f.B)]
    adapters += vectors.values()
    groups = [adapters] if adapters else []
    return [ParameterBuffer(g) for g in (*groups, *([other] for other in others))]


def _layout(
    factors: Mapping[str, LoraFactors], dense: Mapping[str, nn.Parameter]
) -> str:
    places = [(name, f.rank, f.shape, f.scale) for name, f in factors.items()]
    others = [(name, tuple(value.shape)) for name, value in dense.items()]
    return hashlib.sha256(repr((places, others)).encode()).hexdigest()


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().float().cpu().clone()
