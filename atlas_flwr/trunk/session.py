# SPDX-License-Identifier: Apache-2.0
"""A client's session on the trunk: its adapters, its optimiser, its recent steps."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from atlas_flwr.lora import AdapterState, ImportanceProbe, LoraFactors
from atlas_flwr.split import SplitPlan
from atlas_flwr.trunk.steps import Load, StepLog
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
        Adapters of those blocks, by layer, and what is folded into them; in a vanilla
        split also the dense arrays of the classifier. Empty: nothing is trained here.
    optimizer : OptimizerSpec
        How they are trained.
    probe : bool
        Whether to measure the importance of the frozen layers in backward passes.
    """

    plan: SplitPlan
    state: AdapterState = field(default_factory=AdapterState)
    optimizer: OptimizerSpec = field(default_factory=OptimizerSpec)
    probe: bool = False


class Session:
    """State of one client on the trunk. One call at a time: hold :attr:`lock`.

    Parameters
    ----------
    spec : SessionSpec
        As opened.
    view : Any
        The session's blocks, shared with all others; its classifier, if it trains one,
        is its own.
    factors : Mapping[str, LoraFactors]
        Its adapters, as parameters, by layer.
    dense : Mapping[str, nn.Parameter]
        Its parameters that are trained in full.
    folded : Mapping[str, LoraFactors]
        Products that the base is to have for it, by layer; never trained.
    log : StepLog
        Its steps.
    now : float
        Seconds on the engine's clock.

    Attributes
    ----------
    load : Load
        What its open steps keep, published for other threads to read.
    is_begun : bool
        Whether any call came yet.
    """

    def __init__(
        self,
        spec: SessionSpec,
        view: Any,
        factors: Mapping[str, LoraFactors],
        dense: Mapping[str, nn.Parameter],
        folded: Mapping[str, LoraFactors],
        log: StepLog,
        now: float,
    ) -> None:
        self.spec = spec
        self.view = view
        self.factors = factors
        self.dense = dense
        self.folded = folded
        self.probe = ImportanceProbe() if spec.probe else None
        self.log = log
        self.lock = threading.Lock()
        self.last_used = now
        self.is_begun = False
        self.load = Load()
        self.parameters = [t for f in factors.values() for t in (f.A, f.B)]
        self.parameters += dense.values()
        self._backwards = 0
        self._optimizer = _adamw(self.parameters, spec.optimizer)

    def learn(self, grads: Sequence[Tensor | None]) -> None:
        """Add the gradients of :attr:`parameters`; step when enough have come.

        A step makes the open passes stale, which are dropped.
        """
        for parameter, grad in zip(self.parameters, grads, strict=True):
            if grad is not None:
                sum_ = grad if parameter.grad is None else parameter.grad + grad
                parameter.grad = sum_
        self._backwards += 1
        if self._optimizer and self._backwards % self.spec.optimizer.accumulate == 0:
            self._optimizer.step()
            self._optimizer.zero_grad()
            self.log.drop_open()

    def state(self) -> AdapterState:
        """Copy everything that was trained here."""
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
