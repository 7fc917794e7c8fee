# SPDX-License-Identifier: Apache-2.0
"""Adapter states as flat arrays and JSON values, for checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from atlas_flwr.lora import AdapterState, LoraFactors

__all__ = ["flatten", "unflatten"]

Arrays = Mapping[str, NDArray[Any]]


def flatten(state: AdapterState, prefix: str) -> dict[str, NDArray[Any]]:
    """Write a state's arrays under ``<prefix>/A/<layer>`` and so on."""
    out: dict[str, NDArray[Any]] = {}
    for name, found in state.factors.items():
        out[f"{prefix}/A/{name}"] = found.A.numpy()
        out[f"{prefix}/B/{name}"] = found.B.numpy()
        out[f"{prefix}/scale/{name}"] = np.array([found.scale])
    out |= {f"{prefix}/dense/{key}": value for key, value in state.dense.items()}
    out |= {f"{prefix}/rest/{name}": r.numpy() for name, r in state.rest.items()}
    return out


def unflatten(arrays: Arrays, prefix: str) -> AdapterState:
    """Read back what :func:`flatten` wrote under a prefix."""
    found = {
        key.removeprefix(f"{prefix}/"): value
        for key, value in arrays.items()
        if key.startswith(f"{prefix}/")
    }
    layers = [k.removeprefix("A/") for k in found if k.startswith("A/")]
    factors = {
        name: LoraFactors(
            torch.from_numpy(found[f"A/{name}"]),
            torch.from_numpy(found[f"B/{name}"]),
            float(found[f"scale/{name}"][0]),
        )
        for name in layers
    }
    dense = {
        key.removeprefix("dense/"): value
        for key, value in found.items()
        if key.startswith("dense/")
    }
    rest = {
        key.removeprefix("rest/"): torch.from_numpy(value)
        for key, value in found.items()
        if key.startswith("rest/")
    }
    return AdapterState(factors, dense, rest=rest)
