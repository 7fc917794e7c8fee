# SPDX-License-Identifier: Apache-2.0
"""A client's call as it crosses, and the tensors in it: what both ends agree on."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import torch
from torch import Tensor

from atlas_flwr.errors import WireError
from atlas_flwr.types import Continuation, Role, TrunkCall
from atlas_flwr.wire.padding import padded, spare_mask, unpadded

__all__ = [
    "PATIENCE",
    "Request",
    "Verb",
    "bits",
    "call_of",
    "echoed",
    "exact",
    "flag",
    "inputs",
    "named",
    "place_of",
    "placed",
    "rows_of",
]

PATIENCE = 600.0  # seconds
Given = tuple[Tensor, Role] | None  # what is None does not cross


class Verb(StrEnum):
    """What a client asks of its session, and a neighbour in a chain of another's."""

    FORWARD = "forward"
    BACKWARD = "backward"
    LOSS = "loss"
    EXTEND = "extend"
    FORGET = "forget"
    ECHO = "echo"
    HAND = "hand"


@dataclass(frozen=True)
class Request:
    """A client's call as it crosses.

    Attributes
    ----------
    verb : Verb
        The method of :class:`~atlas_flwr.types.TrunkClient`.
    token : str
        The session's.
    codec : str
        Of the frame, and of the answer's.
    frame : bytes
        The tensors.
    step : int, optional
        As in :class:`~atlas_flwr.types.TrunkCall`.
    logits_to_keep : int
        For :attr:`Verb.LOSS`, and of all positions for :attr:`Verb.EXTEND`.
    ticket : str
        Under which neighbours in a chain hand over what is left out of the frame, or of
        the answer (see :class:`~atlas_flwr.trunk.seams.Handover`); empty: none does.
    patience : float
        Seconds that the answer is waited for.
    """

    verb: Verb
    token: str = field(repr=False)
    codec: str
    frame: bytes = field(repr=False)
    step: int | None = None
    logits_to_keep: int = 0
    ticket: str = ""
    patience: float = PATIENCE


def inputs(call: TrunkCall, real: Tensor | None) -> dict[str, Given]:
    """Return a call's tensors; masks and positions as small integers."""
    mask, positions = call.attention_mask, call.position_ids
    if mask is not None and not mask.is_floating_point():
        mask = mask != 0  # numbers of packed texts may be larger than a byte
    return {
        "hidden": rows_of(call.hidden, Role.ACTIVATION, real),
        "attention_mask": _small(mask, torch.uint8),
        "position_ids": _small(positions, torch.int32),
    }


def echoed(noise: Tensor) -> dict[str, Given]:
    """Return bytes that only come and go."""
    return {"echo": (noise, Role.ADAPTER)}


def placed(place: Continuation) -> dict[str, Given]:
    """Return a place in texts as small tensors."""
    past = [] if place.past is None else [place.past]
    numbers = torch.tensor([place.texts, place.turn, *past], dtype=torch.int32)
    return {
        "place": (numbers, Role.ACTIVATION),
        "order": _small(place.order, torch.int32),
    }


def place_of(tensors: dict[str, Tensor]) -> Continuation:
    """Read what :func:`placed` wrote."""
    numbers, order = named(tensors, "place"), tensors.get("order")
    if numbers.shape not in ((2,), (3,)):
        shape = tuple(numbers.shape)
        raise WireError(f"a place of shape {shape}; it is 2 numbers or 3")
    texts, turn, *past = (int(n) for n in numbers)
    rows = None if order is None else order.long()
    return Continuation(texts, turn, rows, past[0] if past else None)


def rows_of(values: Tensor, role: Role, real: Tensor | None) -> tuple[Tensor, Role]:
    """Leave out the rows that are not real, where that is said."""
    return (values if real is None else unpadded(values, real)), role


def flag(is_set: bool) -> Given:
    """Return a tensor that is there, or is not."""
    return (torch.tensor(1), Role.ACTIVATION) if is_set else None


def bits(real: Tensor | None) -> Given:
    """Return where rows are real as small integers."""
    return None if real is None else (real.to(torch.uint8), Role.ACTIVATION)


def exact(tensor: Tensor | None) -> Given:
    """Return what says how to compute, as labels and masks do: no codec rounds it."""
    if tensor is None:
        return None
    return tensor, Role.ADAPTER if tensor.is_floating_point() else Role.ACTIVATION


def _small(tensor: Tensor | None, dtype: torch.dtype) -> Given:
    if tensor is None or tensor.is_floating_point():
        return exact(tensor)  # a mask of 0 and -infinity, that is added
    is_table = tensor.dtype is torch.bool and tensor.dim() > 2  # of who reads whom
    return exact(tensor if is_table else tensor.to(dtype))


def call_of(
    request: Request, tensors: dict[str, Tensor]
) -> tuple[TrunkCall, Tensor | None]:
    """Return the call, and where it is real if padding did not come with it."""
    mask, positions = tensors.get("attention_mask"), tensors.get("position_ids")
    if mask is not None and mask.dtype is torch.uint8:
        mask = mask.long()
    if positions is not None:
        positions = positions.long()
    hidden, real = named(tensors, "hidden"), None
    if hidden.dim() == 2:
        real = spare_mask(mask)
        if real is None:
            raise WireError("rows without the mask that says where they belong")
        hidden = padded(hidden, real)
    unread = real is not None
    share, alone = float(tensors.get("share", 1.0)), "alone" in tensors
    return TrunkCall(hidden, mask, positions, request.step, unread, share, alone), real


def named(tensors: dict[str, Tensor], name: str) -> Tensor:
    """Return a tensor that has to have come."""
    if name not in tensors:
        raise WireError(f"a request without {name!r}; it has {sorted(tensors)}")
    return tensors[name]
