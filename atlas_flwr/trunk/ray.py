# SPDX-License-Identifier: Apache-2.0
"""The Ray transport: the engine in a named actor, called by clients in any worker.

Tensors cross as encoded bytes. The actor asks for no CPU, since Flower's client pool
takes all that the Ray cluster declares; its threads are its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import ray
import torch
from ray.exceptions import ActorDiedError, GetTimeoutError, RayActorError, RayTaskError
from torch import Tensor

from atlas_flwr.errors import AtlasError, TrunkBusy, TrunkError, TrunkLost
from atlas_flwr.lora import AdapterState
from atlas_flwr.split import SplitPlan, load_parts
from atlas_flwr.trunk.engine import Limits, TrunkEngine, TrunkStats
from atlas_flwr.trunk.session import SessionSpec
from atlas_flwr.types import LossReply, Role, Side, TrunkCall, TrunkClient
from atlas_flwr.wire import ByteMeter, Codec, codec_named

__all__ = ["NAMESPACE", "RayTrunk", "RayTrunkHost", "TrunkSource", "start_ray_trunk"]

NAMESPACE = "atlas-flwr"
Frame = bytes | None
T = TypeVar("T")


@dataclass(frozen=True)
class TrunkSource:
    """What the actor loads.

    Attributes
    ----------
    path : str
        A local folder or hub name.
    plan : SplitPlan
        Covers the trunks of all clients: the shortest head and tail.
    classes : int
        Outputs of a classifier; 0 for a causal language model.
    dtype : str
        E.g. ``"float32"``.
    device : str
        E.g. ``"cpu"``.
    seed : int
        Initialises what the checkpoint lacks.
    recompute : bool
        See :class:`~atlas_flwr.trunk.TrunkEngine`.
    limits : Limits
        See there.
    """

    path: str
    plan: SplitPlan
    classes: int = 0
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = 0
    recompute: bool = False
    limits: Limits = field(default_factory=Limits)

    def engine(self) -> TrunkEngine:
        """Load the trunk, and nothing else of the model."""
        from transformers import (
            AutoModelForCausalLM,
            AutoModelForSequenceClassification,
        )

        overrides = {"num_labels": self.classes} if self.classes else {}
        parts = load_parts(
            self.path,
            self.plan,
            sides=(Side.TRUNK,),
            auto_class=(
                AutoModelForSequenceClassification
                if self.classes
                else AutoModelForCausalLM
            ),
            dtype=getattr(torch, self.dtype),
            device=self.device,
            config_overrides=overrides,
            seed=self.seed,
        )
        return TrunkEngine(parts.trunk, limits=self.limits, recompute=self.recompute)


class TrunkActor:
    """The actor's side: frames in, frames out."""

    def __init__(self, source: TrunkSource, threads: int) -> None:
        torch.set_num_threads(1 if threads > 1 else threads)
        self.engine = source.engine()

    def open(self, spec: SessionSpec) -> str:
        """Open a session."""
        return self.engine.open(spec)

    def adapters(self, token: str) -> AdapterState:
        """Copy out what a session has trained."""
        return self.engine.adapters(token)

    def close(self, token: str) -> None:
        """Close a session."""
        self.engine.close(token)

    def stats(self) -> TrunkStats:
        """Return an account."""
        return self.engine.stats()

    def forward(self, token: str, codec: str, frames: list[Frame], step: Any) -> bytes:
        """Run a session's blocks."""
        torch.set_num_threads(1)
        answer = self.engine.forward(token, _call(codec_named(codec), frames, step))
        return _encode(codec_named(codec), answer, Role.ACTIVATION)

    def backward(self, token: str, codec: str, frame: bytes, step: int) -> bytes:
        """Back-propagate a step."""
        torch.set_num_threads(1)
        grad = _decode(codec_named(codec), frame)
        answer = self.engine.backward(token, step, grad)
        return _encode(codec_named(codec), answer, Role.GRADIENT)

    def loss(
        self, token: str, codec: str, frames: list[Frame], step: Any, keep: int
    ) -> list[Frame]:
        """End the model."""
        torch.set_num_threads(1)
        how = codec_named(codec)
        labels = None if frames[3] is None else _decode(how, frames[3])
        reply = self.engine.loss(token, _call(how, frames, step), labels, keep)
        return [
            _optional(how, reply.loss, Role.ADAPTER),
            _encode(how, reply.logits, Role.ACTIVATION),
            _optional(how, reply.grad, Role.GRADIENT),
        ]


def start_ray_trunk(
    name: str, source: TrunkSource, *, threads: int = 2, timeout: float = 300.0
) -> RayTrunkHost:
    """Start the actor and wait until it has loaded its blocks.

    Parameters
    ----------
    name : str
        Clients connect to ``ray://<name>``.
    source : TrunkSource
        What to load.
    threads : int
        Calls that are worked on at once, each on one CPU thread.
    timeout : float
        Seconds to wait, for Ray (which Flower's simulation starts a moment after the
        ServerApp) and for loading.

    Raises
    ------
    TrunkError
        If Ray is not running in this process.
    """
    deadline = time.monotonic() + timeout
    while not ray.is_initialized():
        if time.monotonic() > deadline:
            raise TrunkError(
                f"Ray did not start in this process within {timeout:.0f} s; the Ray "
                "trunk is for Flower's simulation (flwr run on a local SuperLink)"
            )
        time.sleep(0.05)
    actor = (
        ray.remote(TrunkActor)
        .options(
            name=name,
            namespace=NAMESPACE,
            num_cpus=0,
            num_gpus=1 if source.device == "cuda" else 0,
            max_concurrency=threads,
            max_restarts=0,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
        )
        .remote(source, threads)
    )
    host = RayTrunkHost(actor, name)
    host.ping(max(deadline - time.monotonic(), 1.0))
    return host


@dataclass(frozen=True)
class RayTrunkHost:
    """The owner's handle of the actor (see :class:`~atlas_flwr.trunk.TrunkHost`)."""

    actor: Any
    name: str
    timeout: float = 600.0

    @property
    def address(self) -> str:
        """What clients pass to :func:`atlas_flwr.trunk.connect`."""
        return f"ray://{self.name}"

    def open(self, spec: SessionSpec) -> str:
        """Open a session."""
        return str(self._get(self.actor.open.remote(spec)))

    def adapters(self, token: str) -> AdapterState:
        """Copy out what a session has trained."""
        state = self._get(self.actor.adapters.remote(token))
        assert isinstance(state, AdapterState)
        return state

    def close(self, token: str) -> None:
        """Close a session."""
        self._get(self.actor.close.remote(token))

    def stats(self) -> TrunkStats:
        """Return an account."""
        stats = self._get(self.actor.stats.remote())
        assert isinstance(stats, TrunkStats)
        return stats

    def ping(self, timeout: float | None = None) -> None:
        """Check that the actor lives."""
        _result(self.actor.stats.remote(), timeout or self.timeout)

    def stop(self) -> None:
        """End the actor."""
        ray.kill(self.actor)

    def _get(self, reference: Any) -> Any:
        return _result(reference, self.timeout)


@dataclass
class RayTrunk(TrunkClient):
    """A client's session on the actor.

    Parameters
    ----------
    name : str
        The actor's name.
    token : str
        The session's.
    codec : Codec
        How tensors cross.
    timeout : float
        Seconds to wait for an answer, and in all for a busy trunk.
    """

    name: str
    token: str
    codec: Codec
    timeout: float = 600.0
    meter: ByteMeter = field(default_factory=ByteMeter)

    def __post_init__(self) -> None:
        try:
            self._actor: Any = ray.get_actor(self.name, namespace=NAMESPACE)
        except ValueError:
            raise _lost(self.name) from None

    def forward(self, call: TrunkCall) -> Tensor:
        """Run the session's blocks."""
        frames = self._frames(call)

        def ask() -> Any:
            return self._actor.forward.remote(
                self.token, self.codec.name, frames, call.step
            )

        return self._received(self._patiently(ask), Role.ACTIVATION).to(call.hidden)

    def backward(self, step: int, grad: Tensor) -> Tensor:
        """Back-propagate a step."""
        frame = self._sent(grad, Role.GRADIENT)

        def ask() -> Any:
            return self._actor.backward.remote(self.token, self.codec.name, frame, step)

        return self._received(self._patiently(ask), Role.GRADIENT).to(grad)

    def loss(
        self, call: TrunkCall, labels: Tensor | None, logits_to_keep: int = 0
    ) -> LossReply:
        """End the model."""
        sent = None if labels is None else self._sent(labels, Role.ACTIVATION)
        frames = [*self._frames(call), sent]

        def ask() -> Any:
            return self._actor.loss.remote(
                self.token, self.codec.name, frames, call.step, logits_to_keep
            )

        loss, logits, grad = self._patiently(ask)
        return LossReply(
            None if loss is None else self._received(loss, Role.ACTIVATION),
            self._received(logits, Role.ACTIVATION),
            None if grad is None else self._received(grad, Role.GRADIENT),
        )

    def _frames(self, call: TrunkCall) -> list[Frame]:
        rest = (call.attention_mask, call.position_ids)
        small = [None if t is None else t.to(torch.int32) for t in rest]
        return [
            self._sent(call.hidden, Role.ACTIVATION),
            *(None if t is None else self._sent(t, Role.ACTIVATION) for t in small),
        ]

    def _sent(self, tensor: Tensor, role: Role) -> bytes:
        frame = _encode(self.codec, tensor, role)
        self.meter.up[role] += len(frame)
        return frame

    def _received(self, frame: bytes, role: Role) -> Tensor:
        self.meter.down[role] += len(frame)
        return _decode(self.codec, frame)

    def _patiently(self, ask: Callable[[], Any]) -> Any:
        """Ask again while the trunk is busy."""
        deadline, pause = time.monotonic() + self.timeout, 0.05
        while True:
            try:
                return _result(ask(), self.timeout)
            except TrunkBusy:
                if time.monotonic() + pause > deadline:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, 2.0)


def _result(reference: Any, timeout: float) -> Any:
    """Wait for an answer; errors of ours come through as themselves."""
    try:
        return ray.get(reference, timeout=timeout)
    except RayTaskError as error:
        if isinstance(error.cause, AtlasError):
            raise error.cause from None
        raise
    except (RayActorError, ActorDiedError) as error:
        raise _lost(str(error).partition("\n")[0]) from None
    except GetTimeoutError:
        raise TrunkError(
            f"the trunk gave no answer in {timeout:.0f} s; it is overloaded (see "
            "trunk-threads), or its machine is"
        ) from None


def _lost(what: str) -> TrunkLost:
    return TrunkLost(
        f"the trunk is gone ({what}), and with it the steps of this round; continue the "
        "run from its last checkpoint with --run-config \"resume='<run folder>'\""
    )


def _call(codec: Codec, frames: list[Frame], step: int | None) -> TrunkCall:
    hidden, mask, positions = (
        None if f is None else _decode(codec, f) for f in frames[:3]
    )
    assert hidden is not None
    ids = None if positions is None else positions.long()
    return TrunkCall(hidden, mask, ids, step)


def _encode(codec: Codec, tensor: Tensor, role: Role) -> bytes:
    plain = tensor.detach().cpu()
    if plain.dtype in (torch.bfloat16, torch.float16):
        plain = plain.float()
    return codec.encode(plain.numpy(), role)


def _optional(codec: Codec, tensor: Tensor | None, role: Role) -> Frame:
    return None if tensor is None else _encode(codec, tensor, role)


def _decode(codec: Codec, frame: bytes) -> Tensor:
    array = codec.decode(frame)
    return torch.from_numpy(np.require(array, requirements="W"))
