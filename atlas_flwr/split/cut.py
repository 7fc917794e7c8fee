# SPDX-License-Identifier: Apache-2.0
"""Cut a model into head, trunk and tail, each with its own tensors only.

A part is a complete Hugging Face model: the base model (head, trunk) or the whole class
with its LM head or classifier (tail, and a vanilla trunk), with a slice of the blocks.
Its own ``forward`` builds masks, rotary tables and sliding windows.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from atlas_flwr.errors import PlanError
from atlas_flwr.split.anatomy import (
    blocks_name,
    bypass_embeddings,
    bypass_norm,
    slice_blocks,
)
from atlas_flwr.split.cut_check import rehearse
from atlas_flwr.split.part import PartInfo, mark_part, part_info, whole_config
from atlas_flwr.split.plan import SplitPlan
from atlas_flwr.split.source import described, source_of
from atlas_flwr.split.tensors import CheckpointTensors, ModelTensors, TensorSource
from atlas_flwr.split.weight_loading import Filling
from atlas_flwr.types import Side

__all__ = ["Parts", "hollow_parts", "load_parts", "partition", "skeleton", "trunk_view"]

ALL_SIDES = (Side.HEAD, Side.TRUNK, Side.TAIL)


@dataclass(frozen=True)
class Parts:
    """A model in parts.

    Attributes
    ----------
    head : PreTrainedModel, optional
        ``head(input_ids, attention_mask).last_hidden_state`` is the smashed data.
    trunk : PreTrainedModel, optional
        ``trunk(inputs_embeds=..., attention_mask=...).last_hidden_state``; with a
        vanilla plan its ``logits``.
    tail : PreTrainedModel, optional
        ``tail(inputs_embeds=..., attention_mask=...).logits``; ``None`` in a vanilla
        split, and like the others where it was not asked for.
    """

    head: Any
    trunk: Any
    tail: Any


def partition(
    model_or_path: PreTrainedModel | str | Path,
    plan: SplitPlan,
    *,
    auto_class: Any = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    config_overrides: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Parts:
    """Cut a model into its parts.

    Parameters
    ----------
    model_or_path : PreTrainedModel or str or Path
        A model in memory, whose tensors the parts share; or a local folder or hub name
        with safetensors, of which each part maps only its own.
    plan : SplitPlan
        Where to cut.
    auto_class : optional
        E.g. ``AutoModelForSequenceClassification``. Default: the class named in the
        configuration, or else ``AutoModelForCausalLM``.
    dtype : torch.dtype, optional
        Default: as stored.
    device : torch.device or str, optional
        Default: as stored, or the CPU.
    config_overrides : Mapping[str, Any], optional
        E.g. ``{"num_labels": 6}``: a stored classifier of another size is not used, but
        made anew.
    seed : int
        Initialises what the checkpoint lacks: a new classifier, the same everywhere.

    Returns
    -------
    Parts
        In evaluation mode, as ``from_pretrained`` gives models.

    Raises
    ------
    PlanError
        If the plan is illegal for the model, the model cannot be cut, or what was given
        is no model.
    """
    return load_parts(
        model_or_path,
        plan,
        sides=ALL_SIDES,
        auto_class=auto_class,
        dtype=dtype,
        device=device,
        config_overrides=config_overrides,
        seed=seed,
    )


def load_parts(
    model_or_path: PreTrainedModel | str | Path,
    plan: SplitPlan,
    *,
    sides: tuple[Side, ...] = (Side.HEAD, Side.TAIL),
    auto_class: Any = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    config_overrides: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Parts:
    """Make some of the parts only: a client never maps the trunk's tensors.

    Head and tail of one call share tied embeddings. See :func:`partition`.
    """
    found = hollow_parts(
        model_or_path,
        plan,
        sides=sides,
        auto_class=auto_class,
        dtype=dtype,
        device=device,
        config_overrides=config_overrides,
        seed=seed,
    )
    made: dict[Side, nn.Module] = {}
    for side, filling in found.items():
        filling.fill()
        made[side] = filling.part.eval()
    if Side.HEAD in made:
        made[Side.HEAD].generation_config = _generation(source_of(model_or_path))
    return Parts(made.get(Side.HEAD), made.get(Side.TRUNK), made.get(Side.TAIL))


def hollow_parts(
    model_or_path: PreTrainedModel | str | Path,
    plan: SplitPlan,
    *,
    sides: tuple[Side, ...],
    auto_class: Any = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    config_overrides: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> dict[Side, Filling]:
    """Make some of the parts without memory for their parameters, to be filled.

    See :func:`partition`.
    """
    model_or_path = source_of(model_or_path)
    config, cls = described(model_or_path, auto_class)
    config = copy.deepcopy(config)
    for key, value in (config_overrides or {}).items():
        setattr(config, key, value)
    if dtype is not None:
        config.dtype = dtype  # buffers computed from the configuration follow it
    settings = json.dumps(config.to_dict(), sort_keys=True, default=str)
    kinds: tuple[Hashable, ...] = (cls, type(config))  # type: ignore[assignment]
    whole = _whole(*kinds, settings)
    blocks = blocks_name(whole)
    count = len(whole.get_submodule(blocks))  # type: ignore[arg-type]
    plan.check(count)
    ends = _ends(plan, count)
    _rehearse_once(*kinds, settings, blocks, tuple(ends.values()))
    source = _source(model_or_path, whole, dtype, device)
    made = {}
    for side in [side for side in sides if side in ends]:
        info = PartInfo(side, "", blocks, *ends[side], count)
        part = _cut(skeleton(cls, config), info)
        made[side] = Filling(part, source, whole, seed)
    return made


@lru_cache(maxsize=2)
def _whole(cls: Any, config_class: Any, settings: str) -> PreTrainedModel:
    """Build the whole model without memory, to be read and never changed."""
    return skeleton(cls, config_class.from_dict(json.loads(settings)))


@lru_cache(maxsize=64)
def _rehearse_once(
    cls: Any,
    config_class: Any,
    settings: str,
    blocks: str,
    slices: tuple[tuple[int, int], ...],
) -> None:
    """Rehearse a cut of a configuration, the same one once in a process."""
    config = config_class.from_dict(json.loads(settings))
    rehearse(partial(skeleton, cls, config), blocks, slices)


def trunk_view(trunk: PreTrainedModel, start: int, stop: int) -> PreTrainedModel:
    """Return a trunk of fewer blocks that shares them, and all tensors, with ``trunk``.

    Parameters
    ----------
    trunk : PreTrainedModel
        A trunk made by :func:`partition`.
    start, stop : int
        Blocks, counted in the whole model, within the trunk's own.

    Raises
    ------
    PlanError
        If they are not.
    """
    info = part_info(trunk)
    if not info.start <= start < stop <= info.stop:
        raise PlanError(
            f"blocks [{start}, {stop}) of a trunk that has [{info.start}, {info.stop})"
        )
    local = info.blocks.removeprefix(info.prefix)
    view = _shallow(trunk, local)
    slice_blocks(view, local, start - info.start, stop - info.start)
    prefix = info.prefix
    if stop < info.stop == info.num_layers:
        view, prefix = _without_end(view, local)
    new = replace(info, prefix=prefix, start=start, stop=stop)
    mark_part(view, new, whole_config(trunk))
    return view


def _ends(plan: SplitPlan, count: int) -> dict[Side, tuple[int, int]]:
    """Return the first block and the end of each part that there is."""
    middle = plan.trunk_range(count)
    ends = {
        Side.HEAD: (0, middle.start),
        Side.TRUNK: (middle.start, middle.stop),
        Side.TAIL: (middle.stop, count),
    }
    return {side: end for side, end in ends.items() if len(range(*end))}


def _source(
    model_or_path: PreTrainedModel | str | Path,
    whole: PreTrainedModel,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> TensorSource:
    if not isinstance(model_or_path, PreTrainedModel):
        return CheckpointTensors(model_or_path, whole, dtype, device)
    source = ModelTensors(model_or_path, dtype, device)
    _refuse_strangers(source, whole)
    return source


def _generation(model_or_path: PreTrainedModel | str | Path) -> Any:
    """Return how the model wants to generate, if it says so."""
    if isinstance(model_or_path, PreTrainedModel):
        return getattr(model_or_path, "generation_config", None)
    try:
        return GenerationConfig.from_pretrained(model_or_path)
    except OSError:  # no such file: what the configuration says will do
        return None


def skeleton(cls: Any, config: Any) -> PreTrainedModel:
    """Build the model without memory for parameters; computed buffers are real.

    Raises
    ------
    PlanError
        If the class makes no model of such a configuration.
    """
    made_of = getattr(cls, "_model_mapping", None)  # an Auto class has one
    if made_of is not None and type(config) not in made_of:
        raise PlanError(
            f"{cls.__name__} makes no model of type {config.model_type!r}; give a "
            "decoder or an encoder of text, such as Llama, Qwen, GPT-2, BERT"
        )
    config = copy.deepcopy(config)
    make = cls.from_config if hasattr(cls, "from_config") else cls
    with init_empty_weights(include_buffers=False), no_init_weights():
        model: PreTrainedModel = make(config)
    model.eval()
    return model


def _cut(model: PreTrainedModel, info: PartInfo) -> PreTrainedModel:
    """Turn a whole skeleton into the part that ``info`` says."""
    config = model.config
    slice_blocks(model, info.blocks, info.start, info.stop)
    if info.start > 0:
        bypass_embeddings(model, info.blocks)
    part, prefix = model, ""
    if info.stop < info.num_layers:
        part, prefix = _without_end(model, info.blocks)
    mark_part(part, replace(info, prefix=prefix), config)
    return part


def _without_end(model: PreTrainedModel, blocks: str) -> tuple[PreTrainedModel, str]:
    """Drop what comes after the blocks; return the base model and its prefix."""
    bypass_norm(model, blocks)
    base = model.base_model
    assert isinstance(base, PreTrainedModel)
    return base, "" if base is model else f"{model.base_model_prefix}."


def _refuse_strangers(source: TensorSource, whole: PreTrainedModel) -> None:
    plain = {*whole.state_dict().keys(), *dict(whole.named_buffers())}
    strangers = sorted(set(source.names) - plain)
    if strangers:
        raise PlanError(
            f"{type(whole).__name__} has {len(strangers)} tensors that a plain one has "
            f"not, the first: {strangers[0]!r}; cut the model before adapters are "
            "attached"
        )


def _shallow(model: PreTrainedModel, blocks: str) -> PreTrainedModel:
    """Copy the modules on the way to the blocks; share all others."""
    top: PreTrainedModel = _copied(model)
    here: nn.Module = top
    for step in blocks.split(".")[:-1]:
        here._modules[step] = _copied(getattr(here, step))
        here = getattr(here, step)
    return top


def _copied(module: Any) -> Any:
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin
