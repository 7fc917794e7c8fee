# SPDX-License-Identifier: Apache-2.0
"""A model's structure without its weights: its blocks, its layers, their sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from atlas_flwr.budget import Architecture
from atlas_flwr.lora import ia3_shapes, linear_names
from atlas_flwr.split import SplitPlan
from atlas_flwr.split.anatomy import blocks_name, bypass_embeddings, bypass_norm
from atlas_flwr.split.cut import skeleton
from atlas_flwr.train.footprint import trace_footprint
from atlas_flwr.types import Side

__all__ = ["Outline"]


@dataclass(frozen=True)
class Outline:
    """A model's structure, without its weights.

    Attributes
    ----------
    model : Any
        On the meta device.
    """

    model: Any

    @classmethod
    def of(
        cls,
        path: str,
        auto_class: Any = AutoModelForCausalLM,
        overrides: Mapping[str, Any] | None = None,
    ) -> Outline:
        """Read a model's configuration, and build it on the meta device."""
        config = AutoConfig.from_pretrained(path)
        for key, value in (overrides or {}).items():
            setattr(config, key, value)
        return cls(skeleton(auto_class, config))

    @cached_property
    def blocks(self) -> str:
        """Name of the list of blocks."""
        return blocks_name(self.model)

    @property
    def num_layers(self) -> int:
        """Number of blocks."""
        return len(self.model.get_submodule(self.blocks))

    def block_of(self, name: str) -> int | None:
        """Block that a layer's name belongs to."""
        prefix = f"{self.blocks}."
        if not name.startswith(prefix):
            return None
        return int(name[len(prefix) :].partition(".")[0])

    def place_of(self, name: str) -> tuple[int, str]:
        """Return the block of a layer in one, and the layer's name in it."""
        block = self.block_of(name)
        assert block is not None, name
        return block, name.removeprefix(f"{self.blocks}.{block}.")

    def shapes(self, targets: Sequence[str]) -> dict[str, tuple[int, int]]:
        """(d_out, d_in) of every layer that gets an adapter, by name."""
        found = {}
        for name in linear_names(self.model, targets):
            layer = self.model.get_submodule(name)
            m, n = layer.weight.shape
            found[name] = (m, n) if isinstance(layer, nn.Linear) else (n, m)
        return found

    def shapes_by_side(
        self, targets: Sequence[str], plan: SplitPlan | None
    ) -> tuple[dict[str, tuple[int, int]], dict[str, tuple[int, int]]]:
        """Return :meth:`shapes` of the layers on the client, and of the trunk's."""
        trunk = plan.trunk_range(self.num_layers) if plan else range(0)
        near: dict[str, tuple[int, int]] = {}
        far: dict[str, tuple[int, int]] = {}
        for name, shape in self.shapes(targets).items():
            (far if self.block_of(name) in trunk else near)[name] = shape
        return near, far

    def architecture(
        self,
        targets: Sequence[str],
        dtype: torch.dtype = torch.float32,
        adapter: str = "lora",
        virtual: int = 0,
        *,
        aligned: bool = False,
    ) -> Architecture:
        """Return the numbers that the memory model needs.

        With another adapter than LoRA no layer has a rank: ask for 0. With some
        ``virtual`` positions, a prompt's or a summary's, these are part of a step's
        length. With ``aligned`` the loss is that of alignment.
        """
        model, first = self.model, f"{self.blocks}.0"
        block = sum(p.numel() for p in model.get_submodule(first).parameters())
        config = model.config.get_text_config()
        out = model.get_output_embeddings()
        tied = out is not None and bool(getattr(config, "tie_word_embeddings", False))
        shapes = self.shapes(targets)
        around = _around_blocks(model, self.blocks)
        return Architecture(
            num_layers=self.num_layers,
            hidden=config.hidden_size,
            widest=max(max(shape) for shape in shapes.values()),
            vocabulary=config.vocab_size if out is not None else 0,
            embedding_params=around[Side.HEAD],
            output_params=around[Side.TAIL],
            tied=tied,
            block_params=block,
            adapted=_of_block(first, shapes) if adapter == "lora" else {},
            dense_params=0 if out is not None else _beyond_base(model),
            vector_params=_vector_params(model, first) if adapter == "ia3" else 0,
            prompt_params=virtual * model.get_input_embeddings().weight.shape[1],
            footprint=trace_footprint(model, targets, dtype, adapter, aligned=aligned),
        )


def _of_block(
    block: str, shapes: Mapping[str, tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    """Keep the layers of a block, by their names in it."""
    prefix = f"{block}."
    mine = {name: shape for name, shape in shapes.items() if name.startswith(prefix)}
    return {name.removeprefix(prefix): shape for name, shape in mine.items()}


def _vector_params(model: Any, block: str) -> int:
    """Count what IA3 trains of a block; a vector has a side of length 1."""
    return sum(max(shape) for shape in _of_block(block, ia3_shapes(model)).values())


def _around_blocks(model: Any, blocks: str) -> dict[Side, int]:
    """Count the parameters before the blocks and after them, tied ones before."""
    prefix = f"{model.base_model_prefix}."
    start, end = (skeleton(type(model), model.config) for _ in range(2))
    bypass_norm(start, blocks)
    bypass_embeddings(end, blocks)
    base = "" if start.base_model is start else prefix
    before = {k: n for k, n in _beside(start, blocks).items() if k.startswith(base)}
    tied = {k for k, v in model.all_tied_weights_keys.items() if v in before}
    after = {k: n for k, n in _beside(end, blocks).items() if k not in tied}
    return {Side.HEAD: sum(before.values()), Side.TAIL: sum(after.values())}


def _beside(model: Any, blocks: str) -> dict[str, int]:
    named = model.named_parameters(remove_duplicate=False)
    return {k: p.numel() for k, p in named if not k.startswith(f"{blocks}.")}


def _beyond_base(model: Any) -> int:
    """Count the parameters of a classifier."""
    prefix = f"{model.base_model_prefix}."
    named = model.named_parameters()
    return sum(p.numel() for name, p in named if not name.startswith(prefix))
