# SPDX-License-Identifier: Apache-2.0
"""The crossing: where autograd leaves the client and comes back.

U-shaped, ``forward`` calls the trunk with the smashed data and ``backward`` with the
gradient of its answer: two round trips a step. Vanilla, the trunk computes the loss and
the gradient at once, and ``backward`` only hands it on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from atlas_flwr.errors import TrunkError
from atlas_flwr.types import TrunkCall, TrunkClient

__all__ = ["cross", "cross_to_loss", "with_gradient"]


class _Crossing(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, trunk: TrunkClient, call: TrunkCall
    ) -> Tensor:
        ctx.trunk, ctx.step = trunk, call.step
        answer = trunk.forward(replace(call, hidden=hidden.detach()))
        return _received(answer, hidden)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        (grad,) = grads
        back = ctx.trunk.backward(ctx.step, grad.detach())
        if back is None:  # not zeros, by which an optimiser's momentum moves on
            return None, None, None
        return back.to(device=grad.device, dtype=grad.dtype), None, None


class _LossCrossing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, loss: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(grad)
        return loss.detach().clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (outer,) = grads
        (grad,) = ctx.saved_tensors
        return outer * grad, None, None


def cross(call: TrunkCall, trunk: TrunkClient, step: int) -> Tensor:
    """Run the trunk on ``call.hidden``, differentiably.

    Parameters
    ----------
    call : TrunkCall
        Hidden states of shape (B, T, D), mask and positions.
    trunk : TrunkClient
        The client's session.
    step : int
        Number of the training step; sent only where gradients are recorded.

    Returns
    -------
    Tensor
        Shape (B, T, D).
    """
    if not torch.is_grad_enabled():
        return _received(trunk.forward(replace(call, step=None)), call.hidden)
    numbered = replace(call, step=step, head_learns=call.hidden.requires_grad)
    apply: Callable[..., Tensor] = _Crossing.apply
    answer = apply(_tracked(call.hidden), trunk, numbered)
    return answer


def cross_to_loss(
    call: TrunkCall,
    labels: Tensor | None,
    trunk: TrunkClient,
    step: int,
    logits_to_keep: int = 0,
) -> tuple[Tensor | None, Tensor | None]:
    """Let the trunk end the model; return the loss, if there are labels, and logits.

    The trunk's own adapters take their step in the same call; a loss that is then
    scaled before ``backward`` scales the head's gradient, not theirs: ``call.share``
    scales both.
    """
    training = torch.is_grad_enabled() and labels is not None
    numbered = replace(
        call, step=step if training else None, hidden=call.hidden.detach()
    )
    reply = trunk.loss(numbered, labels, logits_to_keep)
    device = call.hidden.device
    logits = None if reply.logits is None else reply.logits.to(device)
    if reply.loss is None:
        return None, logits
    if not training:
        return reply.loss.to(device), logits
    if reply.grad is None:
        raise TrunkError("the trunk answered a training step without a gradient")
    grad = reply.grad.to(device=device, dtype=call.hidden.dtype)
    return with_gradient(call.hidden, reply.loss.to(device), grad), logits


def with_gradient(hidden: Tensor, loss: Tensor, grad: Tensor) -> Tensor:
    """Return ``loss`` as a scalar whose gradient by ``hidden`` is the one given.

    Parameters
    ----------
    hidden : Tensor
        Shape (B, T, D); what comes before it gets gradients in a backward pass.
    loss : Tensor
        Scalar, computed elsewhere.
    grad : Tensor
        d loss / d hidden, shape (B, T, D).
    """
    apply: Callable[..., Tensor] = _LossCrossing.apply
    return apply(_tracked(hidden), loss, grad)


def _tracked(hidden: Tensor) -> Tensor:
    # A head without adapters yields no gradient of its own; tail and trunk still need
    # the backward pass to reach them.
    return hidden if hidden.requires_grad else hidden.detach().requires_grad_()


def _received(answer: Tensor, hidden: Tensor) -> Tensor:
    if answer.shape != hidden.shape:
        raise TrunkError(
            f"the trunk answered with shape {tuple(answer.shape)} to hidden states of "
            f"shape {tuple(hidden.shape)}; client and trunk run different models"
        )
    return answer.to(device=hidden.device, dtype=hidden.dtype)
