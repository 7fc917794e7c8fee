# SPDX-License-Identifier: Apache-2.0
"""Adapters on a module, through PEFT: attach, load, extract, detach."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer, cast_adapter_dtype
from torch import nn
from transformers.pytorch_utils import Conv1D

from atlas_flwr.errors import AdapterError
from atlas_flwr.lora.factors import LoraFactors
from atlas_flwr.lora.scaling import Scaling

__all__ = ["attach", "attached", "detach", "extract", "linear_names", "load"]

ALL_LINEAR = ("all-linear",)
_ADAPTER = "default"
_IN_BLOCK = re.compile(r"(?:^|\.)\d+\.")


def linear_names(module: nn.Module, targets: Sequence[str] = ALL_LINEAR) -> list[str]:
    """List the linear layers inside the model's blocks, by their names in ``module``.

    Embeddings, LM heads, poolers and classifiers lie outside the blocks and are left
    alone. A layer has the same name with an adapter on it as without.

    Parameters
    ----------
    module : nn.Module
        A model or a part of one.
    targets : Sequence[str]
        ``("all-linear",)``, or last components of names, e.g. ``("q_proj", "v_proj")``.

    Raises
    ------
    AdapterError
        If a target names no layer.
    """
    found = [
        name
        for name, layer in _bare_modules(module)
        if isinstance(layer, nn.Linear | Conv1D) and _IN_BLOCK.search(name)
    ]
    if tuple(targets) == ALL_LINEAR:
        return found
    last = {name.rsplit(".", 1)[-1] for name in found}
    unknown = sorted(set(targets) - last)
    if unknown:
        raise AdapterError(
            f"lora-targets {', '.join(unknown)}: no such linear layer; allowed: "
            f"all-linear, or some of {', '.join(sorted(last))}"
        )
    return [name for name in found if name.rsplit(".", 1)[-1] in targets]


def attach(module: nn.Module, ranks: Mapping[str, int], scaling: Scaling) -> None:
    """Put a LoRA adapter on each layer of ``ranks``; only adapters stay trainable.

    They are float32 where the module is in half precision, as with ``get_peft_model``.

    Parameters
    ----------
    module : nn.Module
        Changed in place; :func:`detach` restores it.
    ranks : Mapping[str, int]
        Rank by the layer's name in ``module``; at rank 0 it stays bare.
    scaling : Scaling
        By what each layer's product is multiplied.

    Raises
    ------
    AdapterError
        If a name is no linear layer of the module, a rank is below 0, or adapters are
        there already.
    """
    if any(True for _ in _layers(module)):
        raise AdapterError("the module has adapters already; detach() them first")
    module.requires_grad_(False)
    layers = dict(module.named_modules())
    _refuse_odd(layers, ranks)
    ranks = {name: rank for name, rank in ranks.items() if rank}
    if not ranks:
        return
    by_rank: dict[int, list[str]] = {}
    for name, rank in ranks.items():
        by_rank.setdefault(rank, []).append(name)
    # PEFT matches patterns as suffixes of the name: anchor them.
    pattern: dict[str, Any] = {
        f"^{re.escape(name)}": rank for name, rank in ranks.items()
    }
    config = LoraConfig(
        r=next(iter(by_rank)),
        lora_alpha=scaling.alpha or 1.0,  # type: ignore[arg-type]
        alpha_pattern={} if scaling.alpha else dict(pattern),
        use_rslora=scaling.use_rslora and bool(scaling.alpha),
        target_modules="|".join(map(re.escape, ranks)),  # as text, matched in full
        rank_pattern=pattern if len(by_rank) > 1 else {},
        bias="none",
        fan_in_fan_out=any(isinstance(layers[name], Conv1D) for name in ranks),
        lora_dropout=0.0,
    )
    inject_adapter_in_model(config, module, adapter_name=_ADAPTER)
    cast_adapter_dtype(module, _ADAPTER)


def attached(module: nn.Module) -> dict[str, LoraFactors]:
    """Return the adapters as they are being trained, by the layer's name."""
    return {
        name: LoraFactors(
            layer.lora_A[_ADAPTER].weight,
            layer.lora_B[_ADAPTER].weight,
            float(layer.scaling[_ADAPTER]),
        )
        for name, layer in _layers(module)
    }


def extract(module: nn.Module) -> dict[str, LoraFactors]:
    """Copy the adapters out, by the layer's name in ``module``."""
    return {
        name: LoraFactors(f.A.detach().clone(), f.B.detach().clone(), f.scale)
        for name, f in attached(module).items()
    }


def load(module: nn.Module, factors: Mapping[str, LoraFactors]) -> None:
    """Copy factors into the attached adapters, which keep their own scale.

    Raises
    ------
    AdapterError
        Naming the layer that is unknown, missing, or of another rank or shape.
    """
    layers = dict(_layers(module))
    if set(layers) != set(factors):
        odd = sorted(set(layers) ^ set(factors))[0]
        where = "attached but not given" if odd in layers else "given but not attached"
        raise AdapterError(
            f"{len(factors)} adapters for {len(layers)} adapted layers: {odd!r} is "
            f"{where}"
        )
    for name, layer in layers.items():
        _load_one(name, layer, factors[name])


def detach(module: nn.Module) -> None:
    """Remove all adapters, putting the original layers back."""
    for name, layer in list(_layers(module, BaseTunerLayer)):
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, layer.get_base_layer())
    if hasattr(module, "peft_config"):
        del module.peft_config


def _refuse_odd(layers: Mapping[str, nn.Module], ranks: Mapping[str, int]) -> None:
    unknown = [
        name for name in ranks if not isinstance(layers.get(name), nn.Linear | Conv1D)
    ]
    if unknown:
        raise AdapterError(
            f"{len(unknown)} of {len(ranks)} layers are no linear layers of this "
            f"module, the first: {unknown[0]!r}; see linear_names()"
        )
    for name, rank in ranks.items():
        if rank < 0:
            raise AdapterError(f"layer {name!r}: rank {rank}; allowed: 0 (none) and up")


def _load_one(name: str, layer: Any, given: LoraFactors) -> None:
    A, B = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
    if A.shape != given.A.shape or B.shape != given.B.shape:
        raise AdapterError(
            f"layer {name!r}: factors of rank {given.rank} and shape {given.shape}; "
            f"attached is rank {A.shape[0]}, shape {(B.shape[0], A.shape[1])}"
        )
    scaled = given.with_scale(float(layer.scaling[_ADAPTER]))
    with torch.no_grad():
        A.copy_(scaled.A)
        B.copy_(scaled.B)


def _layers(
    module: nn.Module, kind: type[BaseTunerLayer] = LoraLayer
) -> Iterator[tuple[str, Any]]:
    for name, layer in module.named_modules():
        if isinstance(layer, kind):
            yield name, layer


def _bare_modules(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Walk the modules as they were before any adapter was attached."""
    layers = _layers(module, BaseTunerLayer)
    adapted = {name: layer.get_base_layer() for name, layer in layers}
    inside = tuple(f"{name}." for name in adapted)
    for name, found in module.named_modules():
        if not name.startswith(inside):
            yield name, adapted.get(name, found)
