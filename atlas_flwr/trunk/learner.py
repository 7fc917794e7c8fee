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
        self._optimizer = _adamw(self.parameters, optimizer)

    def learn(self, grads: Sequence[Tensor | None], log: StepLog) -> None:
        """Add the gradients of :attr:`parameters`; step when enough have come.

        A step makes open passes stale. Those of its own session are dropped, unless
        another session's call may be what brought the step, so that no client can
        foresee it. All others are run forward again when their gradients come, so that
        those of one step are taken at the same adapters.
        """
        for parameter, grad in zip(self.parameters, grads, strict=True):
            if grad is not None:
                sum_ = grad if parameter.grad is None else parameter.grad + grad
                parameter.grad = sum_
        self._waiting += 1
        if self._waiting == self.spec.accumulate * self.merge:
            alone = self.merge == 1 and len(self.logs) == 1
            every_pass = self.spec.accumulate * self.merge == 1
            self._step(log if alone or every_pass else None)

    def settle(self) -> None:
        """Step on the mean of merged gradients that still wait for others."""
        if self.merge > 1 and self._waiting:
            self._step(None)

    def _step(self, own: StepLog | None) -> None:
        batches = self._waiting / self.spec.accumulate
        self._waiting = 0
        if self._optimizer is None:
            return
        if batches != 1:
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad = parameter.grad / batches
        self._optimizer.step()
        self._optimizer.zero_grad()
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


def _adamw(
    parameters: Sequence[Tensor], spec: OptimizerSpec
) -> torch.optim.AdamW | None:
    if not parameters:
        return None
    return torch.optim.AdamW(
        parameters,
        lr=spec.lr,
        betas=spec.betas,
        eps=spec.eps,
        weight_decay=spec.weight_decay,
    )


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().float().cpu().clone()
