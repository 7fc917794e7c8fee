# SPDX-License-Identifier: Apache-2.0
"""Adapter algebra: attach, concatenate, recompress, export."""

from typing import TYPE_CHECKING

from atlas_flwr._lazy import attach as _attach

if TYPE_CHECKING:
    from atlas_flwr.lora.algebra import concatenate, recompress, spectral_error
    from atlas_flwr.lora.attachment import attach, detach, extract, linear_names, load
    from atlas_flwr.lora.export import save_peft
    from atlas_flwr.lora.exported import load_peft
    from atlas_flwr.lora.factors import LoraFactors
    from atlas_flwr.lora.initial import initial_factors
    from atlas_flwr.lora.state import AdapterState

__all__ = [
    "AdapterState",
    "LoraFactors",
    "attach",
    "concatenate",
    "detach",
    "extract",
    "initial_factors",
    "linear_names",
    "load",
    "load_peft",
    "recompress",
    "save_peft",
    "spectral_error",
]

__getattr__, __dir__ = _attach(
    __name__,
    {
        "AdapterState": "state",
        "LoraFactors": "factors",
        "attach": "attachment",
        "concatenate": "algebra",
        "detach": "attachment",
        "extract": "attachment",
        "initial_factors": "initial",
        "linear_names": "attachment",
        "load": "attachment",
        "load_peft": "exported",
        "recompress": "algebra",
        "save_peft": "export",
        "spectral_error": "algebra",
    },
)
