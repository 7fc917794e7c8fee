# SPDX-License-Identifier: Apache-2.0
"""Where a part's tensors come from: a model in memory, or safetensors on disk."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path

from safetensors import safe_open
from torch import Tensor, nn
from transformers.utils.hub import cached_file

from atlas_flwr.errors import PlanError

__all__ = ["CheckpointTensors", "ModelTensors", "TensorSource"]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class TensorSource(ABC):
    """Tensors by their name in the whole model; each is read once and shared."""

    def __init__(self) -> None:
        self._read: dict[str, Tensor] = {}

    @property
    @abstractmethod
    def names(self) -> Collection[str]:
        """Names of all tensors that there are."""

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """Read one tensor."""

    def get(self, name: str) -> Tensor:
        """Return one tensor, the same object every time."""
        if name not in self._read:
            self._read[name] = self.read(name)
        return self._read[name]


class ModelTensors(TensorSource):
    """The tensors of a model in memory, shared, not copied."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._tensors = {name: p.detach() for name, p in model.state_dict().items()}

    @property
    def names(self) -> Collection[str]:
        """Names of all tensors that there are."""
        return self._tensors.keys()

    def read(self, name: str) -> Tensor:
        """Return a tensor that shares the model's storage."""
        return self._tensors[name]


class CheckpointTensors(TensorSource):
    """The tensors of a folder, or of a model on the hub, read one by one.

    Tensors are memory-mapped: what a part does not touch stays on the disk.

    Parameters
    ----------
    path : str or Path
        A local folder or a hub name.
    prefix : str
        Name of the base model in the whole, e.g. ``"bert"``: checkpoints of a bare base
        model lack it.

    Raises
    ------
    PlanError
        If there are no safetensors.
    """

    def __init__(self, path: str | Path, prefix: str) -> None:
        super().__init__()
        self._files = _shards(str(path))
        bare = not any(name.startswith(f"{prefix}.") for name in self._files)
        self._stored = {(f"{prefix}.{n}" if bare else n): n for n in self._files}

    @property
    def names(self) -> Collection[str]:
        """Names of all tensors that there are."""
        return self._stored.keys()

    def read(self, name: str) -> Tensor:
        """Map one tensor from its shard."""
        stored = self._stored[name]
        with safe_open(self._files[stored], framework="pt") as shard:
            tensor = shard.get_tensor(stored)
        assert isinstance(tensor, Tensor)
        return tensor


def _shards(path: str) -> dict[str, str]:
    """Map each tensor's name to the file that holds it."""
    index = cached_file(path, INDEX, _raise_exceptions_for_missing_entries=False)
    if index is not None:
        weights = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
        shards = set(weights.values())
        files = {name: cached_file(path, name) for name in shards}
        return {name: str(files[shard]) for name, shard in weights.items()}
    single = cached_file(path, SINGLE, _raise_exceptions_for_missing_entries=False)
    if single is None:
        raise PlanError(
            f"{path} has no {SINGLE}; save the model there with save_pretrained(), "
            "which writes safetensors"
        )
    with safe_open(single, framework="pt") as shard:
        return dict.fromkeys(shard.keys(), single)
