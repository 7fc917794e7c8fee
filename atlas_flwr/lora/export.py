# SPDX-License-Identifier: Apache-2.0
"""Adapters as PEFT saves them, for ``PeftModel.from_pretrained``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType
from safetensors.torch import save_file

from atlas_flwr.errors import AdapterError
from atlas_flwr.lora.state import AdapterState

__all__ = ["save_peft"]

_BASE = "base_model.model."
_HEADS = ("classifier.", "score.")


def save_peft(
    folder: Path | str, state: AdapterState, *, base_model: str, causal: bool
) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``.

    Ranks may differ between layers; alpha is set to each layer's rank, so that PEFT
    multiplies by 1, and the scale goes into B.

    Parameters
    ----------
    folder : Path or str
        Made if it is not there.
    state : AdapterState
        Factors by the layer's name in the whole model; dense arrays (a classifier) are
        saved as PEFT's ``modules_to_save``.
    base_model : str
        Hub name or folder of the whole model.
    causal : bool
        Whether it is a causal language model; else a sequence classifier.

    Raises
    ------
    AdapterError
        If there is no adapter to save.
    """
    if not state.factors:
        raise AdapterError("there is no adapter to save: the state has no layers")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _config(state, base_model, causal).save_pretrained(str(folder))
    tensors: dict[str, torch.Tensor] = {}
    for name, found in state.factors.items():
        plain = found.with_scale(1.0)
        tensors[f"{_BASE}{name}.lora_A.weight"] = plain.A.contiguous()
        tensors[f"{_BASE}{name}.lora_B.weight"] = plain.B.contiguous()
    for key, value in state.dense.items():
        tensors[_BASE + key] = torch.from_numpy(value).contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})


def _config(state: AdapterState, base_model: str, causal: bool) -> LoraConfig:
    ranks = {name: found.rank for name, found in state.factors.items()}
    pattern: dict[str, Any] = {f"^{re.escape(n)}": rank for n, rank in ranks.items()}
    return LoraConfig(
        base_model_name_or_path=base_model,
        task_type=TaskType.CAUSAL_LM if causal else TaskType.SEQ_CLS,
        target_modules=[*ranks],
        r=max(ranks.values()),
        lora_alpha=max(ranks.values()),
        rank_pattern=pattern,
        alpha_pattern=dict(pattern),
        modules_to_save=_owners(state.dense) or None,
        inference_mode=True,
    )


def _owners(dense: Mapping[str, object]) -> list[str]:
    """Name the modules to save, none inside another.

    PEFT adds a sequence classifier's head on its own, whole; RoBERTa's has layers in
    it, which must not be named again.
    """
    owners = (key.rpartition(".")[0] for key in dense)
    return sorted({o.split(".")[0] if o.startswith(_HEADS) else o for o in owners})
