# SPDX-License-Identifier: Apache-2.0
"""A client's session on the trunk: its adapters, its optimiser, its recent steps."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from atlas_flwr.errors import SessionError
from atlas_flwr.lora import AdapterState, LoraFactors
from atlas_flwr.split import SplitPlan
from atlas_flwr.types import LossReply, OptimizerSpec, TrunkCall

__all__ = ["Pass", "Session", "SessionSpec"]

# Steps remembered after their backward, so that a repeated call is answered alike.
REMEMBERED = 2


@dataclass(frozen=True)
class SessionSpec:
    """What a session is opened with.

    Attributes
    ----------
    plan : SplitPlan
        The client's cut; the trunk runs the blocks between.
    state : AdapterState
        Adapters of those blocks, by layer; in a vanilla split also the dense arrays
        of the classifier. Empty: nothing is trained here.
    optimizer : OptimizerSpec
        How they are trained.
    """

    plan: SplitPlan
    state: AdapterState = field(default_factory=AdapterState)
    optimizer: OptimizerSpec = field(default_factory=OptimizerSpec)


@dataclass
class Pass:
    """One step's way through the trunk.

    Attributes
    ----------
    hidden : Tensor
        What came in; a leaf.
    answer : Tensor
        What went out; with its graph until the backward pass.
    grad : Tensor, optional
        What the backward pass answered.
    reply : LossReply, optional
        What a vanilla step answered.
    call : TrunkCall, optional
        Kept where backward has to run forward again.
    """

    hidden: Tensor
    answer: Tensor | None = None
    grad: Tensor | None = None
    reply: LossReply | None = None
    call: TrunkCall | None = None

    @property
    def done(self) -> bool:
        """Whether the step is complete."""
        return self.grad is not None or self.reply is not None


@dataclass
class Session:
    """State of one client on the trunk. One call at a time: hold :attr:`lock`.

    Attributes
    ----------
    view : nn.Module
        The slice of the base that the client's plan asks for.
    factors : Mapping[str, LoraFactors]
        Its adapters, as parameters.
    dense : Mapping[str, nn.Parameter]
        Its own copy of what is trained in full.
    spec : SessionSpec
        What it was opened with.
    """

    view: nn.Module
    factors: Mapping[str, LoraFactors]
    dense: Mapping[str, nn.Parameter]
    spec: SessionSpec
    last_used: float = 0.0
    backwards: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    passes: OrderedDict[int, Pass] = field(default_factory=OrderedDict)
    _optimizer: torch.optim.Optimizer | None = None

    def __post_init__(self) -> None:
        parameters = [*self.dense.values()]
        for found in self.factors.values():
            parameters += [found.A, found.B]  # type: ignore[list-item]
        if parameters:
            spec = self.spec.optimizer
            self._optimizer = torch.optim.AdamW(
                parameters,
                lr=spec.lr,
                betas=spec.betas,
                eps=spec.eps,
                weight_decay=spec.weight_decay,
            )

    @property
    def open_passes(self) -> int:
        """Forward passes whose activations wait for their backward."""
        return sum(not found.done for found in self.passes.values())

    def known(self, step: int, hidden: Tensor) -> Pass | None:
        """Find the pass that a repeated forward asks for.

        ``None`` for a new step, and for one that was begun with other hidden states and
        never finished: its client died and started over.

        Raises
        ------
        SessionError
            If the step is complete, but with other hidden states, or too long ago.
        """
        found = self.passes.get(step)
        if found is not None and torch.equal(found.hidden, hidden):
            return found
        if (found is not None and found.done) or self._is_past(step):
            raise SessionError(
                f"step {step} was completed before; steps of a session must be numbered "
                "upwards (first_step= of SplitModel)"
            )
        return None

    def keep(self, step: int, found: Pass) -> None:
        """Remember a pass; forget the oldest complete ones."""
        self.passes[step] = found
        done = [s for s, p in self.passes.items() if p.done]
        for old in done[:-REMEMBERED]:
            del self.passes[old]

    def pending(self, step: int) -> Pass:
        """Return a step's pass.

        Raises
        ------
        SessionError
            If there is none.
        """
        if step not in self.passes:
            raise SessionError(
                f"step {step} is unknown here: its forward pass never came, was "
                "dropped for newer ones, or lies too far back; run the step again"
            )
        return self.passes[step]

    def step_optimizer(self) -> None:
        """Count a backward pass; step when enough gradients have accumulated."""
        self.backwards += 1
        if self._optimizer and self.backwards % self.spec.optimizer.accumulate == 0:
            self._optimizer.step()
            self._optimizer.zero_grad()

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

    def _is_past(self, step: int) -> bool:
        done = [s for s, p in self.passes.items() if p.done]
        return bool(done) and step < min(done)


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().float().cpu().clone()
