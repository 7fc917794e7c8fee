# SPDX-License-Identifier: Apache-2.0
"""Sessions and what they have trained as bytes: a safetensors file in memory.

What is no tensor (scales, the plan, the optimiser) is JSON in a tensor of its own.
Nothing is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import load, save
from torch import Tensor

from atlas_flwr.errors import WireError
from atlas_flwr.lora import AdapterState, LoraFactors
from atlas_flwr.split import SplitPlan
from atlas_flwr.trunk.engine.session import SessionSpec
from atlas_flwr.trunk.seams import Neighbour, Seams
from atlas_flwr.types import OptimizerSpec

__all__ = ["spec_bytes", "spec_of", "state_bytes", "state_of"]

ABOUT = "about"


def state_bytes(state: AdapterState, about: Mapping[str, Any] | None = None) -> bytes:
    """Write a state, without what only a server keeps of it, and JSON beside it.

    Parameters
    ----------
    state : AdapterState
        Factors, dense arrays and folded products keep their dtypes.
    about : Mapping[str, Any], optional
        What else is told.
    """
    tensors: dict[str, Tensor] = {}
    scales: dict[str, float] = {}
    for kind, found in (("live", state.factors), ("folded", state.folded)):
        for name, factors in found.items():
            tensors[f"{kind}.A:{name}"] = factors.A
            tensors[f"{kind}.B:{name}"] = factors.B
            scales[f"{kind}:{name}"] = factors.scale
    for key, array in state.dense.items():
        tensors[f"dense:{key}"] = torch.from_numpy(np.array(array))
    told = {"scales": scales, "origin": state.origin, "about": dict(about or {})}
    text = bytearray(json.dumps(told).encode())
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    return save({**plain, ABOUT: torch.frombuffer(text, dtype=torch.uint8)})


def state_of(data: bytes) -> tuple[AdapterState, dict[str, Any]]:
    """Read what :func:`state_bytes` wrote.

    Raises
    ------
    WireError
        If the bytes are something else.
    AdapterError
        If two factors do not fit each other.
    """
    try:
        tensors = load(data)
        told = json.loads(bytes(tensors.pop(ABOUT).numpy()))
        found = {
            kind: {
                name: LoraFactors(
                    tensors[f"{kind}.A:{name}"], tensors[f"{kind}.B:{name}"], scale
                )
                for name, scale in _scales(told, kind)
            }
            for kind in ("live", "folded")
        }
        dense = {
            name.removeprefix("dense:"): tensor.numpy()
            for name, tensor in tensors.items()
            if name.startswith("dense:")
        }
        origin, about = str(told["origin"]), dict(told["about"])
    except (
        AttributeError,
        KeyError,
        RecursionError,
        TypeError,
        ValueError,
        safetensors.SafetensorError,
    ) as error:
        raise WireError(f"bytes that are no adapters: {error}") from None
    return AdapterState(found["live"], dense, found["folded"], origin), about


def spec_bytes(spec: SessionSpec) -> bytes:
    """Write what a session is to be opened with."""
    about = {
        "plan": str(spec.plan),
        "optimizer": asdict(spec.optimizer),
        "shared": spec.shared,
        "folds": dict(spec.folds),
        "probe": spec.probe,
        "merge": spec.merge,
        "steps": spec.steps,
        "client": spec.client,
        "round": spec.round,
        "holder": spec.holder,
        "seams": None if spec.seams is None else asdict(spec.seams),
    }
    return state_bytes(spec.state, about)


def spec_of(data: bytes) -> SessionSpec:
    """Read what :func:`spec_bytes` wrote.

    Raises
    ------
    WireError
        If the bytes are something else.
    PlanError, TrunkError, AdapterError
        If there can be no such session.
    """
    state, about = state_of(data)
    try:
        optimizer = dict(about["optimizer"])
        first, second = optimizer.pop("betas")
        return SessionSpec(
            plan=SplitPlan.parse(str(about["plan"])),
            state=state,
            optimizer=OptimizerSpec(**optimizer, betas=(float(first), float(second))),
            shared=str(about["shared"]),
            folds={str(n): int(k) for n, k in about["folds"].items()},
            probe=bool(about["probe"]),
            merge=int(about["merge"]),
            steps=int(about["steps"]),
            client=str(about["client"]),
            round=int(about["round"]),
            holder=str(about["holder"]),
            seams=_seams(about["seams"]),
        )
    except KeyError as error:
        raise WireError(
            f"a session that says nothing of {error}: install the same atlas-flwr "
            "where the ServerApp runs and on this machine"
        ) from None
    except (AttributeError, TypeError, ValueError) as error:
        raise WireError(f"bytes that are no session: {error!r}") from None


def _seams(told: Any) -> Seams | None:
    if told is None:
        return None
    around = (told["onward"], told["back"])
    onward, back = (None if n is None else Neighbour(*map(str, n)) for n in around)
    return Seams(str(told["key"]), onward, back)


def _scales(told: Mapping[str, Any], kind: str) -> list[tuple[str, float]]:
    start = f"{kind}:"
    return [
        (key.removeprefix(start), float(scale))
        for key, scale in told["scales"].items()
        if key.startswith(start)
    ]
