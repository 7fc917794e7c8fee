# SPDX-License-Identifier: Apache-2.0
"""Adapters of many sessions on one frozen base.

Each adapted linear layer of the base is wrapped once. What it adds is that of the
session whose pass is running in the current thread, so that sessions may run side by
side on the same weights.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from atlas_flwr.errors import AdapterError
from atlas_flwr.lora import LoraFactors

__all__ = ["ActiveAdapters", "SessionLinear", "trainable", "wrap"]


class ActiveAdapters(threading.local):
    """The adapters in force in the current thread, by layer."""

    def __init__(self) -> None:
        self.factors: Mapping[str, LoraFactors] = {}

    @contextmanager
    def using(self, factors: Mapping[str, LoraFactors]) -> Iterator[None]:
        """Put a session's adapters in force for a pass."""
        before, self.factors = self.factors, factors
        try:
            yield
        finally:
            self.factors = before


class SessionLinear(nn.Module):
    """``base(x) + s B A x``, with the running session's factors, if it has any here.

    Parameters
    ----------
    base : nn.Module
        The frozen layer.
    name : str
        The layer's name in the whole model.
    active : ActiveAdapters
        Shared by all layers of one engine.
    """

    def __init__(self, base: nn.Module, name: str, active: ActiveAdapters) -> None:
        super().__init__()
        self.base = base
        self.name = name
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to x of shape (..., n)."""
        out: Tensor = self.base(x)
        found = self.active.factors.get(self.name)
        if found is None:
            return out
        low = F.linear(x.to(found.A.dtype), found.A)
        return out + (F.linear(low, found.B) * found.scale).to(out.dtype)


def wrap(module: nn.Module, names: Mapping[str, str], active: ActiveAdapters) -> None:
    """Wrap layers in place.

    Parameters
    ----------
    module : nn.Module
        The base.
    names : Mapping[str, str]
        The layer's name in ``module`` to its name in the whole model.
    active : ActiveAdapters
        Where the layers look their factors up.
    """
    for local, name in names.items():
        owner, _, last = local.rpartition(".")
        holder = module.get_submodule(owner)
        setattr(holder, last, SessionLinear(getattr(holder, last), name, active))


def trainable(
    factors: Mapping[str, LoraFactors],
    shapes: Mapping[str, tuple[int, int]],
    like: Tensor,
) -> dict[str, LoraFactors]:
    """Copy factors as float32 parameters on the base's device.

    Raises
    ------
    AdapterError
        Naming a layer that the trunk does not have, or factors of another shape.
    """
    made = {}
    for name, found in factors.items():
        if name not in shapes:
            raise AdapterError(
                f"layer {name!r} is not among the {len(shapes)} adaptable layers of "
                "this session's slice of the trunk"
            )
        if found.shape != shapes[name]:
            raise AdapterError(
                f"layer {name!r} has shape {shapes[name]}; the factors have "
                f"{found.shape}"
            )
        A, B = (
            nn.Parameter(t.detach().float().to(like.device).clone())
            for t in (found.A, found.B)
        )
        made[name] = LoraFactors(A, B, found.scale)
    return made
