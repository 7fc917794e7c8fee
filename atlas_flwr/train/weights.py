# SPDX-License-Identifier: Apache-2.0
"""A run's model as clients and server load it: parts, the whole, its shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)
from transformers.utils import logging as transformers_logging

from atlas_flwr.budget import Architecture
from atlas_flwr.data import ModelSource, load_task, resolve_model, tokenizer_of
from atlas_flwr.errors import PlanError
from atlas_flwr.lora import ia3_shapes, linear_names
from atlas_flwr.seeds import derive_seed
from atlas_flwr.split import Parts, SplitPlan, load_parts, part_info
from atlas_flwr.split.anatomy import blocks_name, bypass_embeddings, bypass_norm
from atlas_flwr.split.cut import skeleton
from atlas_flwr.split.tensors import CheckpointTensors
from atlas_flwr.train.device import chosen_device
from atlas_flwr.train.footprint import trace_footprint
from atlas_flwr.trunk import TrunkSource
from atlas_flwr.types import Side

__all__ = ["ModelFiles", "ModelKeys"]


@contextmanager
def _without_bars() -> Iterator[None]:
    """Let Transformers draw no bar of loaded weights, which every worker would."""
    drawn = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            transformers_logging.enable_progress_bar()


class ModelKeys(Protocol):
    """What of a run's configuration says which model it trains."""

    @property
    def model(self) -> str:
        """Short name, folder, or hub name."""
        ...

    @property
    def task_list(self) -> tuple[str, ...]:
        """The run's tasks."""
        ...

    @property
    def dtype(self) -> str:
        """Of the frozen weights."""
        ...

    @property
    def device(self) -> str:
        """Where clients compute."""
        ...

    @property
    def seed(self) -> int:
        """Of the run."""
        ...


@dataclass(frozen=True)
class ModelFiles:
    """Where a run's model is, and how it is loaded.

    Attributes
    ----------
    source : ModelSource
        The model.
    classes : int
        Outputs of a classifier, the most that a task of the run needs, so that all
        clients have one head; 0 for causal models.
    dtype : torch.dtype
        Of the frozen weights.
    device : str
        Where to compute.
    seed : int
        Initialises a new classifier.
    """

    source: ModelSource
    classes: int
    dtype: torch.dtype
    device: str
    seed: int

    @classmethod
    def of(cls, config: ModelKeys, device: str | None = None) -> ModelFiles:
        """Resolve a run's model.

        Parameters
        ----------
        config : ModelKeys
            The run's configuration.
        device : str, optional
            Where to compute; by default where clients do.

        Raises
        ------
        ConfigError
            If that is a GPU, and this process sees none.
        """
        source = resolve_model(config.model, progress=False)
        classes = 0
        if source.kind == "classifier":
            classes = max(len(load_task(name).labels) for name in config.task_list)
        dtype = getattr(torch, config.dtype)
        where = chosen_device(device or config.device)
        return cls(source, classes, dtype, where, config.seed)

    @property
    def overrides(self) -> Mapping[str, Any]:
        """Changes to the model's configuration."""
        return {"num_labels": self.classes} if self.classes else {}

    @property
    def auto_class(self) -> Any:
        """The Auto class that loads the whole model."""
        causal = self.source.kind == "causal"
        return AutoModelForCausalLM if causal else AutoModelForSequenceClassification

    def parts(
        self, plan: SplitPlan, sides: tuple[Side, ...] = (Side.HEAD, Side.TAIL)
    ) -> Parts:
        """Load some parts; the others' tensors are never read."""
        return load_parts(
            self.source.path,
            plan,
            sides=sides,
            auto_class=self.auto_class,
            dtype=self.dtype,
            device=self.device,
            config_overrides=self.overrides,
            seed=self.seed,
        )

    def trunk(self, plan: SplitPlan, **more: Any) -> TrunkSource:
        """Say what the trunk of a plan is loaded from, and served with."""
        return TrunkSource(
            path=self.source.path,
            plan=plan,
            classes=self.classes,
            dtype=str(self.dtype).removeprefix("torch."),
            device=self.device,
            seed=self.seed,
            **more,
        )

    def whole(self) -> Any:
        """Load the whole model.

        Raises
        ------
        PlanError
            If a tensor that is no classifier's has another size than the model's.
        """
        with _without_bars():
            model, told = self.auto_class.from_pretrained(
                self.source.path,
                dtype=self.dtype,
                output_loading_info=True,
                # A stored classifier of other classes is made anew, as in parts.
                ignore_mismatched_sizes=bool(self.classes),
                **self.overrides,
            )
        made = self.dense()
        if unlike := {name for name, *_ in told["mismatched_keys"]}.difference(made):
            raise PlanError(
                f"{self.source.path}: {', '.join(sorted(unlike))}: another shape than "
                "the configuration says; save both again with save_pretrained()"
            )
        for name, value in made.items():
            owner, _, last = name.rpartition(".")
            parameter = getattr(model.get_submodule(owner), last)
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(value))
        return model.to(self.device).eval()

    def outline(self) -> Outline:
        """Build the model without memory for its weights, and read its shapes."""
        return Outline.of(self.source.path, self.auto_class, self.overrides)

    def prompt(self, count: int) -> NDArray[np.float32]:
        """Embeddings of tokens drawn from the vocabulary: a prompt's initial values."""
        return self._embeddings(self._drawn_tokens(count, "prompt"))

    def summary(self, count: int) -> NDArray[np.float32]:
        """Initial values of ``count`` summary positions and the constant first one.

        The first is the embedding of the token that begins texts, where there is one;
        the others are of tokens drawn from the vocabulary.
        """
        tokenizer = tokenizer_of(self.source)
        begins = (tokenizer.cls_token_id, tokenizer.bos_token_id)
        first = next((token for token in begins if token is not None), 0)
        drawn = self._drawn_tokens(count, "summary")
        return self._embeddings(torch.cat([torch.tensor([first]), drawn]))

    def _drawn_tokens(self, count: int, purpose: str) -> torch.Tensor:
        seed = derive_seed(self.seed, purpose)
        generator = torch.Generator().manual_seed(seed)
        rows = self.outline().model.get_input_embeddings().weight.shape[0]
        return torch.randint(rows, (count,), generator=generator)

    def _embeddings(self, ids: torch.Tensor) -> NDArray[np.float32]:
        table = self.table()
        rows = table[ids.to(table.device)]
        return rows.float().cpu().numpy()

    def table(self) -> torch.Tensor:
        """Return all tokens' embeddings, (V, E), mapped from disk as far as can be."""
        head = self.parts(SplitPlan(1, 1), sides=(Side.HEAD,)).head
        weight: torch.Tensor = head.get_input_embeddings().weight
        return weight.detach()

    def dense(self) -> dict[str, NDArray[np.float32]]:
        """Initial values of what is trained in full: a classifier; else nothing.

        A pooler that the checkpoint lacks is new, too, and no adapter could stand for
        it.
        """
        if not self.classes:
            return {}
        tail = self.parts(SplitPlan(1, 1), sides=(Side.TAIL,)).tail
        stored = CheckpointTensors(self.source.path, self.outline().model).names
        prefix = f"{tail.base_model_prefix}."
        named = {
            part_info(tail).global_name(name): value
            for name, value in tail.named_parameters()
        }
        return {
            name: value.detach().float().cpu().numpy()
            for name, value in named.items()
            if not name.startswith(prefix) or name not in stored
        }


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
