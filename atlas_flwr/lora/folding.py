# SPDX-License-Identifier: Apache-2.0
"""Products folded into frozen weights, where they take no memory of their own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from atlas_flwr.errors import AdapterError
from atlas_flwr.lora.factors import LoraFactors

__all__ = ["fold"]


def fold(module: nn.Module, factors: Mapping[str, LoraFactors]) -> None:
    """Add ``scale * B @ A`` to the weights of linear layers, in place.

    The (m, n) product is never formed beside the weight.

    Parameters
    ----------
    module : nn.Module
        Its layers must have no adapters yet, and float32 weights: in half precision a
        small product would vanish in the rounding of the sum.
    factors : Mapping[str, LoraFactors]
        By the layer's name in ``module``.

    Raises
    ------
    AdapterError
        Naming a layer that is no bare linear layer, has another shape or another type.
    """
    layers = dict(module.named_modules())
    for name, found in factors.items():
        layer = layers.get(name)
        if not isinstance(layer, nn.Linear | Conv1D):
            raise AdapterError(
                f"layer {name!r} is {type(layer).__name__}, not a linear layer without "
                "adapters: a product can be folded only into one"
            )
        weight = layer.weight if isinstance(layer, nn.Linear) else layer.weight.T
        if tuple(weight.shape) != found.shape or weight.dtype != torch.float32:
            raise AdapterError(
                f"layer {name!r} has a weight of shape {tuple(weight.shape)} and type "
                f"{weight.dtype}; the product has {found.shape}, and float32 is needed "
                "to fold it without loss (aggregation='truncate' folds nothing)"
            )
        found = found.to(weight.device, weight.dtype)
        with torch.no_grad():
            weight.addmm_(found.B, found.A, alpha=found.scale)
