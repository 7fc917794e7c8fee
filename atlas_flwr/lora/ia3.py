# SPDX-License-Identifier: Apache-2.0
"""IA3 (arXiv 2205.05638): learned vectors that scale what enters or leaves a layer.

PEFT's shapes tell which: a vector of shape (1, n) scales the inputs of a layer, as in
feed-forward layers, one of shape (m, 1) its outputs, as of keys and values. A vector is
a dense array ``<layer>.ia3_l``, PEFT's own name for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from peft import IA3Config, inject_adapter_in_model
from peft.tuners.ia3 import IA3Layer
from peft.utils import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
)
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from atlas_flwr.errors import AdapterError
from atlas_flwr.lora.attachment import linear_names

__all__ = [
    "attach_ia3",
    "check_vectors",
    "ia3_key",
    "ia3_shapes",
    "ia3_vectors",
    "scaled_layers",
    "scales_inputs",
]

_ADAPTER = "default"
_SUFFIX = ".ia3_l"
_TARGETS = TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
_FEEDFORWARD = TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING
_V = TypeVar("_V")


def ia3_key(layer: str) -> str:
    """Name the array of a layer's vector as PEFT does."""
    return layer + _SUFFIX


def ia3_vectors(dense: Mapping[str, _V]) -> dict[str, _V]:
    """Pick the vectors out of dense arrays or parameters, by layer."""
    return {k.removesuffix(_SUFFIX): v for k, v in dense.items() if k.endswith(_SUFFIX)}


def scales_inputs(vector: Any) -> bool:
    """Tell a vector of inputs, shape (1, n), from one of outputs, shape (m, 1)."""
    return int(vector.shape[0]) == 1


def ia3_shapes(model: Any) -> dict[str, tuple[int, int]]:
    """Return the shape of each vector that IA3 trains, by its layer's name.

    Parameters
    ----------
    model : PreTrainedModel
        A model or a part of one; its weights are not looked at.

    Raises
    ------
    AdapterError
        If PEFT does not know which layers of this type of model IA3 adapts.
    """
    kind = model.config.model_type
    if kind not in _TARGETS or kind not in _FEEDFORWARD:
        known = ", ".join(sorted(set(_TARGETS) & set(_FEEDFORWARD)))
        raise AdapterError(
            f"adapter='ia3': PEFT names no layers of a {kind!r} model for it; allowed: "
            f"{known}; or adapter='lora'"
        )
    shapes = {}
    for name in linear_names(model):
        if any(f".{name}".endswith(f".{target}") for target in _TARGETS[kind]):
            m, n = _sides(model.get_submodule(name))
            inward = name.endswith(tuple(_FEEDFORWARD[kind]))
            shapes[name] = (1, n) if inward else (m, 1)
    return shapes


def attach_ia3(
    module: nn.Module, vectors: Mapping[str, NDArray[np.float32]]
) -> dict[str, nn.Parameter]:
    """Put PEFT's IA3 on layers of a module; return the vectors, as float32 parameters.

    Parameters
    ----------
    module : nn.Module
        Changed in place; :func:`~atlas_flwr.lora.detach` restores it.
    vectors : Mapping[str, NDArray]
        By the layer's name in ``module``.

    Raises
    ------
    AdapterError
        If a name is no linear layer of the module, or a vector not of its shape.
    """
    if not vectors:
        return {}
    linear = scaled_layers(module, vectors)
    inward = [re.escape(name) for name, v in vectors.items() if scales_inputs(v)]
    config = IA3Config(
        # As text both are matched in full.
        target_modules="|".join(map(re.escape, vectors)),
        feedforward_modules="|".join(inward) or [],
        fan_in_fan_out=any(isinstance(linear[name], Conv1D) for name in vectors),
    )
    inject_adapter_in_model(config, module, adapter_name=_ADAPTER)
    found = {}
    for name, value in vectors.items():
        layer: Any = module.get_submodule(name)
        assert isinstance(layer, IA3Layer)
        own = torch.tensor(value, device=layer.ia3_l[_ADAPTER].device).float()
        layer.ia3_l[_ADAPTER] = found[name] = nn.Parameter(own)
    return found


def scaled_layers(
    module: nn.Module, vectors: Mapping[str, Any]
) -> dict[str, nn.Module]:
    """Return the linear layers of a module that vectors are of, by name.

    Raises
    ------
    AdapterError
        If a name is no linear layer of the module, or a vector not of its shape.
    """
    found: dict[str, nn.Module] = {
        name: layer
        for name, layer in module.named_modules()
        if name in vectors and isinstance(layer, nn.Linear | Conv1D)
    }
    check_vectors(vectors, {name: _sides(layer) for name, layer in found.items()})
    return found


def check_vectors(
    vectors: Mapping[str, Any], shapes: Mapping[str, tuple[int, int]]
) -> None:
    """Refuse vectors that are of no layer, or of another shape than theirs.

    Parameters
    ----------
    vectors : Mapping[str, NDArray or Tensor]
        By layer.
    shapes : Mapping[str, tuple[int, int]]
        (m, n): outputs and inputs of the layers there are.

    Raises
    ------
    AdapterError
        Naming the layer.
    """
    for name, vector in vectors.items():
        if name not in shapes:
            raise AdapterError(
                f"IA3 vector of layer {name!r}: it is not among the layers here that "
                "one can scale"
            )
        m, n = shapes[name]
        if tuple(vector.shape) not in ((1, n), (m, 1)):
            raise AdapterError(
                f"IA3 vector of layer {name!r} has shape {tuple(vector.shape)}; it "
                f"must be (1, {n}), for its inputs, or ({m}, 1), for its outputs"
            )


def _sides(layer: nn.Module) -> tuple[int, int]:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    m, n = weight.shape if isinstance(layer, nn.Linear) else weight.shape[::-1]
    return int(m), int(n)
