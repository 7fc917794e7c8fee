# SPDX-License-Identifier: Apache-2.0
"""Flower ArrayRecords read as LoRA factors and dense arrays, and written back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from atlas_flwr.errors import AdapterError
from atlas_flwr.lora import AdapterState, LoraFactors

__all__ = ["Layout", "lora_key", "write_state"]

_LORA_KEY = re.compile(r"^(?P<layer>.+)\.lora_(?P<factor>[AB])(?:\.[^.]+)?\.weight$")


def lora_key(layer: str, factor: str) -> str:
    """Name a factor's array as PEFT does: ``<layer>.lora_A.weight``."""
    return f"{layer}.lora_{factor}.weight"


@dataclass(frozen=True)
class _Layer:
    keys: tuple[str, str]  # of A and of B
    shape: tuple[int, int]  # (m, n)
    dtype: np.dtype[np.generic]


@dataclass(frozen=True)
class Layout:
    """Which arrays a federation exchanges: names and shapes, whatever the rank.

    Attributes
    ----------
    layers : Mapping[str, _Layer]
        Adapted layers by name.
    dense : Mapping[str, tuple[tuple[int, ...], numpy.dtype]]
        Shape and dtype of every other array.
    alpha : float, optional
        LoRA's alpha on the clients, whose factors are then scaled by alpha / rank.
        ``None`` means a scale of 1 for all, which is right where all ranks are equal.
    """

    layers: Mapping[str, _Layer]
    dense: Mapping[str, tuple[tuple[int, ...], np.dtype[np.generic]]]
    alpha: float | None = None

    @classmethod
    def of(cls, arrays: ArrayRecord, alpha: float | None = None) -> Layout:
        """Derive the layout from the initial arrays.

        Raises
        ------
        AdapterError
            If a LoRA array has no partner or is not of a linear layer.
        """
        pairs: dict[str, dict[str, str]] = {}
        dense = {}
        for key, array in arrays.items():
            match = _LORA_KEY.match(key)
            if match:
                pairs.setdefault(match["layer"], {})[match["factor"]] = key
            elif "lora_" in key:
                raise AdapterError(
                    f"array {key!r} is a LoRA parameter of another kind than "
                    "'<layer>.lora_A.weight' / '<layer>.lora_B.weight'; averaging it "
                    "is not exact. Adapt linear layers only."
                )
            else:
                dense[key] = (tuple(array.shape), np.dtype(array.dtype))
        layers = {name: _layer(name, keys, arrays) for name, keys in pairs.items()}
        return cls(layers, dense, alpha)

    def read(self, arrays: ArrayRecord, sender: str) -> AdapterState:
        """Read a client's arrays, refusing whatever does not fit.

        Parameters
        ----------
        arrays : ArrayRecord
            A client's reply; it may hold a part of the layers, at any rank.
        sender : str
            Who sent them, for the message of an error.

        Raises
        ------
        AdapterError
            Naming the sender and the array: unknown, missing its partner, of a wrong
            shape, or not finite.
        """
        pairs: dict[str, dict[str, NDArray[np.float32]]] = {}
        dense = {}
        for key, array in arrays.items():
            value = np.asarray(array.numpy(), dtype=np.float32)
            if not np.isfinite(value).all():
                raise AdapterError(f"{sender}: array {key!r} has NaN or infinity")
            match = _LORA_KEY.match(key)
            if match and match["layer"] in self.layers:
                pairs.setdefault(match["layer"], {})[match["factor"]] = value
            elif key in self.dense:
                dense[key] = _checked_dense(sender, key, value, self.dense[key][0])
            else:
                raise AdapterError(
                    f"{sender}: array {key!r} is not among the {len(self.layers)} "
                    f"layers and {len(self.dense)} dense arrays of this federation"
                )
        factors = {n: self._factors(sender, n, pair) for n, pair in pairs.items()}
        return AdapterState(factors, dense)

    def _factors(
        self, sender: str, name: str, pair: Mapping[str, NDArray[np.float32]]
    ) -> LoraFactors:
        if len(pair) != 2:
            missing = "AB".replace(next(iter(pair)), "")
            raise AdapterError(f"{sender}: layer {name!r} comes without lora_{missing}")
        A, B = pair["A"], pair["B"]
        m, n = self.layers[name].shape
        rank = A.shape[0] if A.ndim == 2 else 0
        if A.shape != (rank, n) or B.shape != (m, rank) or rank == 0:
            raise AdapterError(
                f"{sender}: layer {name!r} has A {A.shape} and B {B.shape}; they must "
                f"be (r, {n}) and ({m}, r) with the same r >= 1"
            )
        scale = 1.0 if self.alpha is None else self.alpha / rank
        return LoraFactors(torch.from_numpy(A), torch.from_numpy(B), scale)

    def write(self, state: AdapterState) -> ArrayRecord:
        """Write a state under the federation's own keys and dtypes.

        The factors' scale must be what the clients apply (see ``alpha``);
        :meth:`scale` gives it.
        """
        out: dict[str, Array] = {}
        for name, factors in state.factors.items():
            layer = self.layers[name]
            scaled = factors.with_scale(self.scale(factors.rank))
            for key, factor in zip(layer.keys, (scaled.A, scaled.B), strict=True):
                out[key] = Array(np.ascontiguousarray(factor.numpy(), layer.dtype))
        for key, array in state.dense.items():
            out[key] = Array(np.ascontiguousarray(array, self.dense[key][1]))
        return ArrayRecord(out)

    def scale(self, rank: int) -> float:
        """Return the factor by which a client multiplies B A at that rank."""
        return 1.0 if self.alpha is None else self.alpha / rank


def _layer(name: str, keys: Mapping[str, str], arrays: ArrayRecord) -> _Layer:
    if set(keys) != {"A", "B"}:
        raise AdapterError(
            f"layer {name!r} has only lora_{next(iter(keys))}; LoRA needs A and B"
        )
    A, B = arrays[keys["A"]], arrays[keys["B"]]
    if len(A.shape) != 2 or len(B.shape) != 2 or A.shape[0] != B.shape[1]:
        raise AdapterError(
            f"layer {name!r}: A {tuple(A.shape)} and B {tuple(B.shape)} are not "
            "(r, n) and (m, r)"
        )
    return _Layer((keys["A"], keys["B"]), (B.shape[0], A.shape[1]), np.dtype(A.dtype))


def _checked_dense(
    sender: str, key: str, value: NDArray[np.float32], shape: tuple[int, ...]
) -> NDArray[np.float32]:
    if value.shape != shape:
        raise AdapterError(
            f"{sender}: array {key!r} has shape {value.shape}; it must be {shape}"
        )
    return value


def write_state(state: AdapterState) -> ArrayRecord:
    """Write a state under PEFT's names, at its own scale: the initial arrays."""
    out: dict[str, Array] = {}
    for name, found in state.factors.items():
        out[lora_key(name, "A")] = Array(found.A.numpy())
        out[lora_key(name, "B")] = Array(found.B.numpy())
    out |= {key: Array(np.asarray(value)) for key, value in state.dense.items()}
    return ArrayRecord(out)
