# SPDX-License-Identifier: Apache-2.0
"""Give a part's hollow parameters their tensors, and no others."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from atlas_flwr.errors import PlanError
from atlas_flwr.seeds import derive_seed
from atlas_flwr.split.part import part_info
from atlas_flwr.split.tensors import TensorSource

__all__ = ["fill"]


def fill(
    part: PreTrainedModel, source: TensorSource, whole: PreTrainedModel, seed: int
) -> None:
    """Give every parameter and stored buffer of a part its tensor.

    Parameters
    ----------
    part : PreTrainedModel
        A part without memory for its parameters.
    source : TensorSource
        The tensors of the whole model.
    whole : PreTrainedModel
        The whole model, without memory for its parameters.
    seed : int
        Initialises a classifier that the source lacks.

    Raises
    ------
    PlanError
        If the source lacks a tensor that is not a classifier's.
    """
    info = part_info(part)
    tied = _tied_names(whole)
    for local, parameter in list(part.named_parameters(remove_duplicate=False)):
        name = info.global_name(local)
        tensor = _find(name, tied.get(name), parameter, source, whole)
        if tensor is None:
            tensor = source.placed(_initial(name, parameter, whole, seed))
        _set_parameter(part, local, tensor)
    device = next(part.parameters()).device
    for local, buffer in list(part.named_buffers()):
        name = info.global_name(local)
        # Buffers (rotary frequencies) keep their dtype, whatever the weights' is.
        value = source.read(name) if name in source.names else buffer
        _set_buffer(part, local, value.to(device=device))


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


def _set_parameter(module: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, last = name.rpartition(".")
    value = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
    module.get_submodule(owner)._parameters[last] = value


def _set_buffer(module: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, last = name.rpartition(".")
    module.get_submodule(owner)._buffers[last] = tensor
