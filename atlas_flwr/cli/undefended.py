# SPDX-License-Identifier: Apache-2.0
"""What would have crossed of the texts of a case, had they not been defended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from atlas_flwr.cli.case import Case
    from atlas_flwr.privacy import Observation, Truth
    from atlas_flwr.privacy.knowledge import Knowledge

__all__ = ["without_defence"]


def without_defence(case: Case, knows: Callable[[], Knowledge]) -> Case:
    """Let texts cross anew with no defence, by the head that their attacker knows.

    That is the head as the round began: the client's own steps since, which move what
    really crossed a little, are left out too. The connection's codec stays.

    Parameters
    ----------
    case : Case
        With a defence.
    knows : Callable[[], Knowledge]
        Returns what the same attacker knows where there is none.
    """
    import torch

    knowledge = knows()
    pairs = zip(case.seen, case.truths, strict=True)
    with torch.no_grad():
        seen = [_crossing(knowledge, one, truth) for one, truth in pairs]
    return replace(case, knowledge=knowledge, seen=seen, undefended=None)


def _crossing(knows: Knowledge, seen: Observation, truth: Truth) -> Observation:
    hidden = knows.model.crossing(seen, truth.ids[None])[0].float()
    sent = replace(seen, hidden=knows.crossed(hidden, None))
    if seen.answer is None or seen.gradient is None or seen.client in knows.answers:
        return sent  # readers of text look at the gradients of responses alone
    return replace(sent, gradient=_gradient(knows, seen, seen.answer, truth))


def _gradient(
    knows: Knowledge, seen: Observation, answer: Tensor, truth: Truth
) -> Tensor:
    """Return a response's gradient (T, D) at the tail's cut."""
    import torch
    from torch.nn.functional import cross_entropy

    from atlas_flwr.split.passes import end_model

    with torch.enable_grad():
        hidden = answer[None].clone().requires_grad_()
        mask = torch.ones(hidden.shape[:2], dtype=torch.long)
        tail = knows.model.tail(seen)
        logits = end_model(tail, hidden, attention_mask=mask)["logits"][0].float()
        learned = truth.answer[1:]
        loss = cross_entropy(logits[:-1][learned], truth.ids[1:][learned])
        (grad,) = torch.autograd.grad(loss, hidden)
    found: Tensor = grad[0]
    return found
