# SPDX-License-Identifier: Apache-2.0
"""The gradients that each class would give at the tail's cut."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from atlas_flwr.privacy.knowledge import Knowledge
from atlas_flwr.privacy.observation import Observation
from atlas_flwr.split.passes import end_model

__all__ = ["alignments"]


def alignments(knowledge: Knowledge, seen: Observation) -> Tensor:
    """Return, by class, the cosine of its gradient with the one that was sent.

    Of a causal model it is the gradient of the label's token at the position before
    it: the one at which what was sent is largest.
    """
    assert seen.answer is not None
    assert seen.gradient is not None
    tail, classes = knowledge.model.tail(seen), knowledge.answers[seen.client]
    sent = seen.gradient
    place = int(sent.norm(dim=1).argmax())
    found = []
    for label in classes:
        hidden = seen.answer[None].clone().requires_grad_()
        with torch.enable_grad():
            loss = _loss(tail, hidden, int(label), place, knowledge.causal)
            (grad,) = torch.autograd.grad(loss, hidden)
        found.append(F.cosine_similarity(grad[0].flatten(), sent.flatten(), dim=0))
    return torch.stack(found)


def _loss(tail: Any, hidden: Tensor, label: int, place: int, causal: bool) -> Tensor:
    mask = torch.ones(hidden.shape[:2], dtype=torch.long)
    logits = end_model(tail, hidden, attention_mask=mask)["logits"][0]
    row = logits[place] if causal else logits
    loss: Tensor = -row.float().log_softmax(-1)[label]
    return loss
