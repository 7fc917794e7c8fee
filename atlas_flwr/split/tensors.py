# SPDX-License-Identifier: Apache-2.0
"""Where a part's tensors come from: a model in memory, or safetensors on disk."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from atlas_flwr.errors import PlanError
from atlas_flwr.split.conversion import origins

__all__ = ["CheckpointTensors", "ModelTensors", "TensorSource"]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class TensorSource(ABC):
    """Tensors by their name in the whole model; each is read once and shared.

    Parameters
    ----------
    dtype : torch.dtype, optional
        Floating tensors are given in it. Default: as stored.
    device : torch.device or str, optional
        Where tensors are given. Default: where they are.
    """

    def __init__(
        self,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self._dtype, self._device = dtype, device
        self._given: dict[str, Tensor] = {}

    @property
    @abstractmethod
    def names(self) -> Collection[str]:
        """Names of all tensors that there are."""

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """Read one tensor."""

    def get(self, name: str) -> Tensor:
        """Return one tensor, the same object every time: tied weights stay one."""
        if name not in self._given:
            self._given[name] = self.placed(self.read(name))
        return self._given[name]

    def forget(self) -> None:
        """Let go of the tensors that were given; they are read anew when asked for."""
        self._given.clear()

    def placed(self, tensor: Tensor) -> Tensor:
        """Return a tensor on the device and, if it is floating, in the dtype."""
        dtype = self._dtype if tensor.is_floating_point() else None
        return tensor.to(device=self._device, dtype=dtype)


class ModelTensors(TensorSource):
    """The tensors of a model in memory, shared, not copied."""

    def __init__(
        self,
        model: PreTrainedModel,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(dtype, device)
        # Buffers that are not stored may have been cast with the model.
        found: dict[str, Tensor] = {**dict(model.named_buffers()), **model.state_dict()}
        self._tensors = {name: tensor.detach() for name, tensor in found.items()}

    @property
    def names(self) -> Collection[str]:
        """Names of all tensors that there are."""
        return self._tensors.keys()

    def read(self, name: str) -> Tensor:
        """Return a tensor that shares the model's storage."""
        return self._tensors[name]


class CheckpointTensors(TensorSource):
    """The tensors of a folder, or of a model on the hub, read one by one.

    Shards are fetched when one of their tensors is read, and tensors are
    memory-mapped: what a part does not touch stays on the hub and on the disk.

    Parameters
    ----------
    path : str or Path
        A local folder or a hub name.
    whole : PreTrainedModel
        Says what tensors are called: checkpoints of a bare base model lack its prefix,
        and old ones use names, or a division, that Transformers maps to today's.

    Raises
    ------
    PlanError
        If there are no safetensors.
    """

    def __init__(
        self,
        path: str | Path,
        whole: PreTrainedModel,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(dtype, device)
        self._path, self._whole = str(path), whole
        self._shards = _shards(self._path)
        self._origins = origins(self._shards, whole)

    @property
    def names(self) -> Collection[str]:
        """Names of all tensors that there are."""
        return self._origins.keys()

    def read(self, name: str) -> Tensor:
        """Map one tensor from its shard, or make it of those that it is stored in."""
        return self._origins[name].made(name, self._whole, self._mapped)

    def _mapped(self, stored: Sequence[str]) -> list[Tensor]:
        """Map stored tensors; each shard is opened once."""
        found: dict[str, Tensor] = {}
        for file in sorted({self._shards[name] for name in stored}):
            place = cached_file(self._path, file)
            with safe_open(place, framework="pt") as shard:
                for name in stored:
                    if self._shards[name] == file:
                        found[name] = shard.get_tensor(name)
        return [found[name] for name in stored]


def _shards(path: str) -> dict[str, str]:
    """Map each tensor's name to the name of the file that holds it."""
    index = cached_file(path, INDEX, _raise_exceptions_for_missing_entries=False)
    if index is not None:
        weights = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(shard) for name, shard in weights.items()}
    single = cached_file(path, SINGLE, _raise_exceptions_for_missing_entries=False)
    if single is None:
        raise PlanError(
            f"{path} has no {SINGLE}; save the model there with save_pretrained(), "
            "which writes safetensors"
        )
    with safe_open(single, framework="pt") as shard:
        return dict.fromkeys(shard.keys(), SINGLE)
