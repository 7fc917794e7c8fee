# SPDX-License-Identifier: Apache-2.0
"""What a call asks of the base, and how it is done for one session alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from atlas_flwr.budget.queues import Waiting
from atlas_flwr.errors import TrunkError
from atlas_flwr.trunk.engine.base import SharedBase
from atlas_flwr.trunk.engine.inference import KeptTexts
from atlas_flwr.trunk.engine.joined import Member
from atlas_flwr.trunk.engine.leaves import Share
from atlas_flwr.trunk.engine.residence import stepping
from atlas_flwr.trunk.engine.session import Session
from atlas_flwr.trunk.engine.steps import Pass
from atlas_flwr.types import Continuation, LossReply, TrunkCall

__all__ = [
    "Backward",
    "Beginning",
    "Ending",
    "Evaluation",
    "Extension",
    "Finite",
    "Work",
    "alone",
]


@dataclass
class Work:
    """A session's call; it is held by the session's lock until it is answered.

    Attributes
    ----------
    session : Session
        Whose.
    call : TrunkCall
        As received.
    """

    session: Session
    call: TrunkCall

    @property
    def waiting(self) -> Waiting:
        """What the trunk's queue ranks it by."""
        rows = self.call.hidden.shape[:2].numel()
        return Waiting(self.session.left, self.session.spec.state.origin, rows)

    @property
    def member(self) -> Member:
        """Its rows in a joined pass."""
        return Member(self.session, self.call)


@dataclass
class Evaluation(Work):
    """A forward pass that no backward follows; its answer is the hidden states."""


@dataclass
class Beginning(Work):
    """A step's forward pass; its answer is the :class:`~.steps.Pass`.

    Attributes
    ----------
    recompute : bool
        Keep the input alone.
    """

    recompute: bool = False


@dataclass
class Backward(Work):
    """A step's backward pass; its answer is d loss / d hidden, and the session learns.

    Attributes
    ----------
    step : int
        For errors.
    found : Pass
        The step's forward pass.
    grad : Tensor
        d loss / d answer.
    finite : Finite
        Whether that is finite.
    """

    step: int
    found: Pass
    grad: Tensor
    finite: Finite = field(init=False)

    def __post_init__(self) -> None:
        self.finite = Finite(self.grad)
        # A probe cannot forget what it saw.
        if not self.grad.is_cuda or self.session.probe is not None:
            self.check()

    def check(self) -> None:
        """Refuse a gradient that is not finite.

        Raises
        ------
        TrunkError
            If it is not.
        """
        if not self.finite:
            raise TrunkError(
                f"the gradient of step {self.step} has NaN or infinity, and nothing "
                "was trained on it; lower the learning rate, or train in float32 or "
                "bfloat16 (a gradient scaler for float16 cannot reach the trunk)"
            )

    def gradients(self, base: SharedBase) -> tuple[Tensor, Share]:
        """Return d loss / d hidden, and what the session is to learn."""
        output = self.found.output
        with torch.enable_grad():
            if output is None:
                output = base.run(self.session, self.call)
            grad = self.grad.to(output)
            back, grads = _gradients(self.session, self.call, output, grad)
        return back, Share(self.session, None, grads)


@dataclass
class Ending(Work):
    """The end of the model, in a session without a tail; its answer is a LossReply.

    Attributes
    ----------
    labels : Tensor, optional
        As sent; with a step, the session learns.
    logits_to_keep : int
        As sent.
    """

    labels: Tensor | None = None
    logits_to_keep: int = 0


@dataclass
class Extension(Work):
    """New positions of texts that are kept; its answer is what they come to.

    Attributes
    ----------
    kept : KeptTexts
        The texts; they grow.
    place : Continuation
        As sent.
    keep : int
        As sent.
    """

    kept: KeptTexts
    place: Continuation
    keep: int = 0


class Finite:
    """Whether a tensor is finite, asked of a GPU without waiting for later work."""

    def __init__(self, tensor: Tensor) -> None:
        flag = torch.isfinite(tensor).all()
        self._flag = flag.to("cpu", non_blocking=True)
        self._event: Any = torch.cuda.Event() if tensor.is_cuda else None
        if self._event is not None:
            self._event.record()

    def __bool__(self) -> bool:
        if self._event is not None:
            self._event.synchronize()
        return bool(self._flag)


def alone(base: SharedBase, work: Work) -> Any:
    """Do the work of one session, as if there were no other."""
    if isinstance(work, Evaluation):
        with torch.no_grad():
            return base.run(work.session, work.call)
    if isinstance(work, Extension):
        inputs = work.kept.inputs(work.call, work.place)
        with torch.no_grad():
            return base.extend(work.session, work.call.hidden, work.keep, inputs)
    if isinstance(work, Beginning):
        return _begin(base, work)
    assert isinstance(work, Ending)
    return _end(base, work)


def _begin(base: SharedBase, work: Beginning) -> Pass:
    session, call = work.session, work.call
    if work.recompute:
        with torch.no_grad():
            answer = base.run(session, call)
        return Pass(call, answer, nbytes=call.hidden.untyped_storage().nbytes())
    with torch.enable_grad(), base.counting([session], [call]) as counted:
        output = base.run(session, call)
    return Pass(call, output.detach(), output, nbytes=counted.total)


def _end(base: SharedBase, work: Ending) -> LossReply:
    session, call, labels = work.session, work.call, work.labels
    is_training = call.step is not None and labels is not None
    with torch.set_grad_enabled(is_training):
        loss, logits = base.end(session, call, labels, work.logits_to_keep)
        if not is_training:
            return LossReply(loss, logits, None)
        assert loss is not None
        if not torch.isfinite(loss):
            raise TrunkError(
                f"the loss of step {call.step} is {loss.item()}, and nothing was "
                "trained on it; lower the learning rate "
                f"(now {session.spec.optimizer.lr}), or check the labels"
            )
        if call.share != 1:
            loss = loss * call.share
        back, grads = _gradients(session, call, loss)
    whole = [torch.isfinite(g).all() for g in (back, *grads) if g is not None]
    if not torch.stack(whole).all():  # a GPU is waited for once
        raise TrunkError(
            f"the loss of step {call.step} is {loss.item()}, but its gradients have "
            "NaN or infinity, and nothing was trained on it; lower the learning rate "
            f"(now {session.spec.optimizer.lr}), or train in float32 or bfloat16"
        )
    with stepping():  # or a repetition would learn twice
        session.learn(grads, call.step)
    shown = None if logits is None else logits.detach()
    return LossReply(loss.detach(), shown, back)


def _gradients(
    session: Session, call: TrunkCall, output: Tensor, grad: Tensor | None = None
) -> tuple[Tensor, Sequence[Tensor | None]]:
    """Differentiate by the hidden states and the session's parameters.

    Nothing is accumulated, so that a pass that fails halfway leaves no trace.
    """
    inputs = [call.hidden, *session.parameters]
    first, *rest = torch.autograd.grad(output, inputs, grad, allow_unused=True)
    return first, rest
