# SPDX-License-Identifier: Apache-2.0
"""Adapters of many sessions on one frozen base.

Each linear layer of the base is wrapped once. What it adds is that of the session, or
the sessions, whose pass is running in the current thread, so that sessions may run side
by side on the same weights, and none of them is written into the base.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from atlas_flwr.errors import AdapterError, TrunkError
from atlas_flwr.lora import (
    ImportanceProbe,
    LoraFactors,
    linear_names,
    oriented,
    scales_inputs,
)
from atlas_flwr.split import part_info

__all__ = [
    "ActiveAdapters",
    "Adapters",
    "SessionAdapters",
    "SessionLinear",
    "layer_shapes",
    "placed",
    "wrap",
]


class Adapters(Protocol):
    """What a pass has beside the frozen base: the layers ask nothing else."""

    def applied(self, layer: SessionLinear, x: Tensor) -> Tensor:
        """Return ``layer.base(x)`` and what the adapters add to it."""
        ...

    def scaled(self, name: str, x: Tensor, *, inputs: bool) -> Tensor:
        """Return what enters or leaves layer ``name``, scaled if there is IA3."""
        ...


@dataclass(frozen=True)
class SessionAdapters:
    """The adapters of one session's pass.

    Attributes
    ----------
    stack : Sequence[Mapping[str, LoraFactors]]
        Its own adapters and what it has folded, by layer.
    vectors : Mapping[str, Tensor]
        IA3's, by layer.
    probe : ImportanceProbe, optional
        Measures the frozen layers' importance.
    """

    stack: Sequence[Mapping[str, LoraFactors]] = ()
    vectors: Mapping[str, Tensor] = field(default_factory=dict)
    probe: ImportanceProbe | None = None

    def applied(self, layer: SessionLinear, x: Tensor) -> Tensor:
        """Return W x + s B A x with each adapter of the layer.

        The product is computed in the adapter's dtype, as PEFT does.
        """
        out: Tensor = layer.base(x)
        if self.probe is not None:
            self.probe.watch(layer.name, oriented(layer.base), x, out)
        for factors in self.stack:
            found = factors.get(layer.name)
            if found is not None:
                low = F.linear(x.to(found.A.dtype), found.A)
                product = F.linear(low, found.B) * found.scale
                out = out + product.to(out.dtype)
        return out

    def scaled(self, name: str, x: Tensor, *, inputs: bool) -> Tensor:
        """Return what enters or leaves layer ``name``, scaled if there is IA3 for it.

        As in PEFT, the product is computed in the vector's dtype.
        """
        vector = self.vectors.get(name)
        if vector is None or scales_inputs(vector) != inputs:
            return x
        return (x * vector.flatten()).to(x.dtype)


class ActiveAdapters(threading.local):
    """The adapters in force in the current thread: of one session, or of several."""

    def __init__(self) -> None:
        self.current: Adapters = SessionAdapters()

    @contextmanager
    def using(self, adapters: Adapters) -> Iterator[None]:
        """Put adapters in force for a pass."""
        before, self.current = self.current, adapters
        try:
            yield
        finally:
            self.current = before


class SessionLinear(nn.Module):
    """``base(x) + s B A x``, with the running session's factors, if it has any here.

    If it has an IA3 vector here, that scales x, or else all of the output.

    Parameters
    ----------
    base : nn.Module
        The frozen layer: ``nn.Linear``, or GPT-2's ``Conv1D``.
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
        # Of a subclass (quantised layers have some) the weight may be anything.
        self.is_plain = type(base) in (nn.Linear, Conv1D)

    @property
    def weight(self) -> Tensor:
        """The frozen weight, which some models look at."""
        return self.base.get_parameter("weight")

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias."""
        bias = self.base.bias
        assert bias is None or isinstance(bias, Tensor)
        return bias

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to x of shape (..., n)."""
        adapters = self.active.current
        x = adapters.scaled(self.name, x, inputs=True)
        return adapters.scaled(self.name, adapters.applied(self, x), inputs=False)


def wrap(trunk: nn.Module, active: ActiveAdapters) -> None:
    """Wrap the linear layers of a trunk's blocks, in place.

    Raises
    ------
    TrunkError
        If they are wrapped already: the trunk serves another engine.
    """
    if any(isinstance(module, SessionLinear) for module in trunk.modules()):
        raise TrunkError(
            "this trunk serves an engine already; open more sessions on that one, or "
            "partition the model again"
        )
    info = part_info(trunk)
    for local in linear_names(trunk):
        owner, _, last = local.rpartition(".")
        holder = trunk.get_submodule(owner)
        layer = SessionLinear(getattr(holder, last), info.global_name(local), active)
        setattr(holder, last, layer)


def layer_shapes(trunk: nn.Module) -> dict[str, tuple[int, int]]:
    """Return (outputs, inputs) of the linear layers, by name in the whole model."""
    info = part_info(trunk)
    shapes = {}
    for local in linear_names(trunk):
        layer = trunk.get_submodule(local)
        weight = layer.weight
        assert isinstance(weight, Tensor)
        m, n = weight.shape if isinstance(layer, nn.Linear) else weight.shape[::-1]
        shapes[info.global_name(local)] = (m, n)
    return shapes


def placed(
    factors: Mapping[str, LoraFactors],
    shapes: Mapping[str, tuple[int, int]],
    like: Tensor,
    *,
    trained: bool,
) -> dict[str, LoraFactors]:
    """Copy factors to the base's device, in float32, as parameters if trained.

    Raises
    ------
    AdapterError
        Naming a layer that the trunk does not have, or factors of another shape or
        with NaN or infinity.
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
        found.check_finite(name)
        A, B = (
            _copied(t, like.device) if trained else t.detach().float().to(like.device)
            for t in (found.A, found.B)
        )
        made[name] = LoraFactors(A, B, found.scale)
    return made


def _copied(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.detach().float().to(device).clone().requires_grad_(True)
