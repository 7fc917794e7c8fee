# SPDX-License-Identifier: Apache-2.0
"""Adapters read back from a folder in PEFT's format, whoever wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import peft
from peft import LoraConfig, PeftConfig, PeftType
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from atlas_flwr.errors import AdapterError
from atlas_flwr.lora.factors import LoraFactors
from atlas_flwr.lora.state import AdapterState

__all__ = ["load_peft"]

_BASE, _PROMPTED = "base_model.model.", "base_model."
_DENSE = (PeftType.IA3, PeftType.PROMPT_TUNING)
_A, _B = ".lora_A.weight", ".lora_B.weight"


def load_peft(folder: Path | str) -> AdapterState:
    """Read ``adapter_config.json`` and ``adapter_model.safetensors``.

    Parameters
    ----------
    folder : Path or str
        Written by :func:`~atlas_flwr.lora.save_peft` or by PEFT itself.

    Returns
    -------
    AdapterState
        Factors by the layer's name in the whole model, at the scale that PEFT applies;
        IA3's vectors, a prompt and PEFT's ``modules_to_save`` as dense float32 arrays.

    Raises
    ------
    AdapterError
        If a file is missing, or the adapter is none of LoRA on linear layers alone, IA3
        and prompt tuning.
    """
    folder = Path(folder)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise AdapterError(f"{folder}: no {name}; is it a folder in PEFT's format?")
    config = _config(folder)
    base = _PROMPTED if config.peft_type == PeftType.PROMPT_TUNING else _BASE
    tensors = {k.removeprefix(base): v for k, v in _tensors(folder).items()}
    if not isinstance(config, LoraConfig):
        return AdapterState(dense={k: v.float().numpy() for k, v in tensors.items()})
    layers = sorted(key.removesuffix(_A) for key in tensors if key.endswith(_A))
    factors = {name: _factors(name, tensors, config) for name in layers}
    dense = {k: v for k, v in tensors.items() if not k.endswith((_A, _B))}
    strange = sorted(key for key in dense if ".lora_" in key)
    if strange:
        raise AdapterError(f"{folder}: {strange[0]!r} is not LoRA of a linear layer")
    return AdapterState(factors, {k: v.float().numpy() for k, v in dense.items()})


def _tensors(folder: Path) -> dict[str, Tensor]:
    try:
        return load_file(folder / "adapter_model.safetensors")
    except SafetensorError as error:
        raise AdapterError(
            f"{folder}: adapter_model.safetensors is damaged ({error}); copy it again"
        ) from None


def _config(folder: Path) -> PeftConfig:
    try:
        config: PeftConfig = PeftConfig.from_pretrained(str(folder))
    except (KeyError, TypeError, ValueError) as error:
        raise AdapterError(
            f"{folder}: adapter_config.json is nothing that PEFT {peft.__version__} "
            f"reads ({error!r}); copy it again, or take a PEFT that knows it"
        ) from None
    if config.peft_type in _DENSE:
        return config
    if not isinstance(config, LoraConfig):
        raise AdapterError(
            f"{folder}: adapters of type {config.peft_type}; only LORA, IA3 and "
            "PROMPT_TUNING are read"
        )
    more = [name for name in ("use_dora", "lora_bias") if getattr(config, name)]
    more += ["bias"] if config.bias != "none" else []
    if more:
        raise AdapterError(
            f"{folder}: trained with {', '.join(more)}, which A and B alone cannot "
            "express"
        )
    return config


def _factors(
    name: str, tensors: Mapping[str, Tensor], config: LoraConfig
) -> LoraFactors:
    if name + _B not in tensors:
        raise AdapterError(f"layer {name!r}: {_A[1:]} without {_B[1:]}")
    A, B = tensors[name + _A], tensors[name + _B]
    alphas = config.alpha_pattern or {}
    alpha = alphas.get(get_pattern_key(list(alphas), name), config.lora_alpha)
    rank = A.shape[0]
    return LoraFactors(A, B, alpha / (rank**0.5 if config.use_rslora else rank))
