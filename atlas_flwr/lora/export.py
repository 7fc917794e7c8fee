# SPDX-License-Identifier: Apache-2.0
"""Adapters as PEFT saves them, for ``PeftModel.from_pretrained``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import IA3Config, LoraConfig, PromptTuningConfig, TaskType
from safetensors.torch import save_file

from atlas_flwr.errors import AdapterError
from atlas_flwr.lora.factors import LoraFactors
from atlas_flwr.lora.ia3 import ia3_key, ia3_vectors, scales_inputs
from atlas_flwr.lora.prompt import PROMPT_KEY
from atlas_flwr.lora.state import AdapterState

__all__ = ["save_peft"]

_BASE, _PROMPTED = "base_model.model.", "base_model."
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
        Factors by the layer's name in the whole model; or IA3's vectors, or a prompt,
        among the dense arrays. The others (a classifier) are saved as PEFT's
        ``modules_to_save``.
    base_model : str
        Hub name or folder of the whole model.
    causal : bool
        Whether it is a causal language model; else a sequence classifier.

    Raises
    ------
    AdapterError
        If there is no adapter to save, or adapters of two kinds.
    """
    vectors, prompt = ia3_vectors(state.dense), state.dense.get(PROMPT_KEY)
    kinds = [bool(state.factors), bool(vectors), prompt is not None]
    if not any(kinds):
        raise AdapterError("there is no adapter to save: the state has no layers")
    if sum(kinds) > 1:
        raise AdapterError(
            "PEFT saves LoRA, IA3 or a prompt in one folder, and this has two of them"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config: IA3Config | LoraConfig | PromptTuningConfig
    if prompt is not None:
        config = _prompt(prompt)
    else:
        config = _ia3(vectors) if vectors else _lora(state.factors)
    base = _BASE if prompt is None else _PROMPTED
    config.base_model_name_or_path = base_model
    config.task_type = TaskType.CAUSAL_LM if causal else TaskType.SEQ_CLS
    config.modules_to_save = _owners(
        set(state.dense) - {PROMPT_KEY, *map(ia3_key, vectors)}
    )
    config.inference_mode = True
    config.save_pretrained(str(folder))
    tensors: dict[str, torch.Tensor] = {}
    for name, found in state.factors.items():
        plain = found.with_scale(1.0)
        tensors[f"{base}{name}.lora_A.weight"] = plain.A.contiguous()
        tensors[f"{base}{name}.lora_B.weight"] = plain.B.contiguous()
    for key, value in state.dense.items():
        name = key if key == PROMPT_KEY else base + key
        tensors[name] = torch.from_numpy(value).contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})


def _prompt(prompt: NDArray[np.float32]) -> PromptTuningConfig:
    count, width = prompt.shape
    return PromptTuningConfig(num_virtual_tokens=count, token_dim=width)


def _ia3(vectors: Mapping[str, NDArray[np.float32]]) -> IA3Config:
    inward = [name for name, vector in vectors.items() if scales_inputs(vector)]
    return IA3Config(target_modules=[*vectors], feedforward_modules=inward)


def _lora(factors: Mapping[str, LoraFactors]) -> LoraConfig:
    ranks = {name: found.rank for name, found in factors.items()}
    pattern: dict[str, Any] = {f"^{re.escape(n)}": rank for n, rank in ranks.items()}
    return LoraConfig(
        target_modules=[*ranks],
        r=max(ranks.values()),
        lora_alpha=max(ranks.values()),
        rank_pattern=pattern,
        alpha_pattern=dict(pattern),
    )


def _owners(dense: Iterable[str]) -> list[str] | None:
    """Name the modules to save, none inside another.

    PEFT adds a sequence classifier's head on its own, whole; RoBERTa's has layers in
    it, which must not be named again.
    """
    owners = (key.rpartition(".")[0] for key in dense)
    found = {o.split(".")[0] if o.startswith(_HEADS) else o for o in owners}
    return sorted(found) or None
