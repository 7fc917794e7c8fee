# SPDX-License-Identifier: Apache-2.0
r"""How much the loss depends on each frozen weight matrix, measured in a backward pass.

.. math:: I(W) = \sum_{ij} | W_{ij} \, (\partial L / \partial W)_{ij} |, \quad
          \partial L / \partial W = \sum_t \delta_t x_t^T

the first-order change of the loss were an entry set to zero, following HSplitLoRA
(arXiv 2505.02795), whose published text leaves the details open. The gradient of a
frozen matrix is not computed by training: a probe makes it from the layer's input x and
the gradient delta of its output, takes the sum, and drops it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

__all__ = ["ImportanceProbe", "oriented", "probing"]


@dataclass
class ImportanceProbe:
    """Watch the outputs of layers, and add up their sensitivities as gradients come.

    Attributes
    ----------
    sums : dict[str, float]
        By layer, over all backward passes.
    passes : dict[str, int]
        Backward passes, by layer.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    passes: dict[str, int] = field(default_factory=dict)

    def watch(self, name: str, weight: Tensor, x: Tensor, out: Tensor) -> None:
        """Measure a layer in the backward pass to come.

        Parameters
        ----------
        name : str
            The layer's name in the whole model.
        weight : Tensor
            Shape (m, n), frozen.
        x : Tensor
            The layer's input, shape (..., n).
        out : Tensor
            Its output, shape (..., m). Without a graph there is nothing to watch.
        """
        if out.requires_grad:
            out.register_hook(partial(self.measure, name, weight, x.detach()))

    def means(self) -> dict[str, float]:
        """Return the mean over backward passes, by layer."""
        return {n: float(total) / self.passes[n] for n, total in self.sums.items()}

    def measure(self, name: str, weight: Tensor, x: Tensor, delta: Tensor) -> None:
        """Add a layer's sensitivity: see :meth:`watch`; delta is of shape (..., m)."""
        with torch.no_grad():
            rows, inputs = delta.flatten(0, -2).float(), x.flatten(0, -2).float()
            found = (rows.T @ inputs).mul_(weight.float()).abs_().sum()
        # Stays where it is: to ask for a number is to wait for a GPU at each layer.
        before = self.sums.get(name)
        found = found.double()
        self.sums[name] = found if before is None else before + found
        self.passes[name] = self.passes.get(name, 0) + 1


@contextmanager
def probing(
    module: nn.Module, probe: ImportanceProbe, names: Mapping[str, str]
) -> Iterator[None]:
    """Watch the adapted layers of a module while it trains.

    Parameters
    ----------
    module : nn.Module
        With adapters attached.
    probe : ImportanceProbe
        Adds up what is seen.
    names : Mapping[str, str]
        The layer's name in the whole model, by its name in ``module``; other layers
        are not watched.
    """

    def hook(name: str, layer: Any, args: tuple[Tensor, ...], out: Tensor) -> None:
        probe.watch(name, oriented(layer.get_base_layer()), args[0], out)

    handles = [
        found.register_forward_hook(partial(hook, names[local]))
        for local, found in _adapted(module)
        if local in names
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adapted(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    modules = module.named_modules()
    yield from ((name, found) for name, found in modules if is_adapted(found))


def is_adapted(module: nn.Module) -> bool:
    """Tell whether a module is a linear layer with an adapter on it."""
    return isinstance(module, LoraLayer)


def oriented(layer: nn.Module) -> Tensor:
    """Return a linear layer's weight as (m, n): outputs, inputs."""
    weight = layer.get_parameter("weight")
    return weight.T if isinstance(layer, Conv1D) else weight
