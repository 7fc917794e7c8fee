# SPDX-License-Identifier: Apache-2.0
"""Flower ArrayRecords read as LoRA factors and dense arrays, and written back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from atlas_flwr.errors import AdapterError
from atlas_flwr.lora import AdapterState, LoraFactors, Scaling

__all__ = ["Layout", "folded_key", "lora_key", "write_state"]

_LORA_KEY = re.compile(
    r"^(?P<layer>.+)\.lora_(?P<factor>[AB])(?:\.(?P<adapter>[^.]+))?\.weight$"
)
_FOLDED_KEY = re.compile(r"^(?P<layer>.+)\.folded_(?P<factor>[AB])\.weight$")
# What neither a sum of products nor a mean of the parts makes one of, and why.
_INEXACT = {
    "lora_magnitude_vector": "is DoRA's magnitude, which rescales the rows of W + B A; "
    "train with use_dora=False",
    "hada_w": "is a factor of LoHa, whose product is taken entry by entry; use LoRA",
    "lokr_w": "is a factor of LoKr, whose product is Kronecker's; use LoRA",
    "hira_": "is a factor of HiRA, whose product is multiplied with the weights; use "
    "LoRA",
    "adamss_": "is a factor of AdaMSS, of a part of the weights; use LoRA",
    "deft_": "is a factor of DEFT's; use LoRA",
    "lily_": "is a factor of Lily, which several layers share; use LoRA",
    "osf_svd_params": "is a factor of OSF's decomposed weights; use LoRA",
    "prefix_task_": "is a factor of multitask prompts; use plain prompt tuning",
}

# Parameters of JetMoe's and Granite's mixtures, which their names do not call experts.
_STACKED, _MIXTURES = ("input_linear", "output_linear"), ("mlp", "moe", "experts")
# Averaged number by number, which is near what was learned together, and not equal.
_NEAR = {
    "adaption_gate": "adaption prompts",
    "boft_R": "BOFT",
    "frod_lambda": "FRoD",
    "hra_u": "HRA",
    "oft_R": "OFT",
    "peanut_": "PEANuT",
    "psoft_R": "PSOFT",
    "pvera_lambda": "PVeRA",
    "road_theta": "RoAd",
    "shadow_down": "Shadow",
    "vera_lambda": "VeRA",
}


def lora_key(layer: str, factor: str) -> str:
    """Name a factor's array as PEFT does: ``<layer>.lora_A.weight``."""
    return f"{layer}.lora_{factor}.weight"


def folded_key(layer: str, factor: str) -> str:
    """Name the array of a factor that a client is to fold into its frozen weights."""
    return f"{layer}.folded_{factor}.weight"


@dataclass(frozen=True)
class _Layer:
    keys: tuple[str, str]  # of A and of B
    shape: tuple[int, int]  # (m, n)
    dtype: np.dtype[np.generic]


@dataclass(frozen=True)
class _Dense:
    shape: tuple[int, ...]
    odd: NDArray[np.bool_] | None  # where the initial array is not finite


@dataclass(frozen=True)
class Layout:
    """Which arrays a federation exchanges: names and shapes, whatever the rank.

    Attributes
    ----------
    layers : Mapping[str, _Layer]
        Adapted layers by name. Where a layer has two adapters, each is one.
    dense : Mapping[str, _Dense]
        Every other array.
    scale : Scaling
        LoRA's scale on the clients.
    order : Mapping[str, int]
        Place of each key among the arrays, which some clients load by position.
    """

    layers: Mapping[str, _Layer]
    dense: Mapping[str, _Dense]
    scale: Scaling = field(default_factory=Scaling)
    order: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, arrays: ArrayRecord, scaling: Scaling | None = None) -> Layout:
        """Derive the layout from the initial arrays, or on a client from those sent.

        Raises
        ------
        AdapterError
            If a LoRA array has no partner or is not of a linear layer.
        """
        several = _layers_with_several(arrays)
        pairs: dict[str, dict[str, str]] = {}
        dense = {}
        for key, array in arrays.items():
            match = _LORA_KEY.match(key)
            if match:
                _refuse_experts(key, match["layer"])
                pairs.setdefault(_name(match, several), {})[match["factor"]] = key
                continue
            _refuse_inexact(key)
            if not _FOLDED_KEY.match(key):
                dense[key] = _Dense(tuple(array.shape), _odd(array))
        layers = {name: _layer(name, keys, arrays) for name, keys in pairs.items()}
        order = {key: place for place, key in enumerate(arrays)}
        return cls(layers, dense, scaling or Scaling(), order)

    @property
    def nearly(self) -> list[str]:
        """Kinds of adapters whose mean is near what was learned, and not equal."""
        found = {n for word, n in _NEAR.items() for k in self.dense if _has(k, word)}
        return sorted(found)

    def read(
        self, arrays: ArrayRecord, sender: str, scaling: Scaling | None = None
    ) -> AdapterState:
        """Read a client's arrays, refusing whatever does not fit.

        Parameters
        ----------
        arrays : ArrayRecord
            A client's reply; it may hold a part of the layers, at any rank.
        sender : str
            Who sent them, for the message of an error.
        scaling : Scaling, optional
            The sender's own, if it is not :attr:`scale`.

        Raises
        ------
        AdapterError
            Naming the sender and the array: unknown, missing its partner, of a wrong
            shape, or not finite.
        """
        pairs: dict[str, dict[str, NDArray[np.float32]]] = {}
        folded: dict[str, dict[str, NDArray[np.float32]]] = {}
        dense = {}
        for key, array in arrays.items():
            name, factor = self._place(key)
            if name in self.layers:
                pair = pairs.setdefault(name, {})
                if factor in pair:
                    raise AdapterError(
                        f"{sender}: array {key!r} is a second lora_{factor} of layer "
                        f"{name!r}, which has one adapter in this federation"
                    )
                pair[factor] = _finite(sender, key, array)
            elif match := _FOLDED_KEY.match(key):
                value = _finite(sender, key, array)
                folded.setdefault(match["layer"], {})[match["factor"]] = value
            elif key in self.dense:
                dense[key] = _checked_dense(sender, key, array, self.dense[key])
            else:
                raise AdapterError(
                    f"{sender}: array {key!r} is not among the {len(self.layers)} "
                    f"layers and {len(self.dense)} dense arrays of this federation"
                )
        scale = scaling or self.scale
        factors = {
            n: self._factors(sender, n, pair, scale) for n, pair in pairs.items()
        }
        products = {n: _product(sender, n, pair) for n, pair in folded.items()}
        return AdapterState(factors, dense, products)

    def _place(self, key: str) -> tuple[str, str]:
        """Return the layer and the factor that a key names; empty for other keys."""
        match = _LORA_KEY.match(key)
        if match is None:
            return "", ""
        own = _own_name(match)
        return (own if own in self.layers else match["layer"]), match["factor"]

    def _factors(
        self,
        sender: str,
        name: str,
        pair: Mapping[str, NDArray[np.float32]],
        scale: Scaling,
    ) -> LoraFactors:
        A, B = _both(sender, name, pair)
        m, n = self.layers[name].shape
        rank = A.shape[0] if A.ndim == 2 else 0
        if A.shape != (rank, n) or B.shape != (m, rank) or rank == 0:
            raise AdapterError(
                f"{sender}: layer {name!r} has A {A.shape} and B {B.shape}; they must "
                f"be (r, {n}) and ({m}, r) with the same r >= 1"
            )
        return LoraFactors(torch.from_numpy(A), torch.from_numpy(B), scale(rank))

    def write(self, state: AdapterState, scaling: Scaling | None = None) -> ArrayRecord:
        """Write a state under the federation's own keys, in their order.

        Factors have the dtypes of the initial arrays, other arrays their own.
        Whatever their own scale, factors are written for the receiver's, which is
        :attr:`scale` unless another is given; what is folded for a scale of 1.
        """
        out: dict[str, Array] = {}
        for name, factors in state.factors.items():
            layer = self.layers[name]
            scaled = factors.with_scale((scaling or self.scale)(factors.rank))
            for key, factor in zip(layer.keys, (scaled.A, scaled.B), strict=True):
                out[key] = Array(np.ascontiguousarray(factor.numpy(), layer.dtype))
        for name, found in state.folded.items():
            plain = found.with_scale(1.0)
            out[folded_key(name, "A")] = Array(np.ascontiguousarray(plain.A))
            out[folded_key(name, "B")] = Array(np.ascontiguousarray(plain.B))
        out |= {key: Array(np.asarray(array)) for key, array in state.dense.items()}
        last = len(self.order)
        keys = sorted(out, key=lambda key: self.order.get(key, last))
        return ArrayRecord({key: out[key] for key in keys})


def _layers_with_several(arrays: ArrayRecord) -> set[str]:
    """Return the layers with more than one adapter, which PEFT names in its keys."""
    found: dict[str, set[str | None]] = {}
    for match in filter(None, map(_LORA_KEY.match, arrays)):
        found.setdefault(match["layer"], set()).add(match["adapter"])
    return {layer for layer, adapters in found.items() if len(adapters) > 1}


def _name(match: re.Match[str], several: set[str]) -> str:
    return _own_name(match) if match["layer"] in several else match["layer"]


def _own_name(match: re.Match[str]) -> str:
    return f"{match['layer']} ({match['adapter']})"


def _refuse_experts(key: str, layer: str) -> None:
    owner, _, last = layer.rpartition(".")
    of_mixture = last in _STACKED and owner.endswith(_MIXTURES)
    if last == "base_layer" or "expert" in last or of_mixture:
        raise AdapterError(
            f"array {key!r} adapts a mixture's experts as one parameter (PEFT's "
            "target_parameters): its rows hold a factor for each expert, and their "
            "concatenation is not the experts' sum. Adapt linear layers "
            "(target_modules), or aggregate with Flower's FedAvg."
        )


def _has(key: str, word: str) -> bool:
    """Whether a part of an array's name begins so, as PEFT's parameters do."""
    return f".{word}" in f".{key}"


def _refuse_inexact(key: str) -> None:
    why = next((why for word, why in _INEXACT.items() if _has(key, word)), None)
    if why is None and "lora_" in key:
        why = (
            "is a LoRA parameter of another kind than '<layer>.lora_A.weight' / "
            "'<layer>.lora_B.weight'; Adapt linear layers only"
        )
    if why is not None:
        raise AdapterError(
            f"array {key!r} {why}: neither a sum of such products nor a mean of the "
            "parts is what the clients learned together"
        )


def _odd(array: Array) -> NDArray[np.bool_] | None:
    value = array.numpy()
    if value.dtype.kind not in "fc":
        return None
    odd = ~np.isfinite(value)
    return odd if odd.any() else None


def _finite(sender: str, key: str, array: Array) -> NDArray[np.float32]:
    value = np.asarray(array.numpy(), dtype=np.float32)
    if not np.isfinite(value).all():
        raise AdapterError(f"{sender}: array {key!r} has NaN or infinity")
    return value


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


def _both(
    sender: str, name: str, pair: Mapping[str, NDArray[np.float32]]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    if len(pair) != 2:
        missing = "AB".replace(next(iter(pair)), "")
        raise AdapterError(f"{sender}: layer {name!r} comes without lora_{missing}")
    return pair["A"], pair["B"]


def _product(
    sender: str, name: str, pair: Mapping[str, NDArray[np.float32]]
) -> LoraFactors:
    A, B = _both(sender, name, pair)
    return LoraFactors(torch.from_numpy(A), torch.from_numpy(B))


def _checked_dense(
    sender: str, key: str, array: Array, known: _Dense
) -> NDArray[np.generic]:
    """Return an array as it came; infinities may stand where they were at first."""
    value = np.asarray(array.numpy())
    if value.shape != known.shape:
        raise AdapterError(
            f"{sender}: array {key!r} has shape {value.shape}; it must be {known.shape}"
        )
    odd = _odd(array)
    if odd is not None and (known.odd is None or (odd & ~known.odd).any()):
        raise AdapterError(f"{sender}: array {key!r} has NaN or infinity")
    return value


def write_state(state: AdapterState) -> ArrayRecord:
    """Write a state under PEFT's names, at its own scale: the initial arrays."""
    out: dict[str, Array] = {}
    for name, found in state.factors.items():
        out[lora_key(name, "A")] = Array(found.A.numpy())
        out[lora_key(name, "B")] = Array(found.B.numpy())
    out |= {key: Array(np.asarray(value)) for key, value in state.dense.items()}
    return ArrayRecord(out)
