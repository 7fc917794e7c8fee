# SPDX-License-Identifier: Apache-2.0
"""The in-process transports: a trunk module, or an engine, called directly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from atlas_flwr.errors import SessionError, TrunkLost
from atlas_flwr.split.model import end_model, run_blocks
from atlas_flwr.trunk.engine import TrunkEngine
from atlas_flwr.types import LossReply, TrunkCall, TrunkClient

__all__ = ["EngineTrunk", "LocalTrunk", "connect_local", "serve_local"]

# Engines that connect("local://name") finds, as Ray finds its named actors.
_ADDRESSES: dict[str, TrunkEngine] = {}


@dataclass
class LocalTrunk(TrunkClient):
    """A trunk module in this process, trained as any other module.

    Gradients accumulate in the parameters of ``module``; step them with the optimiser
    that steps the rest. For many clients use :class:`atlas_flwr.trunk.TrunkEngine`.

    Parameters
    ----------
    module : nn.Module
        ``parts.trunk`` of :func:`atlas_flwr.split.partition`.
    """

    module: nn.Module
    _kept: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def forward(self, call: TrunkCall) -> Tensor:
        """Run the blocks (see :class:`~atlas_flwr.types.TrunkClient`)."""
        inputs = _inputs(call)
        if call.step is None:
            with torch.no_grad():
                return run_blocks(self.module, inputs_embeds=call.hidden, **inputs)
        hidden = call.hidden.detach().requires_grad_()
        with torch.enable_grad():
            answer = run_blocks(self.module, inputs_embeds=hidden, **inputs)
        self._kept[call.step] = (hidden, answer)
        return answer.detach()

    def backward(self, step: int, grad: Tensor) -> Tensor:
        """Back-propagate into the module's parameters and the hidden states."""
        if step not in self._kept:
            raise SessionError(f"step {step} was not run forward, or backward already")
        hidden, answer = self._kept.pop(step)
        with torch.enable_grad():
            answer.backward(grad)
        assert hidden.grad is not None
        return hidden.grad

    def loss(
        self, call: TrunkCall, labels: Tensor | None, logits_to_keep: int = 0
    ) -> LossReply:
        """End the model, back-propagating if the call has a step."""
        training = call.step is not None and labels is not None
        hidden = call.hidden.detach().requires_grad_(training)
        with torch.set_grad_enabled(training):
            out = end_model(
                self.module,
                hidden,
                labels=labels,
                logits_to_keep=logits_to_keep,
                **_inputs(call),
            )
            loss = out["loss"] if labels is not None else None
            if training:
                assert loss is not None
                loss.backward()
        detached = None if loss is None else loss.detach()
        return LossReply(detached, out["logits"].detach(), hidden.grad)


@dataclass(frozen=True)
class EngineTrunk(TrunkClient):
    """A session of an engine in this process.

    Parameters
    ----------
    engine : TrunkEngine
        The engine.
    token : str
        What :meth:`~atlas_flwr.trunk.TrunkEngine.open` returned.
    """

    engine: TrunkEngine
    token: str

    def forward(self, call: TrunkCall) -> Tensor:
        """Run the session's blocks."""
        return self.engine.forward(self.token, call)

    def backward(self, step: int, grad: Tensor) -> Tensor:
        """Back-propagate a step."""
        return self.engine.backward(self.token, step, grad)

    def loss(
        self, call: TrunkCall, labels: Tensor | None, logits_to_keep: int = 0
    ) -> LossReply:
        """End the model."""
        return self.engine.loss(self.token, call, labels, logits_to_keep)


@contextmanager
def serve_local(name: str, engine: TrunkEngine) -> Iterator[str]:
    """Let ``connect("local://<name>")`` find an engine in this process.

    Yields
    ------
    str
        The address.
    """
    _ADDRESSES[name] = engine
    try:
        yield f"local://{name}"
    finally:
        del _ADDRESSES[name]


def connect_local(name: str, token: str) -> EngineTrunk:
    """Connect to an engine served in this process.

    Raises
    ------
    TrunkLost
        If there is none of that name.
    """
    if name not in _ADDRESSES:
        raise TrunkLost(
            f"no engine is served as local://{name} in this process; local:// does not "
            "reach other processes, use ray://"
        )
    return EngineTrunk(_ADDRESSES[name], token)


def _inputs(call: TrunkCall) -> dict[str, Any]:
    return {"attention_mask": call.attention_mask, "position_ids": call.position_ids}
