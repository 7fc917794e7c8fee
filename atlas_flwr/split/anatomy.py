# SPDX-License-Identifier: Apache-2.0
"""Where a Hugging Face model keeps its blocks, embeddings and final norm.

Nothing here knows a model family: parts are found by structure. The *owner* is the
module that holds the list of blocks (``model``, ``transformer``, ``bert.encoder``...);
everything between the base model and the owner's blocks is either embeddings, which a
part that does not come first replaces, or a final norm, which a part that does not come
last replaces.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from atlas_flwr.errors import PlanError

__all__ = [
    "around_blocks",
    "blocks_name",
    "bypass_embeddings",
    "bypass_norm",
    "slice_blocks",
]

_CAN = (
    "a model that can be cut is a decoder or an encoder of text, such as Llama, Qwen, "
    "GPT-2, BERT"
)


class PassedThrough(nn.Module):
    """Stands for an embeddings module: returns ``inputs_embeds`` unchanged.

    Parameters
    ----------
    table : str
        Where the module keeps its table, which ``get_input_embeddings`` still finds.
    """

    def __init__(self, table: str) -> None:
        super().__init__()
        self.set_submodule(table, nn.Identity())

    def forward(
        self, *args: Any, inputs_embeds: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Return the hidden states that came from the part before."""
        if inputs_embeds is not None:
            return inputs_embeds
        floating = [a for a in args if isinstance(a, Tensor) and a.is_floating_point()]
        return floating[0]


class NoPosition(nn.Module):
    """Stands for learned absolute positions: adds nothing."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return a zero that broadcasts."""
        return torch.zeros(())


def blocks_name(model: PreTrainedModel) -> str:
    """Find the list of blocks; return its name in ``model``.

    Raises
    ------
    PlanError
        If there is no such list, or more than one (encoder-decoder models), or the
        model reads something else than tokens.
    """
    if model.main_input_name != "input_ids":  # images, speech; some name several
        raise PlanError(
            f"{type(model).__name__} reads {model.main_input_name}, no text; {_CAN}"
        )
    if model.config.get_text_config() is not model.config:
        raise PlanError(
            f"{type(model).__name__} is more than a language model; cut the language "
            "model in it alone"
        )
    try:
        _base(model).get_input_embeddings()
    except NotImplementedError:
        raise PlanError(
            f"{type(model).__name__} is a part of a larger model, and does not say "
            f"where its embeddings are; {_CAN}"
        ) from None
    count = getattr(model.config, "num_hidden_layers", None)
    if count is None:
        raise PlanError(
            f"{type(model).__name__} does not say how many blocks it has "
            f"(num_hidden_layers); {_CAN}"
        )
    lists = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    outer = [n for n in lists if not any(n.startswith(f"{o}.") for o in lists)]
    if model.config.is_encoder_decoder or len(outer) != 1:
        raise PlanError(
            f"{type(model).__name__} has {len(outer)} lists of {count} blocks "
            f"({', '.join(outer) or 'none'}); a model that can be cut has one, and is "
            "a decoder or an encoder"
        )
    name: str = outer[0]
    return name


def slice_blocks(model: PreTrainedModel, blocks: str, start: int, stop: int) -> None:
    """Keep the blocks [start, stop) and make the configuration say so.

    Lists in the configuration with an entry a block (``layer_types``) are cut alike.
    """
    owner, _, last = blocks.rpartition(".")
    holder = model.get_submodule(owner)
    kept = list(getattr(holder, last))
    count = len(kept)
    setattr(holder, last, nn.ModuleList(kept[start:stop]))
    config: Any = copy.deepcopy(model.config)
    for name, value in list(vars(config).items()):
        if name.endswith("_token_id") or name == "architectures":
            continue
        if isinstance(value, list | tuple) and len(value) == count:
            setattr(config, name, list(value[start:stop]))
    config.num_hidden_layers = stop - start
    for module in _path(model, owner):
        if isinstance(module, PreTrainedModel):
            module.config = config


def bypass_embeddings(model: PreTrainedModel, blocks: str) -> None:
    """Replace what comes before the first block, so that hidden states pass through."""
    table = _base(model).get_input_embeddings()
    beside = list(around_blocks(model, blocks))
    homes = [parent for parent, _, child in beside if child is table]
    for parent, name, child in beside:
        inside = [n for n, module in child.named_modules() if module is table]
        if isinstance(child, nn.Embedding) and child is not table:
            if parent in homes:  # others are relative positions, used in the blocks
                setattr(parent, name, NoPosition())
        elif inside and child is not table:
            setattr(parent, name, PassedThrough(inside[0]))
        elif inside or _is_entry(name, child, table):
            setattr(parent, name, nn.Identity())


def bypass_norm(model: PreTrainedModel, blocks: str) -> None:
    """Replace what comes after the last block: final norm, projection and pooler."""
    table = _base(model).get_input_embeddings()
    for parent, name, child in around_blocks(model, blocks):
        if name == "pooler":
            setattr(parent, name, None)
        elif _is_exit(name, child, table):
            setattr(parent, name, nn.Identity())


def around_blocks(
    model: PreTrainedModel, blocks: str
) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Yield (parent, name, child) beside the way from the base model to the blocks."""
    base = _base(model)
    owner, _, _ = blocks.rpartition(".")
    for parent in _path(model, owner):
        if parent is model and parent is not base:
            continue  # the head of the whole model (lm_head, classifier) is beyond
        for name, child in list(parent.named_children()):
            on_the_way = any(child is module for module in _path(model, blocks))
            if not on_the_way:
                yield parent, name, child


def _path(model: nn.Module, name: str) -> list[nn.Module]:
    modules = [model]
    for step in filter(None, name.split(".")):
        modules.append(getattr(modules[-1], step))
    return modules


def _base(model: PreTrainedModel) -> PreTrainedModel:
    base = model.base_model
    assert isinstance(base, PreTrainedModel)
    return base


def _is_entry(name: str, child: nn.Module, table: Any) -> bool:
    if isinstance(child, nn.Linear):
        return _widens(child, table)
    return isinstance(child, nn.Dropout) or (_is_norm(child) and "emb" in name)


def _is_exit(name: str, child: nn.Module, table: Any) -> bool:
    if isinstance(child, nn.Linear):
        return not _widens(child, table)
    return _is_norm(child) and "emb" not in name


def _widens(linear: nn.Linear, table: Any) -> bool:
    """Tell whether a projection leads from the embeddings to the blocks."""
    width = getattr(table, "embedding_dim", None)
    return linear.in_features == width and linear.out_features != width


def _is_norm(module: nn.Module) -> bool:
    parameters = list(module.parameters(recurse=False))
    return "norm" in type(module).__name__.lower() and all(
        p.dim() == 1 for p in parameters
    )
