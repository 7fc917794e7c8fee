# SPDX-License-Identifier: Apache-2.0
"""The model a client trains: head and tail around a remote trunk, or the whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from atlas_flwr.errors import AdapterError
from atlas_flwr.lora import (
    PROMPT_KEY,
    AdapterState,
    ImportanceProbe,
    LoraFactors,
    Scaling,
    attach,
    attach_ia3,
    attach_prompt,
    attached,
    detach,
    extract,
    fold,
    ia3_key,
    ia3_vectors,
    load,
    probing,
    widen,
)
from atlas_flwr.split import (
    SUMMARY_KEY,
    PartInfo,
    SplitModel,
    attach_summary,
    part_info,
)
from atlas_flwr.types import TrunkClient

__all__ = ["AdaptedPart", "ClientModel", "adapted_split", "adapted_whole"]

_V = TypeVar("_V")


@dataclass(frozen=True)
class AdaptedPart:
    """A module with adapters, and its layers' names in the whole model.

    Attributes
    ----------
    module : nn.Module
        A head, a tail, or a whole model.
    info : PartInfo, optional
        ``None`` for a whole model.
    """

    module: nn.Module
    info: PartInfo | None

    def global_name(self, local: str) -> str:
        """Name of a layer of this side in the whole model."""
        return local if self.info is None else self.info.global_name(local)

    def local_name(self, name: str) -> str | None:
        """Name on this side of a layer of the whole model, if it is here."""
        return name if self.info is None else self.info.local_name(name)


@dataclass(frozen=True)
class ClientModel:
    """A model whose adapters can be read back under the whole model's names.

    Attributes
    ----------
    model : nn.Module
        Call it as a Hugging Face model.
    sides : Sequence[AdaptedPart]
        Its parts on this client.
    dense : Mapping[str, nn.Parameter]
        Parameters trained in full, IA3's vectors, a prompt and summary positions among
        them, by their name in the whole model.
    """

    model: nn.Module
    sides: Sequence[AdaptedPart]
    dense: Mapping[str, nn.Parameter]

    def state(self) -> AdapterState:
        """Return copies of everything that is trained on this client."""
        factors = {
            side.global_name(local): found.to(device="cpu", dtype=torch.float32)
            for side in self.sides
            for local, found in extract(side.module).items()
        }
        dense = {key: _array(value) for key, value in self.dense.items()}
        return AdapterState(factors, dense)

    def attached(self) -> list[LoraFactors]:
        """Return the adapters on this client as they are being trained."""
        return [f for side in self.sides for f in attached(side.module).values()]

    @contextmanager
    def probing(self, probe: ImportanceProbe) -> Iterator[None]:
        """Measure the importance of the adapted layers on this client."""
        with ExitStack() as stack:
            for side in self.sides:
                names = {n: side.global_name(n) for n in extract(side.module)}
                stack.enter_context(probing(side.module, probe, names))
            yield

    def parameter_name(self, key: str) -> str:
        """Map a parameter's name in :attr:`model` to one that all clients share."""
        for prefix, side in zip(("head.", "tail."), self.sides, strict=False):
            if side.info is not None and key.startswith(prefix):
                return side.global_name(key.removeprefix(prefix))
        return key


@contextmanager
def adapted_split(
    head: nn.Module,
    tail: nn.Module | None,
    trunk: TrunkClient,
    state: AdapterState,
    scaling: Scaling,
) -> Iterator[ClientModel]:
    """Attach a client's adapters to its parts, and take them off afterwards.

    What the state has folded is added to the frozen weights, and stays there: load the
    parts afresh for every message of the server.

    Parameters
    ----------
    head, tail : nn.Module
        Parts made by :func:`atlas_flwr.split.partition`; ``tail`` is ``None`` for a
        vanilla split.
    trunk : TrunkClient
        This client's session.
    state : AdapterState
        Adapters of the layers on this side, and dense arrays.
    scaling : Scaling
        Of the adapters.
    """
    parts = [part for part in (head, tail) if part is not None]
    sides = [AdaptedPart(part, part_info(part)) for part in parts]
    whole = SplitModel(head, tail, trunk)
    with _adapted(whole, sides, state, scaling) as adapted:
        yield adapted


@contextmanager
def adapted_whole(
    model: nn.Module, state: AdapterState, scaling: Scaling
) -> Iterator[ClientModel]:
    """Attach adapters to a whole model, and take them off afterwards.

    As in :func:`adapted_split`, what is folded stays.
    """
    with _adapted(model, [AdaptedPart(model, None)], state, scaling) as adapted:
        yield adapted


@contextmanager
def _adapted(
    model: nn.Module,
    sides: Sequence[AdaptedPart],
    state: AdapterState,
    scaling: Scaling,
) -> Iterator[ClientModel]:
    vectors = ia3_vectors(state.dense)
    shares = [_share(side, state.factors) for side in sides]
    folded = [_share(side, state.folded) for side in sides]
    scales = [_share(side, vectors) for side in sides]
    _refuse_strays(state.factors, shares)
    _refuse_strays(state.folded, folded)
    _refuse_strays(vectors, scales)
    special = {PROMPT_KEY, SUMMARY_KEY, *map(ia3_key, vectors)}
    rest = {k: v for k, v in state.dense.items() if k not in special}
    for side, share in zip(sides, folded, strict=True):
        fold(side.module, share)
    try:
        for side, share in zip(sides, shares, strict=True):
            side.module.requires_grad_(False)
            attach(side.module, {n: f.rank for n, f in share.items()}, scaling)
            load(side.module, share)
        attached = _attach_vectors(sides, scales)  # first: it freezes all else
        dense = {**_dense_parameters(sides, rest), **attached}
        with (
            attach_prompt(model, state.dense) as prompt,
            _attached_summary(model, state.dense) as summary,
        ):
            yield ClientModel(model, sides, {**dense, **prompt, **summary})
    finally:
        for side in sides:
            detach(side.module)
            side.module.requires_grad_(False)


@contextmanager
def _attached_summary(
    model: nn.Module, dense: Mapping[str, NDArray[np.float32]]
) -> Iterator[dict[str, nn.Parameter]]:
    found = dense.get(SUMMARY_KEY)
    if found is not None and not isinstance(model, SplitModel):
        raise AdapterError(
            f"array {SUMMARY_KEY!r} is for a split model; a whole one has no cut"
        )
    with attach_summary(model, None if found is None else torch.tensor(found)) as own:
        yield {SUMMARY_KEY: own.embeddings} if own else {}


def _share(side: AdaptedPart, layers: Mapping[str, _V]) -> dict[str, _V]:
    named = {side.local_name(name): f for name, f in layers.items()}
    return {local: f for local, f in named.items() if local is not None}


def _refuse_strays(
    layers: Mapping[str, object], shares: Sequence[Mapping[str, object]]
) -> None:
    placed = sum(len(share) for share in shares)
    if placed != len(layers):
        raise AdapterError(
            f"{len(layers)} adapted layers were sent and {placed} of them are "
            "on this client; its cut and the server's disagree"
        )


def _attach_vectors(
    sides: Sequence[AdaptedPart], shares: Sequence[Mapping[str, NDArray[np.float32]]]
) -> dict[str, nn.Parameter]:
    return {
        ia3_key(side.global_name(local)): vector
        for side, share in zip(sides, shares, strict=True)
        for local, vector in attach_ia3(side.module, share).items()
    }


def _dense_parameters(
    sides: Sequence[AdaptedPart], dense: Mapping[str, NDArray[np.float32]]
) -> dict[str, nn.Parameter]:
    found = {}
    for key, value in dense.items():
        side, local = _find(sides, key)
        widen(side.module, [local])
        parameter = side.module.get_parameter(local)
        if tuple(parameter.shape) != value.shape:
            raise AdapterError(
                f"array {key!r} has shape {value.shape}; the model's is "
                f"{tuple(parameter.shape)}"
            )
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(value))
        parameter.requires_grad_(True)
        found[key] = parameter
    return found


def _find(sides: Sequence[AdaptedPart], key: str) -> tuple[AdaptedPart, str]:
    for side in sides:
        local = side.local_name(key)
        if local in dict(side.module.named_parameters()):
            return side, local
    raise AdapterError(f"array {key!r} is no parameter of this client's model")


def _array(value: torch.Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = value.detach().float().cpu().numpy().copy()
    return array
