# SPDX-License-Identifier: Apache-2.0
"""Adapters of many sessions on one frozen base.

Each linear layer of the base is wrapped once. What it adds is that of the session whose
pass is running in the current thread, so that sessions may run side by side on the same
weights, and none of them is written into the base.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atlas_flwr.errors import AdapterError, TrunkError
from atlas_flwr.lora import (
    ImportanceProbe,
    LoraFactors,
    linear_names,
    oriented,
    scales_inputs,
)
from atlas_flwr.split import part_info

__all__ = ["ActiveAdapters", "SessionLinear", "layer_shapes", "placed", "wrap"]


class ActiveAdapters(threading.local):
    """The adapters in force in the current thread, by layer.

    The layers know only :meth:`added` and :meth:`scaled`: a pass over rows of several
    sessions is another way to answer them.
    """

    def __init__(self) -> None:
        self.stack: tuple[Mapping[str, LoraFactors], ...] = ()
        self.vectors: Mapping[str, Tensor] = {}
        self.probe: ImportanceProbe | None = None

    @contextmanager
    def using(
        self,
        *stack: Mapping[str, LoraFactors],
        vectors: Mapping[str, Tensor] | None = None,
        probe: ImportanceProbe | None = None,
    ) -> Iterator[None]:
        """Put a session's adapters in force for a pass, and what it has folded.

        With a probe, the frozen layers' importance is measured too.
        """
        before = self.stack, self.vectors, self.probe
        self.stack, self.vectors, self.probe = stack, vectors or {}, probe
        try:
            yield
        finally:
            self.stack, self.vectors, self.probe = before

    def watch(self, layer: SessionLinear, x: Tensor, out: Tensor) -> None:
        """Let the probe, if there is one, see a layer's pass."""
        if self.probe is not None:
            self.probe.watch(layer.name, oriented(layer.base), x, out)

    def added(self, name: str, x: Tensor, out: Tensor) -> Tensor:
        """Return ``out`` + s B A x with each adapter of layer ``name``.

        The product is computed in the adapter's dtype, as PEFT does.
        """
        for factors in self.stack:
            found = factors.get(name)
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
        x = self.active.scaled(self.name, x, inputs=True)
        out: Tensor = self.base(x)
        self.active.watch(self, x, out)
        out = self.active.added(self.name, x, out)
        return self.active.scaled(self.name, out, inputs=False)


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
