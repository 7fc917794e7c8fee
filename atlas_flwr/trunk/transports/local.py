# SPDX-License-Identifier: Apache-2.0
"""The trunk in this process: a module, an engine, or an engine behind frames."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from atlas_flwr.errors import SessionError, TrunkError, TrunkLost
from atlas_flwr.split.part import part_info
from atlas_flwr.split.passes import end_model, run_blocks
from atlas_flwr.split.slice_cache import SliceCache
from atlas_flwr.trunk.engine.engine import TrunkEngine
from atlas_flwr.trunk.engine.inference import KeptTexts, TextCaches
from atlas_flwr.trunk.engine.table import Limits
from atlas_flwr.trunk.transports.framed import FramedTrunk
from atlas_flwr.trunk.transports.requests import Request
from atlas_flwr.trunk.transports.retry import retry_while_busy
from atlas_flwr.trunk.transports.service import FrameService
from atlas_flwr.types import Continuation, LossReply, TrunkCall, TrunkClient
from atlas_flwr.wire.codecs import Codec

__all__ = ["EngineTrunk", "LocalTrunk", "LoopbackTrunk", "connect_local", "serve_local"]

# Engines that connect("local://name") finds, as Ray finds its named actors.
_ADDRESSES: dict[str, FrameService] = {}


@dataclass
class LocalTrunk(TrunkClient):
    """A trunk module in this process, trained as any other module.

    Gradients accumulate in the parameters of ``module``; step them with the optimiser
    that steps the rest. Nothing is retried here, so a step is back-propagated once, and
    asking again is an error. For many clients use
    :class:`atlas_flwr.trunk.TrunkEngine`.

    Parameters
    ----------
    module : nn.Module
        ``parts.trunk`` of :func:`atlas_flwr.split.partition`.
    max_open : int
        Forward passes kept for their backward; beyond it the oldest is dropped, as a
        loss that was never differentiated would stay forever.
    limits : Limits
        Of the caches of texts; the others are an engine's.
    """

    module: nn.Module
    max_open: int = 16
    limits: Limits = field(default_factory=Limits)
    _kept: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _texts: TextCaches = field(init=False)

    def __post_init__(self) -> None:
        self._texts = TextCaches(self.limits, time.monotonic)

    def forward(self, call: TrunkCall) -> Tensor:
        """Run the blocks (see :class:`~atlas_flwr.types.TrunkClient`)."""
        call = self._here(call)
        inputs = _inputs(call)
        if call.step is None:
            with torch.no_grad():
                return run_blocks(self.module, inputs_embeds=call.hidden, **inputs)
        hidden = call.hidden.detach().requires_grad_()
        with torch.enable_grad():
            answer = run_blocks(self.module, inputs_embeds=hidden, **inputs)
        self._kept[call.step] = (hidden, answer)
        for old in list(self._kept)[: -self.max_open]:
            del self._kept[old]
        return answer.detach()

    def backward(self, step: int, grad: Tensor) -> Tensor:
        """Back-propagate into the module's parameters and the hidden states."""
        if step not in self._kept:
            raise SessionError(
                f"step {step} is not open: it was back-propagated already, or dropped "
                f"for {self.max_open} newer ones (LocalTrunk's max_open)"
            )
        hidden, answer = self._kept.pop(step)
        with torch.enable_grad():
            answer.backward(grad.to(answer))
        assert hidden.grad is not None
        return hidden.grad

    def loss(
        self, call: TrunkCall, labels: Tensor | None, logits_to_keep: int = 0
    ) -> LossReply:
        """End the model, back-propagating if the call has a step."""
        call = self._here(call)
        if labels is not None:
            labels = labels.to(call.hidden.device)
        training = call.step is not None and labels is not None
        hidden = call.hidden.detach().requires_grad_(training)
        with torch.set_grad_enabled(training):
            out = end_model(
                self.module,
                hidden,
                labels=labels,
                logits_to_keep=logits_to_keep,
                loss_alone=call.loss_alone,
                **_inputs(call),
            )
            loss = out["loss"] if labels is not None else None
            if training:
                assert loss is not None
                loss = loss * call.share
                loss.backward()
        detached = None if loss is None else loss.detach()
        is_alone = call.loss_alone and labels is not None
        logits = None if is_alone else out["logits"].detach()
        return LossReply(detached, logits, hidden.grad)

    @property
    def keeps_caches(self) -> bool:
        """Whether texts can be gone on with."""
        return True

    def extend(self, call: TrunkCall, place: Continuation, keep: int = 0) -> Tensor:
        """Go on with texts that are kept here."""
        call = self._here(call)
        kept = self._texts.take("", place, self._new_texts)
        inputs = kept.inputs(call, place)
        with torch.no_grad():
            if self._ends_model:
                ended = end_model(
                    self.module, call.hidden, logits_to_keep=keep, **inputs
                )
                answer: Tensor = ended["logits"]
            else:
                hidden = call.hidden
                answer = run_blocks(self.module, inputs_embeds=hidden, **inputs)
                answer = answer[:, -keep:]
        self._texts.keep("", place.texts, kept)
        return answer

    def forget(self, texts: int) -> None:
        """Free what is kept of texts."""
        self._texts.forget("", texts)

    @property
    def _ends_model(self) -> bool:
        info = part_info(self.module)
        return info.stop == info.num_layers

    def _new_texts(self) -> KeptTexts:
        config: Any = self.module.config
        return KeptTexts(SliceCache(config, part_info(self.module).start))

    def _here(self, call: TrunkCall) -> TrunkCall:
        """Bring a call to the module's device; the crossing takes answers back."""
        device = next(self.module.parameters()).device
        mask, positions = call.attention_mask, call.position_ids
        return replace(
            call,
            hidden=call.hidden.to(device),
            attention_mask=None if mask is None else mask.to(device),
            position_ids=None if positions is None else positions.to(device),
        )


@dataclass(frozen=True)
class EngineTrunk(TrunkClient):
    """A session of an engine in this process, called directly.

    Parameters
    ----------
    engine : TrunkEngine
        The engine.
    token : str
        What :meth:`~atlas_flwr.trunk.TrunkEngine.open` returned.
    timeout : float
        Seconds to wait for a busy engine; by default a busy one is an error at once,
        as waiting helps only where other threads use it.
    """

    engine: TrunkEngine
    token: str
    timeout: float = 0.0

    def forward(self, call: TrunkCall) -> Tensor:
        """Run the session's blocks."""
        return retry_while_busy(
            lambda: self.engine.forward(self.token, call), self.timeout
        )

    def backward(self, step: int, grad: Tensor) -> Tensor:
        """Back-propagate a step."""
        return self.engine.backward(self.token, step, grad)

    def loss(
        self, call: TrunkCall, labels: Tensor | None, logits_to_keep: int = 0
    ) -> LossReply:
        """End the model."""
        return self.engine.loss(self.token, call, labels, logits_to_keep)

    @property
    def keeps_caches(self) -> bool:
        """Whether texts can be gone on with."""
        return True

    def extend(self, call: TrunkCall, place: Continuation, keep: int = 0) -> Tensor:
        """Go on with texts that the engine keeps."""
        return retry_while_busy(
            lambda: self.engine.extend(self.token, call, place, keep), self.timeout
        )

    def forget(self, texts: int) -> None:
        """Free what the engine keeps of texts."""
        self.engine.forget(self.token, texts)


@dataclass(kw_only=True)
class LoopbackTrunk(FramedTrunk):
    """A session of an engine in this process, reached by frames as from afar.

    Codecs round, and bytes are counted, as they would be between machines.

    Parameters
    ----------
    service : FrameService
        The engine's.
    """

    service: FrameService

    @property
    def has_wire(self) -> bool:
        """None."""
        return False

    def exchange(self, request: Request) -> bytes:
        """Call the service."""
        return self.service.answer(request)


@contextmanager
def serve_local(name: str, engine: TrunkEngine) -> Iterator[str]:
    """Let ``connect("local://<name>")`` find an engine in this process.

    Yields
    ------
    str
        The address.

    Raises
    ------
    TrunkError
        If another engine is served under that name.
    """
    service = FrameService(engine)
    if _ADDRESSES.setdefault(name, service) is not service:
        raise TrunkError(f"local://{name} is served already; choose another name")
    try:
        yield f"local://{name}"
    finally:
        del _ADDRESSES[name]


def connect_local(name: str, token: str, codec: Codec) -> LoopbackTrunk:
    """Connect to an engine served in this process.

    Raises
    ------
    TrunkLost
        If there is none of that name.
    """
    service = _ADDRESSES.get(name)
    if service is None:
        raise TrunkLost(
            f"no engine is served as local://{name} in this process; local:// does not "
            "reach other processes, use ray://"
        )
    return LoopbackTrunk(token=token, codec=codec, service=service)


def _inputs(call: TrunkCall) -> dict[str, Any]:
    return {"attention_mask": call.attention_mask, "position_ids": call.position_ids}
