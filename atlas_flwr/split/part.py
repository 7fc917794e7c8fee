# SPDX-License-Identifier: Apache-2.0
"""What a part of a split model knows of the whole: its side, blocks and names."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig

from atlas_flwr.errors import PlanError
from atlas_flwr.types import Side

__all__ = ["PartInfo", "mark_part", "part_info", "whole_config"]

_INFO = "_atlas_part"
_CONFIG = "_atlas_whole_config"


@dataclass(frozen=True)
class PartInfo:
    """A part's place in the whole model.

    Attributes
    ----------
    side : Side
        Head, trunk or tail.
    prefix : str
        What a name in the part lacks of the name in the whole model: ``"model."`` for
        a head that is the base model alone, else empty.
    blocks : str
        Name of the list of blocks in the whole model, e.g. ``"model.layers"``.
    start, stop : int
        The part's blocks, counted in the whole model.
    num_layers : int
        Blocks of the whole model.
    """

    side: Side
    prefix: str
    blocks: str
    start: int
    stop: int
    num_layers: int

    def global_name(self, local: str) -> str:
        """Name in the whole model of a module or parameter of the part."""
        return self._moved(self.prefix + local, self.start)

    def local_name(self, name: str) -> str | None:
        """Name in the part of one of the whole model; ``None`` if it is elsewhere."""
        block = self.block_of(name)
        if block is not None and not self.start <= block < self.stop:
            return None
        if not name.startswith(self.prefix):
            return None
        return self._moved(name, -self.start).removeprefix(self.prefix)

    def block_of(self, name: str) -> int | None:
        """Block that a name of the whole model belongs to, counted in the whole."""
        match = re.match(rf"{re.escape(self.blocks)}\.(\d+)(?:\.|$)", name)
        return int(match[1]) if match else None

    def _moved(self, name: str, by: int) -> str:
        block = self.block_of(name)
        if block is None:
            return name
        rest = name[len(f"{self.blocks}.{block}") :]
        return f"{self.blocks}.{block + by}{rest}"


def mark_part(module: nn.Module, info: PartInfo, config: PreTrainedConfig) -> None:
    """Mark a module as a part of a model with this configuration."""
    object.__setattr__(module, _INFO, info)
    object.__setattr__(module, _CONFIG, config)


def part_info(module: nn.Module) -> PartInfo:
    """Return a part's place in the whole model.

    Raises
    ------
    PlanError
        If the module was not made by :func:`atlas_flwr.split.partition`.
    """
    info = getattr(module, _INFO, None)
    if not isinstance(info, PartInfo):
        raise PlanError(
            f"{type(module).__name__} is not a part of a split model; make parts with "
            "atlas_flwr.split.partition(model_or_path, plan)"
        )
    return info


def whole_config(part: nn.Module) -> PreTrainedConfig:
    """Return the configuration of the whole model that a part was cut from."""
    part_info(part)
    config = getattr(part, _CONFIG)
    assert isinstance(config, PreTrainedConfig)
    return config
