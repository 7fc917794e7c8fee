# SPDX-License-Identifier: Apache-2.0
"""The trunk's end of every transport: requests in, frames out.

Padding does not cross (see :mod:`atlas_flwr.wire.padding`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from atlas_flwr.errors import SessionError, WireError
from atlas_flwr.trunk.engine.engine import TrunkEngine
from atlas_flwr.trunk.engine.session import SessionSpec
from atlas_flwr.trunk.transports.handing import Handing
from atlas_flwr.trunk.transports.requests import (
    Given,
    Request,
    Verb,
    call_of,
    echoed,
    named,
    place_of,
    rows_of,
)
from atlas_flwr.types import Role
from atlas_flwr.wire.codecs import Codec, codec_named
from atlas_flwr.wire.messages import decode_tensors, encode_tensors
from atlas_flwr.wire.padding import check_spared, padded

__all__ = ["FrameService"]


@dataclass(frozen=True)
class FrameService:
    """The trunk's end: requests in, frames out.

    Parameters
    ----------
    engine : TrunkEngine
        Safe to call from many threads, and so is this.
    handing : Handing
        Brings neighbours in a chain what they go on with, and keeps what they bring.
    """

    engine: TrunkEngine
    handing: Handing = field(default_factory=Handing)

    def answer(self, request: Request) -> bytes:
        """Answer a request.

        Raises
        ------
        WireError
            If its frame cannot be read.
        TrunkError
            See :class:`~atlas_flwr.trunk.TrunkEngine`.
        """
        came, codec = time.monotonic(), codec_named(request.codec)
        tensors = decode_tensors(codec, request.frame)
        answer: dict[str, Given] = {}
        if request.verb is Verb.HAND:
            self.handing.keep(self.engine, request, tensors)
        elif request.ticket and request.verb in _CROSSINGS:
            answer = self._in_chain(request, tensors, codec, came)
        else:
            answer = _ANSWERS[request.verb](self.engine, request, tensors)
        frame = encode_tensors(codec, answer)
        self.engine.count_bytes(len(request.frame), len(frame))
        return frame

    def _in_chain(
        self, request: Request, tensors: dict[str, Tensor], codec: Codec, came: float
    ) -> dict[str, Given]:
        """Go on with what a neighbour brought, or hand it the answer, or both."""
        engine, handing = self.engine, self.handing
        crossing = _CROSSINGS[request.verb]
        seams = _opened(engine, request.token).seams
        if seams is None:
            raise SessionError(
                "this host was told of no neighbours in a chain; let the ServerApp run "
                "with peer-chains='direct', too, and the same atlas-flwr"
            )
        if crossing.comes not in tensors:
            found = handing.taken(seams, request.ticket, crossing.comes)
            # As the guest would have sent it on: a lossy codec rounds once more.
            sent = encode_tensors(codec, {crossing.comes: (found, crossing.role)})
            tensors |= decode_tensors(codec, sent)
        neighbour = seams.back if crossing.goes == "grad" else seams.onward
        with handing.under_way() if neighbour else nullcontext():
            answer = _ANSWERS[request.verb](engine, request, tensors)
            made = answer.get(crossing.made)
            if neighbour and made is not None:
                del answer[crossing.made]
                frame = encode_tensors(codec, {crossing.goes: made})
                handing.hand(engine, seams, neighbour, request, frame, came)
        return answer


class _Crossing(NamedTuple):
    """What of a verb's tensors neighbours hand to each other.

    Attributes
    ----------
    comes : str
        What the host goes on with.
    role : Role
        Of that.
    made : str
        What it makes of it.
    goes : str
        As the neighbour knows that.
    """

    comes: str
    role: Role
    made: str
    goes: str


_CROSSINGS: Mapping[Verb, _Crossing] = {
    Verb.FORWARD: _Crossing("hidden", Role.ACTIVATION, "hidden", "hidden"),
    Verb.BACKWARD: _Crossing("grad", Role.GRADIENT, "grad", "grad"),
    Verb.LOSS: _Crossing("hidden", Role.ACTIVATION, "grad", "grad"),
    Verb.EXTEND: _Crossing("hidden", Role.ACTIVATION, "answer", "hidden"),
}


def _opened(engine: TrunkEngine, token: str) -> SessionSpec:
    """Return what a session was opened with, for its guest alone."""
    spec = engine.check_open(token)
    if spec.seams is not None and spec.seams.key == token:
        raise SessionError(
            "with a neighbour's key something is brought to a session, and nothing is "
            "asked of it; that takes the session's own token"
        )
    return spec


def _forward(
    engine: TrunkEngine, request: Request, tensors: dict[str, Tensor]
) -> dict[str, Given]:
    call, real = call_of(request, tensors)
    answer = engine.forward(request.token, call)
    return {"hidden": rows_of(answer, Role.ACTIVATION, real)}


def _backward(
    engine: TrunkEngine, request: Request, tensors: dict[str, Tensor]
) -> dict[str, Given]:
    if request.step is None:
        raise WireError("a backward request without a step")
    grad, real = named(tensors, "grad"), tensors.get("real")
    if real is not None:
        real = real != 0
        grad = padded(grad, real)
    answer = engine.backward(request.token, request.step, grad)
    if real is not None:
        answer = answer.cpu()  # where it goes, anyway, and is checked
        check_spared(answer, real, "trunk")
    rows = None if "mute" in tensors else rows_of(answer, Role.GRADIENT, real)
    return {"grad": rows}


def _loss(
    engine: TrunkEngine, request: Request, tensors: dict[str, Tensor]
) -> dict[str, Given]:
    (call, real), labels = call_of(request, tensors), tensors.get("labels")
    reply = engine.loss(request.token, call, labels, request.logits_to_keep)
    # The loss is a single number: nothing is saved by rounding it.
    loss = None if reply.loss is None else (reply.loss, Role.ADAPTER)
    grad = None if reply.grad is None else reply.grad.cpu()
    if grad is not None and real is not None:
        check_spared(grad, real, "trunk")
    rows = None if grad is None else rows_of(grad, Role.GRADIENT, real)
    logits = None if reply.logits is None else (reply.logits, Role.LOGITS)
    return {"logits": logits, "loss": loss, "grad": rows}


def _extend(
    engine: TrunkEngine, request: Request, tensors: dict[str, Tensor]
) -> dict[str, Given]:
    (call, real), place = call_of(request, tensors), place_of(tensors)
    ends_model = _opened(engine, request.token).plan.tail is None
    role = Role.LOGITS if ends_model else Role.ACTIVATION
    answer = engine.extend(request.token, call, place, request.logits_to_keep)
    shown = None if real is None else real[:, -request.logits_to_keep :]
    return {"answer": rows_of(answer, role, shown)}


def _forget(
    engine: TrunkEngine, request: Request, tensors: dict[str, Tensor]
) -> dict[str, Given]:
    engine.forget(request.token, place_of(tensors).texts)
    return {}


def _echo(
    engine: TrunkEngine, request: Request, tensors: dict[str, Tensor]
) -> dict[str, Given]:
    _opened(engine, request.token)
    return echoed(named(tensors, "echo"))


_ANSWERS = {
    Verb.FORWARD: _forward,
    Verb.BACKWARD: _backward,
    Verb.LOSS: _loss,
    Verb.EXTEND: _extend,
    Verb.FORGET: _forget,
    Verb.ECHO: _echo,
}
