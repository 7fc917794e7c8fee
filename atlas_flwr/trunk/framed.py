# SPDX-License-Identifier: Apache-2.0
"""A session reached by frames: what every transport has in common.

A transport brings a :class:`Request` to a :class:`FrameService` and its answer back; it
knows nothing of tensors, and the two know nothing of it.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from torch import Tensor

from atlas_flwr.errors import WireError
from atlas_flwr.trunk.engine import TrunkEngine
from atlas_flwr.trunk.retry import retry_while_busy
from atlas_flwr.types import LossReply, Role, TrunkCall, TrunkClient
from atlas_flwr.wire.accounts import ByteMeter
from atlas_flwr.wire.codecs import Codec, codec_named
from atlas_flwr.wire.messages import decode_tensors, encode_tensors

__all__ = ["FrameService", "FramedTrunk", "Request", "Verb"]


class Verb(StrEnum):
    """What a client asks of its session."""

    FORWARD = "forward"
    BACKWARD = "backward"
    LOSS = "loss"


@dataclass(frozen=True)
class Request:
    """A client's call as it crosses.

    Attributes
    ----------
    verb : Verb
        The method of :class:`~atlas_flwr.types.TrunkClient`.
    token : str
        The session's.
    codec : str
        Of the frame, and of the answer's.
    frame : bytes
        The tensors.
    step : int, optional
        As in :class:`~atlas_flwr.types.TrunkCall`.
    logits_to_keep : int
        For :attr:`Verb.LOSS`.
    """

    verb: Verb
    token: str
    codec: str
    frame: bytes
    step: int | None = None
    logits_to_keep: int = 0


@dataclass
class FramedTrunk(TrunkClient):
    """A client's session over a transport, which derives from this.

    Parameters
    ----------
    token : str
        The session's.
    codec : Codec
        How tensors cross.
    timeout : float
        Seconds to wait for an answer, a busy trunk's included.

    Attributes
    ----------
    meter : ByteMeter
        What has crossed.
    """

    token: str
    codec: Codec
    timeout: float = 600.0
    meter: ByteMeter = field(default_factory=ByteMeter)

    @abstractmethod
    def exchange(self, request: Request) -> bytes:
        """Bring a request to the service; return its frame.

        Raises
        ------
        TrunkError
            The service's own, or :class:`~atlas_flwr.errors.TrunkLost`.
        """

    def forward(self, call: TrunkCall) -> Tensor:
        """Run the session's blocks (see :class:`~atlas_flwr.types.TrunkClient`)."""
        frame = encode_tensors(self.codec, _inputs(call))
        return self._ask(Verb.FORWARD, frame, call.step)["hidden"]

    def backward(self, step: int, grad: Tensor) -> Tensor:
        """Back-propagate a step."""
        frame = encode_tensors(self.codec, {"grad": (grad, Role.GRADIENT)})
        return self._ask(Verb.BACKWARD, frame, step)["grad"]

    def loss(
        self, call: TrunkCall, labels: Tensor | None, logits_to_keep: int = 0
    ) -> LossReply:
        """End the model."""
        given = None if labels is None else (labels, Role.ACTIVATION)
        frame = encode_tensors(self.codec, {**_inputs(call), "labels": given})
        found = self._ask(Verb.LOSS, frame, call.step, logits_to_keep)
        return LossReply(found.get("loss"), found["logits"], found.get("grad"))

    def _ask(
        self, verb: Verb, frame: bytes, step: int | None, keep: int = 0
    ) -> dict[str, Tensor]:
        request = Request(verb, self.token, self.codec.name, frame, step, keep)

        def attempt() -> bytes:
            self.meter.sent(frame)
            return self.exchange(request)

        answer = retry_while_busy(attempt, self.timeout)
        self.meter.received(answer)
        return decode_tensors(self.codec, answer)


@dataclass(frozen=True)
class FrameService:
    """The trunk's end: requests in, frames out.

    Parameters
    ----------
    engine : TrunkEngine
        Safe to call from many threads, and so is this.
    """

    engine: TrunkEngine

    def answer(self, request: Request) -> bytes:
        """Answer a request.

        Raises
        ------
        WireError
            If its frame cannot be read.
        TrunkError
            See :class:`~atlas_flwr.trunk.TrunkEngine`.
        """
        codec = codec_named(request.codec)
        tensors = decode_tensors(codec, request.frame)
        frame = _ANSWERS[request.verb](self.engine, request, tensors, codec)
        self.engine.count_bytes(len(request.frame), len(frame))
        return frame


def _forward(
    engine: TrunkEngine, request: Request, tensors: dict[str, Tensor], codec: Codec
) -> bytes:
    answer = engine.forward(request.token, _call(request, tensors))
    return encode_tensors(codec, {"hidden": (answer, Role.ACTIVATION)})


def _backward(
    engine: TrunkEngine, request: Request, tensors: dict[str, Tensor], codec: Codec
) -> bytes:
    if request.step is None:
        raise WireError("a backward request without a step")
    answer = engine.backward(request.token, request.step, _named(tensors, "grad"))
    return encode_tensors(codec, {"grad": (answer, Role.GRADIENT)})


def _loss(
    engine: TrunkEngine, request: Request, tensors: dict[str, Tensor], codec: Codec
) -> bytes:
    call, labels = _call(request, tensors), tensors.get("labels")
    reply = engine.loss(request.token, call, labels, request.logits_to_keep)
    # The loss is a single number: nothing is saved by rounding it.
    loss = None if reply.loss is None else (reply.loss, Role.ADAPTER)
    grad = None if reply.grad is None else (reply.grad, Role.GRADIENT)
    logits = (reply.logits, Role.ACTIVATION)
    return encode_tensors(codec, {"logits": logits, "loss": loss, "grad": grad})


_ANSWERS = {Verb.FORWARD: _forward, Verb.BACKWARD: _backward, Verb.LOSS: _loss}


def _inputs(call: TrunkCall) -> dict[str, tuple[Tensor, Role] | None]:
    """Return a call's tensors; masks and positions as small integers."""
    mask, positions = call.attention_mask, call.position_ids
    return {
        "hidden": (call.hidden, Role.ACTIVATION),
        "attention_mask": _small(mask, torch.uint8),
        "position_ids": _small(positions, torch.int32),
    }


def _small(tensor: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Role] | None:
    if tensor is None:
        return None
    additive = tensor.is_floating_point()  # a mask of 0 and -infinity
    return (tensor if additive else tensor.to(dtype)), Role.ACTIVATION


def _call(request: Request, tensors: dict[str, Tensor]) -> TrunkCall:
    mask, positions = tensors.get("attention_mask"), tensors.get("position_ids")
    if mask is not None and not mask.is_floating_point():
        mask = mask.long()
    if positions is not None:
        positions = positions.long()
    return TrunkCall(_named(tensors, "hidden"), mask, positions, request.step)


def _named(tensors: dict[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise WireError(f"a request without {name!r}; it has {sorted(tensors)}")
    return tensors[name]
