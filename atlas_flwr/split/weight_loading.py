# SPDX-License-Identifier: Apache-2.0
"""A part's hollow parameters are given their tensors, and no others."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from atlas_flwr.errors import PlanError
from atlas_flwr.seeds import derive_seed
from atlas_flwr.split.part import part_info
from atlas_flwr.split.tensors import TensorSource

__all__ = ["Filling"]


class Filling:
    """The tensors of a part, which come and go.

    Parameters
    ----------
    part : PreTrainedModel
        A part without memory for its parameters. Its modules may be wrapped later.
    source : TensorSource
        The tensors of the whole model.
    whole : PreTrainedModel
        The whole model, without memory for its parameters.
    seed : int
        Initialises a classifier that the source lacks.
    """

    def __init__(
        self,
        part: PreTrainedModel,
        source: TensorSource,
        whole: PreTrainedModel,
        seed: int,
    ) -> None:
        self.part, self.source, self.whole, self.seed = part, source, whole, seed
        info = part_info(part)
        self._hollow = {
            info.global_name(local): (*_owner(part, local), parameter)
            for local, parameter in part.named_parameters(remove_duplicate=False)
        }
        self._buffers = {
            info.global_name(local): _owner(part, local)
            for local, _ in part.named_buffers()
        }

    def fill(self) -> None:
        """Give every parameter and stored buffer its tensor.

        Raises
        ------
        PlanError
            If the source lacks a tensor that is not a classifier's.
        """
        source, tied = self.source, _tied_names(self.whole)
        for name, (owner, last, hollow) in self._hollow.items():
            tensor = _find(name, tied.get(name), hollow, source, self.whole)
            if tensor is None:
                made = _initial(name, hollow, self.whole, self.seed)
                tensor = source.placed(made)
            learns = hollow.requires_grad and tensor.is_floating_point()
            owner._parameters[last] = nn.Parameter(tensor, requires_grad=learns)
        device = next(self.part.parameters()).device
        for name, (owner, last) in self._buffers.items():
            buffer = owner._buffers[last]
            assert buffer is not None
            # Buffers (rotary frequencies) keep their dtype, whatever the weights' is.
            value = source.read(name) if name in source.names else buffer
            owner._buffers[last] = value.to(device=device)

    def empty(self) -> None:
        """Let go of the parameters' tensors."""
        for owner, last, hollow in self._hollow.values():
            owner._parameters[last] = hollow
        self.source.forget()


def _find(
    name: str,
    twin: str | None,
    parameter: nn.Parameter,
    source: TensorSource,
    whole: PreTrainedModel,
) -> Tensor | None:
    """Return a stored tensor; ``None`` for a classifier that has to be made."""
    known = next((n for n in (name, twin) if n in source.names), None)
    tensor = None if known is None else source.get(known)
    if tensor is not None and tensor.shape == parameter.shape:
        return tensor
    if _may_be_new(name, whole):
        return None
    if tensor is None:
        raise PlanError(
            f"the checkpoint has no tensor {name!r}; if it stores weights under other "
            "names, load it with from_pretrained() and cut the model in memory"
        )
    raise PlanError(
        f"tensor {name!r} of the checkpoint has shape {tuple(tensor.shape)}; the "
        f"configuration says {tuple(parameter.shape)}"
    )


def _tied_names(whole: PreTrainedModel) -> dict[str, str]:
    """Map each parameter to the one that it shares its tensor with."""
    pairs = whole.all_tied_weights_keys
    return {**{source: target for target, source in pairs.items()}, **pairs}


def _may_be_new(name: str, whole: PreTrainedModel) -> bool:
    """Tell whether a parameter belongs to a classifier that may have to be made."""
    prefix = f"{whole.base_model_prefix}."
    if whole.get_output_embeddings() is not None:
        return False
    return not name.startswith(prefix) or name.startswith(f"{prefix}pooler.")


def _initial(
    name: str, parameter: nn.Parameter, whole: PreTrainedModel, seed: int
) -> Tensor:
    if parameter.dim() == 1:
        return torch.full(parameter.shape, float(name.endswith("weight")))
    std = getattr(whole.config, "initializer_range", 0.02)
    generator = torch.Generator().manual_seed(derive_seed(seed, "new", name))
    return std * torch.randn(parameter.shape, generator=generator)


def _owner(part: nn.Module, name: str) -> tuple[nn.Module, str]:
    owner, _, last = name.rpartition(".")
    return part.get_submodule(owner), last
