# SPDX-License-Identifier: Apache-2.0
"""Adapter algebra: attach, concatenate, recompress, export."""

from typing import TYPE_CHECKING

from atlas_flwr._lazy import attach as _attach

if TYPE_CHECKING:
    from atlas_flwr.lora.algebra import concatenate, recompress
    from atlas_flwr.lora.attachment import (
        attach,
        attached,
        detach,
        extract,
        linear_names,
        load,
    )
    from atlas_flwr.lora.dense import widen
    from atlas_flwr.lora.export import save_peft
    from atlas_flwr.lora.exported import load_peft
    from atlas_flwr.lora.factors import LoraFactors
    from atlas_flwr.lora.folding import fold
    from atlas_flwr.lora.ia3 import (
        attach_ia3,
        check_vectors,
        ia3_key,
        ia3_shapes,
        ia3_vectors,
        scales_inputs,
    )
    from atlas_flwr.lora.importance import ImportanceProbe, oriented, probing
    from atlas_flwr.lora.initial import initial_factors
    from atlas_flwr.lora.prompt import PROMPT_KEY, attach_prompt, prepended
    from atlas_flwr.lora.pruning import excess, kept_rank, pruned
    from atlas_flwr.lora.remainder import divided, share_of_rest
    from atlas_flwr.lora.scaling import Scaling
    from atlas_flwr.lora.spectrum import canonical, damped, leading, trailing
    from atlas_flwr.lora.state import AdapterState

__all__ = [
    "PROMPT_KEY",
    "AdapterState",
    "ImportanceProbe",
    "LoraFactors",
    "Scaling",
    "attach",
    "attach_ia3",
    "attach_prompt",
    "attached",
    "canonical",
    "check_vectors",
    "concatenate",
    "damped",
    "detach",
    "divided",
    "excess",
    "extract",
    "fold",
    "ia3_key",
    "ia3_shapes",
    "ia3_vectors",
    "initial_factors",
    "kept_rank",
    "leading",
    "linear_names",
    "load",
    "load_peft",
    "oriented",
    "prepended",
    "probing",
    "pruned",
    "recompress",
    "save_peft",
    "scales_inputs",
    "share_of_rest",
    "trailing",
    "widen",
]

__getattr__, __dir__ = _attach(
    __name__,
    {
        "AdapterState": "state",
        "ImportanceProbe": "importance",
        "LoraFactors": "factors",
        "PROMPT_KEY": "prompt",
        "Scaling": "scaling",
        "attach": "attachment",
        "attach_ia3": "ia3",
        "attach_prompt": "prompt",
        "attached": "attachment",
        "canonical": "spectrum",
        "check_vectors": "ia3",
        "concatenate": "algebra",
        "damped": "spectrum",
        "detach": "attachment",
        "divided": "remainder",
        "excess": "pruning",
        "extract": "attachment",
        "fold": "folding",
        "ia3_key": "ia3",
        "ia3_shapes": "ia3",
        "ia3_vectors": "ia3",
        "initial_factors": "initial",
        "kept_rank": "pruning",
        "leading": "spectrum",
        "linear_names": "attachment",
        "load": "attachment",
        "load_peft": "exported",
        "oriented": "importance",
        "prepended": "prompt",
        "probing": "importance",
        "pruned": "pruning",
        "recompress": "algebra",
        "save_peft": "export",
        "scales_inputs": "ia3",
        "share_of_rest": "remainder",
        "trailing": "spectrum",
        "widen": "dense",
    },
)
