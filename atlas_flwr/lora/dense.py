# SPDX-License-Identifier: Apache-2.0
"""Parameters that are trained in full beside adapters: a new classifier's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["widen"]


def widen(module: nn.Module, names: Iterable[str]) -> None:
    """Bring the layers that own these parameters to float32, and what enters them.

    In half precision a step of AdamW is lost wherever it is less than 1/256 (bfloat16)
    of the value. What comes out stays in float32. Layers of 4 bytes and more a number
    are left as they are.

    Parameters
    ----------
    module : nn.Module
        Changed in place; its parameters stay the same objects.
    names : Iterable[str]
        Parameters' names in ``module``.
    """
    for owner in sorted({name.rpartition(".")[0] for name in names}):
        layer = module.get_submodule(owner)
        if any(p.dtype.itemsize < 4 for p in layer.parameters(recurse=False)):
            layer.to(torch.float32)
            layer.register_forward_pre_hook(_entering)


def _entering(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.float() if isinstance(a, Tensor) else a for a in args)
