# SPDX-License-Identifier: Apache-2.0
"""What sessions train, and its optimiser: one session's own, or several sessions'."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from atlas_flwr.lora import AdapterState, LoraFactors, ia3_vectors
from atlas_flwr.trunk.buffer import ParameterBuffer, step_together
from atlas_flwr.trunk.steps import StepLog
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
    vectors : Mapping[str, nn.Parameter]
        IA3's, by layer.
    logs : WeakSet[StepLog]
        Steps of the sessions that it belongs to.
    buffers : dict[torch.dtype, ParameterBuffer]
        Where the parameters lie.
    """

    def __init__(
        self,
        factors: Mapping[str, LoraFactors],
        dense: Mapping[str, nn.Parameter],
        optimizer: OptimizerSpec,
        merge: int = 1,
    ) -> None:
        self.factors = factors
        self.dense = dense
        self.vectors = ia3_vectors(dense)
        self.spec = optimizer
        self.merge = merge
        self.lock = threading.Lock()
        self.logs: WeakSet[StepLog] = WeakSet()
        self.parameters = [t for f in factors.values() for t in (f.A, f.B)]
        self.parameters += dense.values()
        self._waiting = 0
        self.buffers = _buffers(self.parameters)

    def learn(self, grads: Sequence[Tensor | None], log: StepLog) -> None:
        """Add the gradients of :attr:`parameters`; step when enough have come.

        A step makes open passes stale. Those of its own session are dropped, unless
        another session's call may be what brought the step, so that no client can
        foresee it. All others are run forward again when their gradients come, so that
        those of one step are taken at the same adapters.
        """
        for dtype, buffer in self.buffers.items():
            pairs = zip(self.parameters, grads, strict=True)
            buffer.add([grad for p, grad in pairs if p.dtype == dtype])
        if self.counts_in():
            step_together([(self.spec, self.buffers.values())])
            self.stepped(log)

    def counts_in(self) -> bool:
        """Count a backward pass whose gradients were added; tell if a step is due."""
        self._waiting += 1
        if self._waiting < self.spec.accumulate * self.merge:
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
        if self.merge > 1 and self._waiting:
            self._prepare()
            step_together([(self.spec, self.buffers.values())])
            self._make_stale(None)

    def _prepare(self) -> None:
        batches = self._waiting / self.spec.accumulate
        self._waiting = 0
        if batches != 1:
            for buffer in self.buffers.values():
                buffer.divide(batches)

    def _make_stale(self, own: StepLog | None) -> None:
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


def _buffers(parameters: Sequence[Tensor]) -> dict[torch.dtype, ParameterBuffer]:
    """Gather parameters by dtype: one buffer, but for dense ones in float64."""
    dtypes = dict.fromkeys(p.dtype for p in parameters)
    return {
        dtype: ParameterBuffer([p for p in parameters if p.dtype == dtype])
        for dtype in dtypes
    }


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().float().cpu().clone()
