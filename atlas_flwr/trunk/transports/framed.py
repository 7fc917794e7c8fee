# SPDX-License-Identifier: Apache-2.0
"""A session reached by frames: what every transport has in common.

A transport brings a :class:`Request` to a :class:`FrameService` and its answer back; it
knows nothing of tensors, and the two know nothing of it. Padding does not cross (see
:mod:`atlas_flwr.wire.padding`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import StrEnum
from threading import Lock

import torch
from torch import Tensor

from atlas_flwr.errors import WireError
from atlas_flwr.trunk.engine.engine import TrunkEngine
from atlas_flwr.trunk.transports.retry import retry_while_busy
from atlas_flwr.types import Continuation, LossReply, Role, TrunkCall, TrunkClient
from atlas_flwr.wire.accounts import ByteMeter
from atlas_flwr.wire.codecs import Codec, codec_named
from atlas_flwr.wire.messages import decode_tensors, encode_tensors
from atlas_flwr.wire.padding import check_spared, padded, spare_mask, unpadded

__all__ = ["FrameService", "FramedTrunk", "Request", "Verb"]

MASKS = 16  # of steps that wait for their backward


class Verb(StrEnum):
    """What a client asks of its session."""

    FORWARD = "forward"
    BACKWARD = "backward"
    LOSS = "loss"
    EXTEND = "extend"
    FORGET = "forget"
    ECHO = "echo"


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
        For :attr:`Verb.LOSS`, and of all positions for :attr:`Verb.EXTEND`.
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
    spares_padding : bool
        Leave out rows of padding, both ways. For callers of whom nothing reads them:
        what comes back there is zero, and a gradient there is refused.

    Attributes
    ----------
    meter : ByteMeter
        What has crossed.
    away : Callable[[], AbstractContextManager[None]]
        In force while a request is away, whose answer the calling thread waits for; its
        other work is for one thread at a time.
    """

    token: str
    codec: Codec
    timeout: float = 600.0
    spares_padding: bool = False
    meter: ByteMeter = field(default_factory=ByteMeter)
    away: Callable[[], AbstractContextManager[None]] = nullcontext
    _real: dict[int, Tensor] = field(default_factory=dict, init=False)
    _mute: bool = field(default=False, init=False)  # the head learns nothing
    _sending: Lock = field(default_factory=Lock, init=False, repr=False)

    @abstractmethod
    def exchange(self, request: Request) -> bytes:
        """Bring a request to the service; return its frame.

        Raises
        ------
        TrunkError
            The service's own, or :class:`~atlas_flwr.errors.TrunkLost`.
        """

    @property
    def has_wire(self) -> bool:
        """Whether bytes leave the machine, so that their number costs time."""
        return True

    def forward(self, call: TrunkCall) -> Tensor:
        """Run the session's blocks (see :class:`~atlas_flwr.types.TrunkClient`)."""
        real = self._spared(call)
        if call.step is not None:
            self._remember(call.step, real)
            self._mute = not call.head_learns
        frame = encode_tensors(self.codec, _inputs(call, real))
        found = self._ask(Verb.FORWARD, frame, call.step)["hidden"]
        return found if real is None else padded(found, real)

    def backward(self, step: int, grad: Tensor) -> Tensor | None:
        """Back-propagate a step; nothing comes back where the head learns nothing."""
        real = self._real.get(step)
        if real is not None:
            grad = grad.cpu()  # where it goes, anyway, and is checked
            check_spared(grad, real, "tail")
        rows, mute = _rows(grad, Role.GRADIENT, real), _flag(self._mute)
        given = {"grad": rows, "real": _bits(real), "mute": mute}
        found = self._ask(Verb.BACKWARD, encode_tensors(self.codec, given), step)
        if self._mute:
            return None
        return found["grad"] if real is None else padded(found["grad"], real)

    def loss(
        self, call: TrunkCall, labels: Tensor | None, logits_to_keep: int = 0
    ) -> LossReply:
        """End the model."""
        given = None if labels is None else (labels, Role.ACTIVATION)
        real = self._spared(call)
        share = torch.tensor(call.share, dtype=torch.float64)
        ending = {
            "labels": given,
            # As the loss that is answered, not to be rounded.
            "share": None if call.share == 1 else (share, Role.ADAPTER),
            "alone": _flag(call.loss_alone),
        }
        frame = encode_tensors(self.codec, {**_inputs(call, real), **ending})
        found = self._ask(Verb.LOSS, frame, call.step, logits_to_keep)
        grad = found.get("grad")
        if grad is not None and real is not None:
            grad = padded(grad, real)
        return LossReply(found.get("loss"), found.get("logits"), grad)

    @property
    def keeps_caches(self) -> bool:
        """Whether texts can be gone on with."""
        return True

    def extend(self, call: TrunkCall, place: Continuation, keep: int = 0) -> Tensor:
        """Go on with texts that the trunk keeps."""
        real = self._spared(call) if place.turn == 0 else None
        given = {**_inputs(call, real), **_placed(place)}
        frame = encode_tensors(self.codec, given)
        answer = self._ask(Verb.EXTEND, frame, None, keep)["answer"]
        return answer if real is None else padded(answer, real[:, -keep:])

    def forget(self, texts: int) -> None:
        """Free what the trunk keeps of texts."""
        frame = encode_tensors(self.codec, _placed(Continuation(texts, 0)))
        self._ask(Verb.FORGET, frame, None)

    def echo(self, size: int) -> None:
        """Send so many bytes there and back, by which a link is measured."""
        drawn = torch.Generator().manual_seed(size)  # for links that would shrink zeros
        noise = torch.randint(256, (size,), dtype=torch.uint8, generator=drawn)
        self._ask(Verb.ECHO, encode_tensors(self.codec, _echoed(noise)), None)

    def _spared(self, call: TrunkCall) -> Tensor | None:
        return spare_mask(call.attention_mask) if self.spares_padding else None

    def _remember(self, step: int, real: Tensor | None) -> None:
        """Keep a step's mask until its backward, whoever asks for that how often."""
        self._real.pop(step, None)
        if real is not None:
            self._real[step] = real
        for old in list(self._real)[:-MASKS]:
            del self._real[old]

    def _ask(
        self, verb: Verb, frame: bytes, step: int | None, keep: int = 0
    ) -> dict[str, Tensor]:
        request = Request(verb, self.token, self.codec.name, frame, step, keep)

        def attempt() -> bytes:
            with self._sending:
                self.meter.sent(frame)
            return self.exchange(request)

        with self.away():
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
    call, real = _call(request, tensors)
    answer = engine.forward(request.token, call)
    return encode_tensors(codec, {"hidden": _rows(answer, Role.ACTIVATION, real)})


def _backward(
    engine: TrunkEngine, request: Request, tensors: dict[str, Tensor], codec: Codec
) -> bytes:
    if request.step is None:
        raise WireError("a backward request without a step")
    grad, real = _named(tensors, "grad"), tensors.get("real")
    if real is not None:
        real = real != 0
        grad = padded(grad, real)
    answer = engine.backward(request.token, request.step, grad)
    if real is not None:
        answer = answer.cpu()  # where it goes, anyway, and is checked
        check_spared(answer, real, "trunk")
    rows = None if "mute" in tensors else _rows(answer, Role.GRADIENT, real)
    return encode_tensors(codec, {"grad": rows})


def _loss(
    engine: TrunkEngine, request: Request, tensors: dict[str, Tensor], codec: Codec
) -> bytes:
    (call, real), labels = _call(request, tensors), tensors.get("labels")
    reply = engine.loss(request.token, call, labels, request.logits_to_keep)
    # The loss is a single number: nothing is saved by rounding it.
    loss = None if reply.loss is None else (reply.loss, Role.ADAPTER)
    grad = None if reply.grad is None else reply.grad.cpu()
    if grad is not None and real is not None:
        check_spared(grad, real, "trunk")
    rows = None if grad is None else _rows(grad, Role.GRADIENT, real)
    logits = None if reply.logits is None else (reply.logits, Role.ACTIVATION)
    return encode_tensors(codec, {"logits": logits, "loss": loss, "grad": rows})


def _extend(
    engine: TrunkEngine, request: Request, tensors: dict[str, Tensor], codec: Codec
) -> bytes:
    (call, real), place = _call(request, tensors), _place(tensors)
    keep = request.logits_to_keep
    answer = engine.extend(request.token, call, place, keep)
    shown = None if real is None else real[:, -keep:]
    return encode_tensors(codec, {"answer": _rows(answer, Role.ACTIVATION, shown)})


def _forget(
    engine: TrunkEngine, request: Request, tensors: dict[str, Tensor], codec: Codec
) -> bytes:
    engine.forget(request.token, _place(tensors).texts)
    return encode_tensors(codec, {})


def _echo(
    engine: TrunkEngine, request: Request, tensors: dict[str, Tensor], codec: Codec
) -> bytes:
    engine.check_open(request.token)
    return encode_tensors(codec, _echoed(_named(tensors, "echo")))


_ANSWERS = {
    Verb.FORWARD: _forward,
    Verb.BACKWARD: _backward,
    Verb.LOSS: _loss,
    Verb.EXTEND: _extend,
    Verb.FORGET: _forget,
    Verb.ECHO: _echo,
}


def _inputs(
    call: TrunkCall, real: Tensor | None
) -> dict[str, tuple[Tensor, Role] | None]:
    """Return a call's tensors; masks and positions as small integers."""
    mask, positions = call.attention_mask, call.position_ids
    return {
        "hidden": _rows(call.hidden, Role.ACTIVATION, real),
        "attention_mask": _small(mask, torch.uint8),
        "position_ids": _small(positions, torch.int32),
    }


def _echoed(noise: Tensor) -> dict[str, tuple[Tensor, Role] | None]:
    return {"echo": (noise, Role.ADAPTER)}


def _placed(place: Continuation) -> dict[str, tuple[Tensor, Role] | None]:
    """Return a place in texts as small tensors."""
    past = [] if place.past is None else [place.past]
    numbers = torch.tensor([place.texts, place.turn, *past], dtype=torch.int32)
    return {
        "place": (numbers, Role.ACTIVATION),
        "order": _small(place.order, torch.int32),
    }


def _place(tensors: dict[str, Tensor]) -> Continuation:
    numbers, order = _named(tensors, "place"), tensors.get("order")
    if numbers.shape not in ((2,), (3,)):
        shape = tuple(numbers.shape)
        raise WireError(f"a place of shape {shape}; it is 2 numbers or 3")
    texts, turn, *past = (int(n) for n in numbers)
    rows = None if order is None else order.long()
    return Continuation(texts, turn, rows, past[0] if past else None)


def _rows(values: Tensor, role: Role, real: Tensor | None) -> tuple[Tensor, Role]:
    return (values if real is None else unpadded(values, real)), role


def _flag(is_set: bool) -> tuple[Tensor, Role] | None:
    return (torch.tensor(1), Role.ACTIVATION) if is_set else None


def _bits(real: Tensor | None) -> tuple[Tensor, Role] | None:
    return None if real is None else (real.to(torch.uint8), Role.ACTIVATION)


def _small(tensor: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Role] | None:
    if tensor is None:
        return None
    additive = tensor.is_floating_point()  # a mask of 0 and -infinity
    return (tensor if additive else tensor.to(dtype)), Role.ACTIVATION


def _call(
    request: Request, tensors: dict[str, Tensor]
) -> tuple[TrunkCall, Tensor | None]:
    """Return the call, and where it is real if padding did not come with it."""
    mask, positions = tensors.get("attention_mask"), tensors.get("position_ids")
    if mask is not None and not mask.is_floating_point():
        mask = mask.long()
    if positions is not None:
        positions = positions.long()
    hidden, real = _named(tensors, "hidden"), None
    if hidden.dim() == 2:
        real = spare_mask(mask)
        if real is None:
            raise WireError("rows without the mask that says where they belong")
        hidden = padded(hidden, real)
    unread = real is not None
    share, alone = float(tensors.get("share", 1.0)), "alone" in tensors
    return TrunkCall(hidden, mask, positions, request.step, unread, share, alone), real


def _named(tensors: dict[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise WireError(f"a request without {name!r}; it has {sorted(tensors)}")
    return tensors[name]
