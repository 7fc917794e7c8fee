# SPDX-License-Identifier: Apache-2.0
"""What a trunk saw of one text in one training step, and what the text was.

Shapes: T tokens, D width; no padding. Where only summary positions cross, what crossed
has another length than the text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atlas_flwr.lora import AdapterState
from atlas_flwr.lora.flattening import flatten, unflatten
from atlas_flwr.split import SplitPlan
from atlas_flwr.types import Role
from atlas_flwr.wire import Codec

__all__ = [
    "ANEW",
    "Observation",
    "Recording",
    "Truth",
    "as_received",
    "packed",
    "unpacked",
]

# How to mend a recording's file.
ANEW = "bring it there again, or record the run anew, with record-wire=true"


@dataclass(frozen=True)
class Observation:
    """One text as it crossed, the way the trunk decoded it.

    Attributes
    ----------
    client : str
        Whose.
    round, step : int
        When; the step is the trunk's.
    cut : str
        The client's, e.g. ``"2/1"``.
    hidden : Tensor
        Shape (T, D), float32: what the head sent.
    answer : Tensor, optional
        Shape (T, D): what the trunk answered. ``None`` where it ends the model.
    gradient : Tensor, optional
        Shape (T, D): the loss's by the answer, which the tail sent. ``None`` where it
        sent none.
    """

    client: str
    round: int
    step: int
    cut: str
    hidden: Tensor
    answer: Tensor | None
    gradient: Tensor | None


@dataclass(frozen=True)
class Truth:
    """What an attack on an observation is held against; no attack sees it.

    Attributes
    ----------
    ids : Tensor
        Shape (T,), int64: the client's tokens, before any defence.
    answer : Tensor
        Shape (T,), bool: tokens that are the label or the response.
    label : int
        Number of the class; 0 where the task has none.
    """

    ids: Tensor
    answer: Tensor
    label: int

    @property
    def prompt(self) -> list[int]:
        """The tokens that are neither the label's nor the response's."""
        tokens: list[int] = self.ids[~self.answer].tolist()
        return tokens


@dataclass(frozen=True)
class Recording:
    """What one client sent in one round.

    Attributes
    ----------
    client : str
        Its number.
    round : int
        Server round.
    plan : SplitPlan
        Its cut.
    adapters : AdapterState
        Of its side, as the server sent them.
    observations : Sequence[Observation]
        In the order in which they crossed.
    truths : Sequence[Truth]
        Of each.
    update : AdapterState, optional
        The adapters as the client sent them back; ``None`` where they were not kept.
    """

    client: str
    round: int
    plan: SplitPlan
    adapters: AdapterState
    observations: Sequence[Observation]
    truths: Sequence[Truth]
    update: AdapterState | None = None


def as_received(codec: Codec, sent: Tensor, role: Role) -> Tensor:
    """Return a tensor as it comes out of a codec on the other side, float32.

    Parameters
    ----------
    codec : Codec
        The connection's.
    sent : Tensor
        On the CPU.
    role : Role
        What it is.
    """
    frame = codec.encode(sent.float().contiguous().numpy(), role)
    return torch.from_numpy(codec.decode(frame).copy())


def packed(found: Recording) -> dict[str, NDArray[Any]]:
    """Write a recording as arrays; texts stand behind one another."""
    seen, true = found.observations, found.truths
    plan = found.plan
    cut = [plan.head, -1 if plan.tail is None else plan.tail]
    out: dict[str, NDArray[Any]] = {
        "client": np.array(int(found.client)),
        "round": np.array(found.round),
        "cut": np.array(cut),
        "steps": np.array([o.step for o in seen]),
        "lengths": np.array([len(o.hidden) for o in seen]),
        "hidden": _stacked([o.hidden for o in seen]),
        "truth/lengths": np.array([len(t.ids) for t in true]),
        "truth/ids": _stacked([t.ids for t in true]),
        "truth/answer": _stacked([t.answer for t in true]),
        "truth/labels": np.array([t.label for t in true]),
    }
    for name in ("answer", "gradient"):
        values = [getattr(o, name) for o in seen]
        there = [value is not None for value in values]
        out[f"has/{name}"] = np.array(there)
        if any(there):
            out[name] = _stacked([v for v in values if v is not None])
    if found.update is not None:
        out |= flatten(found.update, "update")
    folded = AdapterState(found.adapters.folded)
    return out | flatten(found.adapters, "adapters") | flatten(folded, "folded")


def unpacked(arrays: Mapping[str, NDArray[Any]]) -> Recording:
    """Read back what :func:`packed` wrote."""
    client, number = str(int(arrays["client"])), int(arrays["round"])
    head, tail = (int(n) for n in arrays["cut"])
    plan = SplitPlan(head, None if tail < 0 else tail)
    lengths = [int(n) for n in arrays["lengths"]]
    told = [int(n) for n in arrays.get("truth/lengths", arrays["lengths"])]
    hidden_states = torch.from_numpy(arrays["hidden"]).split(lengths)
    parts = {
        name: torch.from_numpy(arrays[name]).split(told)
        for name in ("truth/ids", "truth/answer")
    }
    sent = {name: _sparse(arrays, name, lengths) for name in ("answer", "gradient")}
    observations = [
        Observation(client, number, int(step), str(plan), hidden, answer, gradient)
        for step, hidden, answer, gradient in zip(
            arrays["steps"],
            hidden_states,
            sent["answer"],
            sent["gradient"],
            strict=True,
        )
    ]
    truths = [
        Truth(ids, answer, int(label))
        for ids, answer, label in zip(
            parts["truth/ids"],
            parts["truth/answer"],
            arrays["truth/labels"],
            strict=True,
        )
    ]
    state = unflatten(arrays, "adapters")
    folded = unflatten(arrays, "folded").factors
    adapters = AdapterState(state.factors, state.dense, folded)
    back = unflatten(arrays, "update")
    update = back if back.factors or back.dense else None
    return Recording(client, number, plan, adapters, observations, truths, update)


def _stacked(values: Sequence[Tensor]) -> NDArray[Any]:
    whole: NDArray[Any] = torch.cat(list(values)).numpy()
    return whole


def _sparse(
    arrays: Mapping[str, NDArray[Any]], name: str, lengths: Sequence[int]
) -> list[Tensor | None]:
    """Read what only some of the texts have."""
    there = arrays[f"has/{name}"]
    if not there.any():
        return [None] * len(lengths)
    held = [n for n, has in zip(lengths, there, strict=True) if has]
    found = iter(torch.from_numpy(arrays[name]).split(held))
    return [next(found) if has else None for has in there]
