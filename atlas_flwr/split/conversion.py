# SPDX-License-Identifier: Apache-2.0
"""Which stored tensors make up each of a model's, by Transformers' own conversions.

Checkpoints call tensors otherwise than models do today (other names, another prefix),
and some store in several what a model has as one: the weights of each expert, where
Mixtral and Qwen3-MoE have one tensor of all experts of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

__all__ = ["Origin", "origins"]

Read = Callable[[Sequence[str]], list[Tensor]]


@dataclass(frozen=True)
class Origin:
    """Where one tensor of a model comes from.

    Attributes
    ----------
    stored : tuple[str, ...]
        Names in the checkpoint, in the order in which a conversion takes them.
    patterns : tuple[str, ...]
        As what the conversion takes each; none where it is taken as it is.
    converter : WeightConverter, optional
        Makes a model's tensors of them.
    first : str
        The model's tensor after which the conversion is called.
    """

    stored: tuple[str, ...]
    patterns: tuple[str, ...] = ()
    converter: Any = None
    first: str = ""

    def made(self, name: str, whole: PreTrainedModel, read: Read) -> Tensor:
        """Make the tensor.

        Parameters
        ----------
        name : str
            Of the model's tensor: a conversion may make several.
        whole : PreTrainedModel
            The whole model, without memory for its parameters.
        read : Callable
            Reads stored tensors by their names.
        """
        tensors = read(self.stored)
        if self.converter is None:
            return tensors[0]
        converter = deepcopy(self.converter)
        parts = zip(self.patterns, self.stored, tensors, strict=True)
        for pattern, stored, tensor in parts:
            converter.add_tensor(self.first, stored, pattern, tensor)
        made = converter.convert(self.first, model=whole, config=whole.config)[name]
        tensor = made[0] if isinstance(made, list) else made
        assert isinstance(tensor, Tensor)
        return tensor


def origins(stored: Collection[str], whole: PreTrainedModel) -> dict[str, Origin]:
    """Map names in a model to where their tensors come from; leave out what has none.

    Parameters
    ----------
    stored : Collection[str]
        Names in the checkpoint.
    whole : PreTrainedModel
        Says what tensors are called today.
    """
    known = whole.state_dict()
    mapping = get_model_conversion_mapping(whole)
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    by_pattern = {p: each for each in converters for p in each.source_patterns}
    prefix = whole.base_model_prefix
    found: dict[str, Origin] = {}
    gathered: dict[str, list[tuple[str, str]]] = {}
    for old in sorted(
        stored, key=dot_natural_key
    ):  # as Transformers does: experts' order
        name, pattern = rename_source_key(old, renamings, converters, prefix, known)
        if name not in known and old in known:
            name, pattern = rename_source_key(old, [], [], prefix, known)
        if name in known and pattern is None:
            found[name] = Origin((old,))
        elif name in known and pattern is not None:
            gathered.setdefault(name, []).append((pattern, old))
    for first, parts in gathered.items():
        patterns, names = zip(*parts, strict=True)
        converter = by_pattern[patterns[0]]
        origin = Origin(names, patterns, converter, first)
        for target in converter.target_patterns:
            name = first.replace(converter.target_patterns[0], target)
            found.update({name: origin} if name in known else {})
    return found
