# SPDX-License-Identifier: Apache-2.0
"""Adapters of several sessions, stacked, so that a layer applies all of them at once.

Shape suffixes: K sessions, R rank, N inputs and M outputs of a layer, T rows a session.
Lower ranks are filled up with zeros, and so is a session without adapter on a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from atlas_flwr.lora import ImportanceProbe, LoraFactors, oriented
from atlas_flwr.trunk.engine.adapters import SessionLinear

__all__ = ["Fold", "JoinedAdapters", "StackedFactors", "Watching"]


@dataclass(frozen=True)
class StackedFactors:
    """LoRA of one layer, of several sessions.

    Attributes
    ----------
    A_KRN, B_KMR : Tensor
        Leaves; B with the sessions' scales already in it.
    rounded : tuple[Tensor, Tensor], optional
        Both in the base's dtype, to be multiplied with; ``None``: they are multiplied
        as they are.
    """

    A_KRN: Tensor
    B_KMR: Tensor
    rounded: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Fold:
    """A product that some sessions have folded into a layer.

    Attributes
    ----------
    factors : LoraFactors
        Never trained.
    index : Tensor, optional
        Those sessions, shape (k,); ``None`` for all.
    """

    factors: LoraFactors
    index: Tensor | None


@dataclass(frozen=True)
class Watching:
    """A session that probes.

    Attributes
    ----------
    row : int
        Its place among those of the rows.
    number : int
        Its number in the pass.
    probe : ImportanceProbe
        Which sees its rows alone.
    """

    row: int
    number: int
    probe: ImportanceProbe


@dataclass(frozen=True)
class JoinedAdapters:
    """The adapters of a pass over rows of several sessions.

    Attributes
    ----------
    count : int
        Sessions; each has the same number of rows, one session's after the other's.
    factors : Mapping[str, StackedFactors]
        By layer.
    folds : Mapping[str, Sequence[Fold]]
        By layer.
    inputs, outputs : Mapping[str, Tensor]
        IA3's vectors, shape (K, 1, N) and (K, M, 1), by layer; ones for a session
        without.
    probes : Sequence[Watching]
        Of the sessions that probe.
    asked : Set[int]
        The sessions of which a backward pass is taken.
    """

    count: int
    factors: Mapping[str, StackedFactors] = field(default_factory=dict)
    folds: Mapping[str, Sequence[Fold]] = field(default_factory=dict)
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    outputs: Mapping[str, Tensor] = field(default_factory=dict)
    probes: Sequence[Watching] = ()
    asked: Set[int] = frozenset()

    def applied(self, layer: SessionLinear, x: Tensor) -> Tensor:
        """Return W x + s B A x, with each session's own B A on its rows."""
        found = self.factors.get(layer.name)
        if found is not None and not self.probes and layer.is_plain:
            out = _stacked(x, found, layer.base, None)
        else:
            out = layer.base(x)
            self._watch(layer, x, out)
            if found is not None:
                out = _stacked(x, found, None, out)
        for fold in self.folds.get(layer.name, ()):
            product = _folded(fold, self._by_session(x), self._by_session(out))
            out = product.view(out.shape)
        return out

    def _watch(self, layer: SessionLinear, x: Tensor, out: Tensor) -> None:
        """Let each probe see the rows of its session."""
        if not self.probes or not out.requires_grad:
            return
        x_KTN, name, weight = self._by_session(x.detach()), layer.name, layer.base

        def measure(delta: Tensor) -> None:
            delta_KTM = self._by_session(delta)
            for found in self.probes:
                if found.number in self.asked:  # or it would see a gradient of 0
                    rows = x_KTN[found.row], delta_KTM[found.row]
                    found.probe.measure(name, oriented(weight), *rows)

        out.register_hook(measure)

    def scaled(self, name: str, x: Tensor, *, inputs: bool) -> Tensor:
        """Return what enters or leaves layer ``name``, scaled session by session."""
        vectors = (self.inputs if inputs else self.outputs).get(name)
        if vectors is None:
            return x
        product = self._by_session(x) * vectors.view(self.count, 1, -1)
        return product.to(x.dtype).view(x.shape)

    def _by_session(self, x: Tensor) -> Tensor:
        return _by(self.count, x)


def _stacked(
    x: Tensor, factors: StackedFactors, base: nn.Module | None, out: Tensor | None
) -> Tensor:
    apply: Any = _StackedLinear.apply  # its types are not known
    leaves = factors.A_KRN, factors.B_KMR
    made: Tensor = apply(x, *leaves, *(factors.rounded or leaves), base, out)
    return made


class _StackedLinear(torch.autograd.Function):
    """``W x + B A x``; keeps x as it is, not copies in the adapters' dtype.

    Plain operations would be twice as many kernels, and their launches are what a pass
    over short rows costs on a GPU. W x is computed here, by the layer ``base``, or
    comes as ``out``. The gradients of A and B are added up in their own dtype, whatever
    is multiplied.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        leaf_A: Tensor,
        leaf_B: Tensor,
        A_KRN: Tensor,
        B_KMR: Tensor,
        base: nn.Module | None,
        out: Tensor | None,
    ) -> Tensor:
        count = len(A_KRN)
        if base is not None:
            result: Tensor = base(x)
        else:
            assert out is not None
            result = out.clone()
        low_KTR = torch.bmm(_by(count, x).to(A_KRN.dtype), A_KRN.mT)
        _add_product(_by(count, result), low_KTR, B_KMR.mT)
        ctx.save_for_backward(x, low_KTR, A_KRN, B_KMR)
        ctx.base, ctx.dtype = base, leaf_A.dtype
        return result

    @staticmethod
    def backward(
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, Tensor, Tensor, None, None, None, Tensor | None]:
        (grad,) = grads
        x, low_KTR, A_KRN, B_KMR = ctx.saved_tensors
        count = len(A_KRN)
        delta_KTM = _by(count, grad).to(B_KMR.dtype)
        delta_KTR = torch.bmm(delta_KTM, B_KMR)
        grad_B = _product(delta_KTM.mT, low_KTR, ctx.dtype)
        grad_A = _product(delta_KTR.mT, _by(count, x).to(A_KRN.dtype), ctx.dtype)
        grad_x = None
        if ctx.needs_input_grad[0]:
            if ctx.base is None:
                grad_x = torch.bmm(delta_KTR, A_KRN).to(x.dtype).view(x.shape)
            else:
                grad_x = torch.matmul(grad, oriented(ctx.base))
                _add_product(_by(count, grad_x), delta_KTR, A_KRN)
        rest = grad if ctx.base is None else None
        return grad_x, grad_A, grad_B, None, None, None, rest


def _by(count: int, x: Tensor) -> Tensor:
    return x.reshape(count, -1, x.shape[-1])


def _product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiply, and add up in ``dtype``."""
    if left.dtype == dtype:
        return torch.bmm(left, right)
    if left.is_cuda:
        return torch.bmm(left, right, out_dtype=dtype)
    return torch.bmm(left.to(dtype), right.to(dtype))


def _add_product(into: Tensor, left: Tensor, right: Tensor) -> None:
    """Add ``left @ right``, which may be of another dtype, in place."""
    if into.dtype == right.dtype:
        into.baddbmm_(left, right)
    else:
        into.add_(torch.bmm(left, right))


def _folded(fold: Fold, x_KTN: Tensor, out_KTM: Tensor) -> Tensor:
    factors, index = fold.factors, fold.index
    x = x_KTN if index is None else x_KTN.index_select(0, index)
    low = torch.nn.functional.linear(x.to(factors.A.dtype), factors.A)
    product = torch.nn.functional.linear(low, factors.B) * factors.scale
    product = product.to(out_KTM.dtype)
    return out_KTM + product if index is None else out_KTM.index_add(0, index, product)
