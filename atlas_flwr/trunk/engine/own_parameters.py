# SPDX-License-Identifier: Apache-2.0
"""What a session trains beside low-rank factors: its own copies, on a shared base."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from atlas_flwr.errors import AdapterError
from atlas_flwr.lora import check_vectors, ia3_key, ia3_vectors, widen

__all__ = ["own_dense", "own_vectors"]


def own_vectors(
    arrays: Mapping[str, NDArray[np.float32]],
    shapes: Mapping[str, tuple[int, int]],
    like: Tensor,
) -> dict[str, nn.Parameter]:
    """Copy the IA3 vectors among a session's arrays to the base's device."""
    vectors = ia3_vectors(arrays)
    check_vectors(vectors, shapes)
    return {
        ia3_key(name): nn.Parameter(torch.tensor(v, device=like.device).float())
        for name, v in vectors.items()
    }


def own_dense(
    view: Any, arrays: Mapping[str, NDArray[np.float32]]
) -> tuple[Any, dict[str, nn.Parameter]]:
    """Give a session its own copy of the modules that it trains in full."""
    if not arrays:
        return view, {}
    known = dict(view.named_parameters())
    for key, value in arrays.items():
        if key not in known or tuple(known[key].shape) != value.shape:
            raise AdapterError(
                f"array {key!r} of shape {value.shape} is no parameter of this slice "
                "of the trunk; arrays belong to the side that ends the model"
            )
    own = _twin(view)
    for owner in {key.rpartition(".")[0] for key in arrays}:
        *way, last = owner.split(".")
        here = own
        for step in way:  # what is not trained stays shared
            here._modules[step] = _twin(getattr(here, step))
            here = getattr(here, step)
        here._modules[last] = copy.deepcopy(getattr(here, last))
    widen(own, arrays)
    parameters = dict(own.named_parameters())
    dense = {key: parameters[key].requires_grad_(True) for key in arrays}
    with torch.no_grad():
        for key, value in arrays.items():
            dense[key].copy_(torch.from_numpy(np.asarray(value)))
    return own, dense


def _twin(module: Any) -> Any:
    """Copy a module, but none of those in it."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin
