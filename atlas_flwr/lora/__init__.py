# SPDX-License-Identifier: Apache-2.0
"""Adapter algebra: attach, concatenate, recompress, export."""

from typing import TYPE_CHECKING

from atlas_flwr._lazy import attach as _attach

if TYPE_CHECKING:
    from atlas_flwr.lora.algebra import concatenate, recompress, spectral_error
    from atlas_flwr.lora.attachment import (
        attach,
        attached,
        detach,
        extract,
        linear_names,
        load,
    )
    from atlas_flwr.lora.export import save_peft
    from atlas_flwr.lora.exported import load_peft
    from atlas_flwr.lora.factors import LoraFactors
    from atlas_flwr.lora.folding import fold
    from atlas_flwr.lora.importance import ImportanceProbe, oriented, probing
    from atlas_flwr.lora.initial import initial_factors
    from atlas_flwr.lora.pruning import excess, kept_rank, pruned
    from atlas_flwr.lora.scaling import Scaling
    from atlas_flwr.lora.spectrum import canonical, damped, leading, trailing
    from atlas_flwr.lora.state import AdapterState

__all__ = [
    "AdapterState",
    "ImportanceProbe",
    "LoraFactors",
    "Scaling",
    "attach",
    "attached",
    "canonical",
    "concatenate",
    "damped",
    "detach",
    "excess",
    "extract",
    "fold",
    "initial_factors",
    "kept_rank",
    "leading",
    "linear_names",
    "load",
    "load_peft",
    "oriented",
    "probing",
    "pruned",
    "recompress",
    "save_peft",
    "spectral_error",
    "trailing",
]

__getattr__, __dir__ = _attach(
    __name__,
    {
        "AdapterState": "state",
        "ImportanceProbe": "importance",
        "LoraFactors": "factors",
        "Scaling": "scaling",
        "attach": "attachment",
        "attached": "attachment",
        "canonical": "spectrum",
        "concatenate": "algebra",
        "damped": "spectrum",
        "detach": "attachment",
        "excess": "pruning",
        "extract": "attachment",
        "fold": "folding",
        "initial_factors": "initial",
        "kept_rank": "pruning",
        "leading": "spectrum",
        "linear_names": "attachment",
        "load": "attachment",
        "load_peft": "exported",
        "oriented": "importance",
        "probing": "importance",
        "pruned": "pruning",
        "recompress": "algebra",
        "save_peft": "export",
        "spectral_error": "algebra",
        "trailing": "spectrum",
    },
)
