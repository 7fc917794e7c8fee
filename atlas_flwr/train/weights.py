# SPDX-License-Identifier: Apache-2.0
"""A run's model as clients and server load it: parts, the whole, its outline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from atlas_flwr.data import ModelSource, load_task, resolve_model, tokenizer_of
from atlas_flwr.errors import PlanError
from atlas_flwr.seeds import derive_seed
from atlas_flwr.split import Parts, SplitPlan, load_parts, part_info
from atlas_flwr.split.tensors import CheckpointTensors
from atlas_flwr.train.device import chosen_device
from atlas_flwr.train.outline import Outline
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
