# SPDX-License-Identifier: Apache-2.0
"""Parameters that lie one behind the other in memory, and AdamW on all of them at once.

A session has hundreds of small matrices. In one piece they are stepped, summed and
stacked with those of other sessions by a single operation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from atlas_flwr.trunk.engine.steps import apart
from atlas_flwr.types import OptimizerSpec

__all__ = ["ParameterBuffer", "step_together"]


@dataclass
class _Piece:
    """A range of a buffer whose parameters have been stepped equally often."""

    value: Tensor
    mean: Tensor
    square: Tensor
    steps: Tensor


class ParameterBuffer:
    """One tensor that holds the values of many parameters.

    Parameters
    ----------
    values : Sequence[Tensor]
        What they begin with, of one dtype on one device. A single parameter stays where
        it is.

    Attributes
    ----------
    values : Tensor
        Shape (P,).
    parameters : Sequence[Tensor]
        Leaves, whose memory is that of :attr:`values`.
    """

    def __init__(self, values: Sequence[Tensor]) -> None:
        sizes = [value.numel() for value in values]
        self._ends = [sum(sizes[:k]) for k in range(len(sizes) + 1)]
        if len(values) == 1:
            self.values = values[0].detach().view(-1)
            self.parameters = list(values)
        else:
            self.values = torch.cat([value.detach().flatten() for value in values])
            self.parameters = [
                self.values[start:end].view(value.shape).detach().requires_grad_()
                for (start, end), value in zip(self._ranges, values, strict=True)
            ]
        self._sum: Tensor | None = None
        self._touched = [False] * len(values)
        self._pieces: list[_Piece] = []

    @property
    def _ranges(self) -> Iterable[tuple[int, int]]:
        return pairwise(self._ends)

    @property
    def nbytes(self) -> int:
        """What values and AdamW's moments take, once a step has been taken."""
        return 3 * self.values.nbytes

    def move(self, device: torch.device) -> None:
        """Bring it to a device; :attr:`parameters` are others then, of equal values."""
        shapes = [parameter.shape for parameter in self.parameters]
        self.values = self.values.detach().to(device)
        self.parameters = [
            self.values[start:end].view(shape).detach().requires_grad_()
            for (start, end), shape in zip(self._ranges, shapes, strict=True)
        ]
        if self._sum is not None:
            self._sum = self._sum.to(device)
        whole = len(self._pieces) < len(self.parameters)
        places = [(0, self._ends[-1])] if whole else self._ranges
        for piece, (start, end) in zip(self._pieces, places, strict=False):
            piece.value = self.values[start:end]
            piece.mean, piece.square, piece.steps = (
                tensor.to(device) for tensor in (piece.mean, piece.square, piece.steps)
            )

    def add(self, grads: Sequence[Tensor | None]) -> None:
        """Add gradients of the parameters; ``None`` where one had no part."""
        self._touched = [
            before or grad is not None
            for before, grad in zip(self._touched, grads, strict=True)
        ]
        pairs = zip(grads, self.parameters, strict=True)
        whole = [torch.zeros_like(p) if g is None else g for g, p in pairs]
        self._sum_up(torch.cat([g.flatten() for g in whole]))

    def add_whole(self, grads: Tensor) -> None:
        """Add gradients of all parameters, shape (P,), as they lie in the buffer."""
        self._touched = [True] * len(self._touched)
        self._sum_up(grads)

    def wait(self) -> None:
        """Keep what was added until more is, without the rows of others beside it."""
        self._sum = apart(self._sum)

    def divide(self, by: float) -> None:
        """Divide what was added up."""
        if self._sum is not None:
            self._sum = self._sum / by

    def _sum_up(self, grads: Tensor) -> None:
        self._sum = grads if self._sum is None else self._sum + grads

    def _due(self) -> list[tuple[_Piece, Tensor]]:
        """Return what a step is taken on, with its gradients, and forget these."""
        if not any(self._touched):
            self._sum = None
            return []
        is_whole = all(self._touched)
        if not self._pieces:
            self._pieces = [_fresh(self.values)]
        if not is_whole and len(self._pieces) < len(self.parameters):
            self._split()
        grads, touched = self._sum, self._touched
        assert grads is not None
        self._sum, self._touched = None, [False] * len(touched)
        if len(self._pieces) == 1:
            return [(self._pieces[0], grads)]
        ranges = zip(self._pieces, self._ranges, touched, strict=True)
        return [(piece, grads[a:b]) for piece, (a, b), used in ranges if used]

    def _split(self) -> None:
        """Let each parameter count its own steps, as torch's AdamW does."""
        (whole,) = self._pieces
        self._pieces = [
            _Piece(
                whole.value[a:b],
                whole.mean[a:b],
                whole.square[a:b],
                whole.steps.clone(),
            )
            for a, b in self._ranges
        ]


def step_together(
    steps: Iterable[tuple[OptimizerSpec, Iterable[ParameterBuffer]]],
) -> None:
    """Let AdamW step buffers on what was added to them, all of one kind at once.

    Parameters
    ----------
    steps : Iterable[tuple[OptimizerSpec, Iterable[ParameterBuffer]]]
        How, and what. A buffer to which nothing was added stays as it is.
    """
    alike: dict[tuple[OptimizerSpec, torch.dtype], list[tuple[_Piece, Tensor]]] = {}
    for spec, buffers in steps:
        for buffer in buffers:
            key = spec, buffer.values.dtype
            alike.setdefault(key, []).extend(buffer._due())
    for (spec, _), due in alike.items():
        if due:
            _adamw(spec, [piece for piece, _ in due], [grad for _, grad in due])


@torch.no_grad()
def _adamw(spec: OptimizerSpec, pieces: list[_Piece], grads: list[Tensor]) -> None:
    beta1, beta2 = spec.betas
    adamw(
        [piece.value for piece in pieces],
        grads,
        [piece.mean for piece in pieces],
        [piece.square for piece in pieces],
        [],
        [piece.steps for piece in pieces],
        fused=True,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=spec.lr,
        weight_decay=spec.weight_decay,
        eps=spec.eps,
        maximize=False,
    )


def _fresh(value: Tensor) -> _Piece:
    mean, square = torch.zeros_like(value), torch.zeros_like(value)
    return _Piece(value, mean, square, torch.zeros((), device=value.device))
