# SPDX-License-Identifier: Apache-2.0
"""What an LM head is given: the places that have labels, and one matrix of them.

A vocabulary is wide, so that logits of a long text are the largest tensor of a step.

Shapes: B rows, K positions, D wide; N places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from atlas_flwr.types import NO_LABEL

__all__ = ["in_one_piece", "only_at", "places_of"]


def places_of(targets: Tensor) -> Tensor:
    """Return rows and columns (2, N) of targets (B, K) that are to be predicted."""
    return torch.stack((targets != NO_LABEL).nonzero(as_tuple=True))


@contextmanager
def only_at(model: Any, places: Tensor) -> Iterator[None]:
    """Give a model's LM head some rows and columns of what it would be given.

    Its logits are then (1, N, V), whatever a family does before and after the head. A
    model whose head is no module of its own gives all logits, (B, K, V), as ever.

    Parameters
    ----------
    model : nn.Module
        A whole model, or a part that ends one.
    places : Tensor
        Shape (2, N): rows, and columns of the hidden states (B, K, D) at the head.
    """

    def chosen(hidden: Tensor) -> Tensor:
        rows, columns = places.to(hidden.device)
        return hidden[rows, columns].unsqueeze(0)

    with _given_to_head(model, chosen):
        yield


@contextmanager
def in_one_piece(model: Any) -> Iterator[None]:
    """Give a model's LM head hidden states that are contiguous, (B, K, D).

    Of a slice, such as the last of T positions, torch makes B products with the frozen
    weight in the place of one; a CPU in bfloat16 copies it for each, (B, D, V).
    """
    with _given_to_head(model, Tensor.contiguous):
        yield


@contextmanager
def _given_to_head(model: Any, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Change the hidden states that a model's LM head gets, in this thread's passes."""
    find = getattr(model, "get_output_embeddings", None)
    head = None if find is None else find()
    if head is None:
        yield
        return

    mine = get_ident()  # batches in flight together have a thread each

    def changed(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if get_ident() != mine:
            return given
        hidden, *rest = given
        return change(hidden), *rest

    handle = head.register_forward_pre_hook(changed)
    try:
        yield
    finally:
        handle.remove()
