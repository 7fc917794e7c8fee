# SPDX-License-Identifier: Apache-2.0
"""Adapter algebra: attach, concatenate, recompress, export."""

from atlas_flwr._lazy import attach as _attach

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
