# SPDX-License-Identifier: Apache-2.0
"""The log of a session's steps, by which each of them is done once.

A step is *open* from its forward pass to its backward pass, and *complete* afterwards.
The last few complete steps are remembered with their answers; of older ones only the
highest number is, which is enough to refuse them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from atlas_flwr.errors import SessionError, TrunkError
from atlas_flwr.types import LossReply, TrunkCall

if TYPE_CHECKING:
    from atlas_flwr.trunk.engine.joined import JointSlot

__all__ = ["Load", "Pass", "StepLog", "apart"]


@dataclass(frozen=True)
class Load:
    """What is kept for backward passes to come.

    Attributes
    ----------
    passes : int
        Open steps.
    nbytes : int
        Their activations.
    """

    passes: int = 0
    nbytes: int = 0

    def __add__(self, other: Load) -> Load:
        return Load(self.passes + other.passes, self.nbytes + other.nbytes)


@dataclass
class Pass:
    """One step's way through the trunk.

    Attributes
    ----------
    call : TrunkCall
        What came in; ``call.hidden`` is a leaf.
    answer : Tensor, optional
        What went out.
    output : Tensor, optional
        The same with its graph, until the backward pass; ``None`` where that has to
        run forward again.
    joint : JointSlot, optional
        The graph of a pass that it was run in together with other sessions' rows.
    given : Tensor, optional
        The gradient that its backward pass was given.
    grad : Tensor, optional
        What the backward pass answered.
    labels : Tensor, optional
        What a vanilla step was given.
    logits_to_keep : int
        Likewise.
    reply : LossReply, optional
        What a vanilla step answered.
    nbytes : int
        Activations kept for the backward pass.
    """

    call: TrunkCall
    answer: Tensor | None = None
    output: Tensor | None = None
    joint: JointSlot | None = None
    given: Tensor | None = None
    grad: Tensor | None = None
    labels: Tensor | None = None
    logits_to_keep: int = 0
    reply: LossReply | None = None
    nbytes: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether the step is."""
        return self.grad is not None or self.reply is not None

    def check_grad(self, step: int, grad: Tensor) -> None:
        """Refuse a gradient of another shape than the answer."""
        assert self.answer is not None
        if grad.shape != self.answer.shape:
            raise TrunkError(
                f"the gradient of step {step} has shape {tuple(grad.shape)}; its "
                f"answer had {tuple(self.answer.shape)}"
            )

    def forget_graph(self) -> None:
        """Let a backward run forward again.

        What stays is copied out of the pass that it was part of: a view on it would
        hold all sessions' rows for as long as this one is remembered.
        """
        self.output, self.joint, self.nbytes = None, None, 0
        self.answer, self.grad = apart(self.answer), apart(self.grad)

    @property
    def remembered_bytes(self) -> int:
        """What it takes without its graph."""
        own = [self.answer, self.given, self.grad, self.labels, *_given(self.call)]
        if self.reply is not None:
            own += [getattr(self.reply, field.name) for field in fields(self.reply)]
        return sum(tensor.nbytes for tensor in own if tensor is not None)

    def move(self, device: torch.device) -> None:
        """Bring it to a device, without its graph."""
        self.forget_graph()
        self.call = _moved_call(self.call, device)
        for name in ("answer", "given", "grad", "labels"):
            tensor = getattr(self, name)
            if tensor is not None:
                setattr(self, name, tensor.to(device))
        if self.reply is not None:
            held = {f.name: getattr(self.reply, f.name) for f in fields(self.reply)}
            self.reply = LossReply(
                **{k: None if t is None else t.to(device) for k, t in held.items()}
            )


class StepLog:
    """Open and complete steps of one session; not safe to share between threads.

    Parameters
    ----------
    max_open : int
        Open steps kept; a new one drops the oldest.
    remembered : int
        Complete steps whose answers are kept.
    """

    def __init__(self, max_open: int, remembered: int = 2) -> None:
        self.max_open = max_open
        self.remembered = remembered
        self._open: dict[int, Pass] = {}
        self._complete: dict[int, Pass] = {}
        self._last_forgotten = -1

    @property
    def load(self) -> Load:
        """What the open steps keep."""
        kept = (Load(1, found.nbytes) for found in self._open.values())
        return sum(kept, Load())

    @property
    def last(self) -> int:
        """The last step that is complete; -1 before the first."""
        return max((*self._complete, self._last_forgotten))

    @property
    def remembered_bytes(self) -> int:
        """What complete steps take, and the questions and answers of open ones."""
        held = (*self._open.values(), *self._complete.values())
        return sum(found.remembered_bytes for found in held)

    def move(self, device: torch.device) -> None:
        """Bring all that is kept to a device; open steps lose their graphs."""
        for found in (*self._open.values(), *self._complete.values()):
            found.move(device)

    def find(
        self,
        step: int,
        call: TrunkCall,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
    ) -> Pass | None:
        """Find the pass that a repeated forward or loss asks for.

        ``None`` for a new step, and for an open one that was begun with other inputs:
        its client died and started over.

        Raises
        ------
        SessionError
            If the step is complete, but with other inputs or labels, or was too long
            ago.
        """
        found = self._open.get(step) or self._complete.get(step)
        ends_alike = (
            found is not None
            and _equal(found.labels, labels)
            and found.logits_to_keep == logits_to_keep
        )
        if found is not None and ends_alike and _same(found.call, call):
            return found
        if step in self._complete or step <= self._last_forgotten:
            raise SessionError(
                f"step {step} was completed before, with other inputs or too long ago; "
                "number the steps of a session upwards (first_step= of SplitModel)"
            )
        return None

    def has_later(self, step: int) -> bool:
        """Tell whether a later step is open."""
        return any(number > step for number in self._open)

    def make_room(self, step: int) -> None:
        """Drop the step's earlier pass, and the oldest open ones over the limit."""
        self._open.pop(step, None)
        for old in list(self._open)[: max(0, len(self._open) - self.max_open + 1)]:
            del self._open[old]

    def begin(self, step: int, made: Pass) -> None:
        """Keep a pass until its backward."""
        self._open[step] = made

    def take(self, step: int, grad: Tensor | None = None) -> Pass:
        """Return a step's pass for its backward; an open one leaves the log.

        Should the backward fail, the step has to be run forward again.

        Parameters
        ----------
        step : int
            The step.
        grad : Tensor, optional
            What the backward is given. ``None``: whatever it was given before.

        Raises
        ------
        SessionError
            If there is none, or it is complete, but with another gradient.
        """
        found = self._open.pop(step, None) or self._complete.get(step)
        if found is None:
            raise SessionError(
                f"step {step} is not open here: its forward pass never came, or it was "
                "dropped (for newer steps, or because the adapters have moved since: "
                "set OptimizerSpec.accumulate to the forward passes that come before a "
                "backward), or lies too far back; run the step again from its forward"
            )
        if grad is not None and found.is_complete and not _equal(found.given, grad):
            raise SessionError(
                f"step {step} was completed before, with another gradient, and the "
                "adapters have learned from that one; give a new batch a step of its "
                "own (first_step= of SplitModel)"
            )
        return found

    def complete(self, step: int, found: Pass) -> None:
        """Remember a complete step; forget the answers of the oldest."""
        found.forget_graph()
        self._complete[step] = found
        while len(self._complete) > self.remembered:
            oldest = next(iter(self._complete))
            del self._complete[oldest]
            self._last_forgotten = max(self._last_forgotten, oldest)

    def forget_graphs(self) -> None:
        """Let open steps be run forward again by their backward."""
        for found in self._open.values():
            found.forget_graph()

    def drop_open(self) -> None:
        """Drop open steps: the adapters that they were run with have changed."""
        self._open.clear()


def apart(tensor: Tensor | None) -> Tensor | None:
    """Copy a tensor that is a view on a larger one."""
    if tensor is None or tensor.untyped_storage().nbytes() <= tensor.nbytes:
        return tensor
    return tensor.clone()


def _same(one: TrunkCall, other: TrunkCall) -> bool:
    pairs = (
        (one.hidden, other.hidden),
        (one.attention_mask, other.attention_mask),
        (one.position_ids, other.position_ids),
    )
    alike = (one.share, one.loss_alone) == (other.share, other.loss_alone)
    return alike and all(_equal(a, b) for a, b in pairs)


def _given(call: TrunkCall) -> tuple[Tensor | None, ...]:
    return call.hidden, call.attention_mask, call.position_ids


def _moved_call(call: TrunkCall, device: torch.device) -> TrunkCall:
    hidden, mask, positions = (
        None if tensor is None else tensor.detach().to(device)
        for tensor in _given(call)
    )
    assert hidden is not None
    return replace(
        call,
        hidden=hidden.requires_grad_(call.hidden.requires_grad),
        attention_mask=mask,
        position_ids=positions,
    )


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    # Bits: a call that is repeated is the same one where numbers are NaN, too.
    return torch.equal(*(tensor.flatten().view(torch.uint8) for tensor in (a, b)))
