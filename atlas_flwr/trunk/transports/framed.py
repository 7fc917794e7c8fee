# SPDX-License-Identifier: Apache-2.0
"""A session reached by frames: what every transport has in common.

A transport brings a :class:`~atlas_flwr.trunk.transports.requests.Request` to a
:class:`~atlas_flwr.trunk.transports.service.FrameService` and its answer back; it knows
nothing of tensors, and the two know nothing of it. Padding does not cross (see
:mod:`atlas_flwr.wire.padding`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from threading import Lock

import torch
from torch import Tensor

from atlas_flwr.errors import WireError
from atlas_flwr.trunk.seams import ALONE, Handover
from atlas_flwr.trunk.transports.requests import (
    PATIENCE,
    Given,
    Request,
    Verb,
    bits,
    echoed,
    exact,
    flag,
    inputs,
    named,
    placed,
    rows_of,
)
from atlas_flwr.trunk.transports.retry import retry_while_busy
from atlas_flwr.types import (
    MOST_IN_FLIGHT,
    Continuation,
    LossReply,
    Role,
    TrunkCall,
    TrunkClient,
)
from atlas_flwr.wire.accounts import ByteMeter
from atlas_flwr.wire.codecs import Codec
from atlas_flwr.wire.messages import decode_tensors, encode_tensors
from atlas_flwr.wire.padding import check_spared, padded, spare_mask

__all__ = ["FramedTrunk"]

HANDED = ("answer", "grad", "hidden")


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

    token: str = field(repr=False)
    codec: Codec
    timeout: float = PATIENCE
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

    def close(self) -> None:
        """Close the connection, where there is one of its own."""

    def forward(self, call: TrunkCall, over: Handover = ALONE) -> Tensor:
        """Run the session's blocks (see :class:`~atlas_flwr.types.TrunkClient`).

        What goes to a neighbour in a chain comes back as it was given.
        """
        real = self._spared(call)
        if call.step is not None:
            self._remember(call.step, real)
            self._mute = not call.head_learns
        given = _left_out(inputs(call, real), "hidden", over)
        answer = self._ask(Verb.FORWARD, given, call.step, over=over)
        if over.goes:
            return call.hidden
        found = named(answer, "hidden")
        return found if real is None else padded(found, real)

    def backward(
        self, step: int, grad: Tensor, over: Handover = ALONE
    ) -> Tensor | None:
        """Back-propagate a step; nothing comes back where the head learns nothing."""
        real = self._real.get(step)
        if real is not None and not over.comes:
            grad = grad.cpu()  # where it goes, anyway, and is checked
            check_spared(grad, real, "tail")
        rows, mute = rows_of(grad, Role.GRADIENT, real), flag(self._mute)
        given = {"grad": rows, "real": bits(real), "mute": mute}
        given = _left_out(given, "grad", over)
        found = self._ask(Verb.BACKWARD, given, step, over=over)
        if self._mute:
            return None
        if over.goes:
            return grad
        return found["grad"] if real is None else padded(found["grad"], real)

    def loss(
        self,
        call: TrunkCall,
        labels: Tensor | None,
        logits_to_keep: int = 0,
        over: Handover = ALONE,
    ) -> LossReply:
        """End the model; a gradient that goes to a neighbour does not come back."""
        real = self._spared(call)
        share = torch.tensor(call.share, dtype=torch.float64)
        ending = {
            "labels": exact(labels),
            # As the loss that is answered, not to be rounded.
            "share": None if call.share == 1 else (share, Role.ADAPTER),
            "alone": flag(call.loss_alone),
        }
        whole = _left_out({**inputs(call, real), **ending}, "hidden", over)
        found = self._ask(Verb.LOSS, whole, call.step, logits_to_keep, over)
        grad = found.get("grad")
        if grad is not None and real is not None:
            grad = padded(grad, real)
        return LossReply(found.get("loss"), found.get("logits"), grad)

    @property
    def keeps_caches(self) -> bool:
        """Whether texts can be gone on with."""
        return True

    def extend(
        self,
        call: TrunkCall,
        place: Continuation,
        keep: int = 0,
        over: Handover = ALONE,
    ) -> Tensor:
        """Go on with texts that the trunk keeps."""
        real = self._spared(call) if place.turn == 0 else None
        given = _left_out({**inputs(call, real), **placed(place)}, "hidden", over)
        found = self._ask(Verb.EXTEND, given, None, keep, over)
        if over.goes:
            return call.hidden
        answer = named(found, "answer")
        return answer if real is None else padded(answer, real[:, -keep:])

    def forget(self, texts: int) -> None:
        """Free what the trunk keeps of texts."""
        self._ask(Verb.FORGET, placed(Continuation(texts, 0)), None)

    def echo(self, size: int) -> None:
        """Send so many bytes there and back, by which a link is measured."""
        drawn = torch.Generator().manual_seed(size)  # for links that would shrink zeros
        noise = torch.randint(256, (size,), dtype=torch.uint8, generator=drawn)
        self._ask(Verb.ECHO, echoed(noise), None)

    def _spared(self, call: TrunkCall) -> Tensor | None:
        return spare_mask(call.attention_mask) if self.spares_padding else None

    def _remember(self, step: int, real: Tensor | None) -> None:
        """Keep a step's mask until its backward, whoever asks for that how often."""
        self._real.pop(step, None)
        if real is not None:
            self._real[step] = real
        for old in list(self._real)[:-MOST_IN_FLIGHT]:
            del self._real[old]

    def _ask(
        self,
        verb: Verb,
        given: dict[str, Given],
        step: int | None,
        keep: int = 0,
        over: Handover = ALONE,
    ) -> dict[str, Tensor]:
        frame, name = encode_tensors(self.codec, given), self.codec.name
        request = Request(
            verb, self.token, name, frame, step, keep, over.ticket, self.timeout
        )

        def attempt() -> bytes:
            with self._sending:
                self.meter.sent(frame)
            return self.exchange(request)

        with self.away():
            answer = retry_while_busy(attempt, self.timeout)
        self.meter.received(answer)
        found = decode_tensors(self.codec, answer)
        if over.goes and not found.keys().isdisjoint(HANDED):
            raise WireError(
                f"a host in a chain answered {sorted(found)}, which it was to hand to "
                "its neighbour: install the same atlas-flwr everywhere"
            )
        return found


def _left_out(given: dict[str, Given], name: str, over: Handover) -> dict[str, Given]:
    """Leave out what a neighbour has brought."""
    return {**given, name: None} if over.comes else given
