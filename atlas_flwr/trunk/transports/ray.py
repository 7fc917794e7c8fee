# SPDX-License-Identifier: Apache-2.0
"""The Ray transport: the engine in a named actor, called by clients in any worker.

The actor asks for no CPU, since Flower's client pool takes all that the Ray cluster
declares; its threads are its own. Many calls wait in it, so that those which wait
together can share a pass. Its owner's calls have a queue of their own, so that a ping
is answered while long passes run.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch
from ray.exceptions import (
    ActorUnavailableError,
    GetTimeoutError,
    RayActorError,
    RayTaskError,
)

from atlas_flwr.budget import packing_environment
from atlas_flwr.errors import AtlasError, TrunkBusy, TrunkError, TrunkLost
from atlas_flwr.lora import AdapterState, LoraFactors
from atlas_flwr.trunk.engine.session import SessionSpec
from atlas_flwr.trunk.engine.stats import TrunkStats
from atlas_flwr.trunk.source import TrunkSource
from atlas_flwr.trunk.transports.framed import FramedTrunk
from atlas_flwr.trunk.transports.ray_cluster import wait_for_ray
from atlas_flwr.trunk.transports.requests import Request
from atlas_flwr.trunk.transports.service import FrameService
from atlas_flwr.wire.codecs import Codec

__all__ = [
    "NAMESPACE",
    "RayTrunk",
    "RayTrunkHost",
    "connect_ray",
    "start_ray_trunk",
]

NAMESPACE = "atlas-flwr"
WAITING = 64  # calls that are in the actor at once, most of them waiting
PING = 60.0  # seconds that the question whether it lives may take
LOOK = 2.0  # seconds between looks whether waiting makes sense
_CONTROL = "control"


class TrunkActor:
    """The actor: an engine behind frames."""

    def load(self, source: TrunkSource) -> None:
        """Load the blocks; here and not before, so that errors reach the owner."""
        torch.set_num_threads(1)
        self.service = FrameService(source.engine(own_threads=True))

    @ray.method(concurrency_group=_CONTROL)
    def open(self, spec: SessionSpec) -> str:
        """Open a session."""
        return self.service.engine.open(spec)

    @ray.method(concurrency_group=_CONTROL)
    def share(self, name: str, products: Mapping[str, LoraFactors]) -> None:
        """Hold products for many sessions."""
        self.service.engine.share(name, products)

    @ray.method(concurrency_group=_CONTROL)
    def unshare(self, name: str) -> None:
        """Forget shared products."""
        self.service.engine.unshare(name)

    @ray.method(concurrency_group=_CONTROL)
    def adapters(self, token: str) -> AdapterState:
        """Copy out what a session has trained."""
        return self.service.engine.adapters(token)

    @ray.method(concurrency_group=_CONTROL)
    def importance(self, token: str) -> dict[str, float]:
        """Return what a probing session has measured."""
        return self.service.engine.importance(token)

    @ray.method(concurrency_group=_CONTROL)
    def close(self, token: str) -> None:
        """Close a session."""
        self.service.engine.close(token)

    @ray.method(concurrency_group=_CONTROL)
    def stats(self) -> TrunkStats:
        """Return an account."""
        return self.service.engine.stats()

    @ray.method(concurrency_group=_CONTROL)
    def ping(self) -> None:
        """Answer."""

    def answer(self, request: Request) -> bytes:
        """Answer a client."""
        torch.set_num_threads(1)  # OpenMP keeps the number for each thread
        return self.service.answer(request)


def start_ray_trunk(
    name: str,
    source: TrunkSource,
    *,
    threads: int = 2,
    timeout: float = 300.0,
    num_gpus: float | None = None,
    spread: bool = False,
) -> RayTrunkHost:
    """Start the actor and wait until it has loaded its blocks.

    Parameters
    ----------
    name : str
        Clients connect to ``ray://<name>``.
    source : TrunkSource
        What to load.
    threads : int
        Passes that run at once, each on one CPU thread; on a GPU it is one, which more
        would not speed up. Calls that wait take no part in this.
    timeout : float
        Seconds to wait, for Ray (which Flower's simulation starts a moment after the
        ServerApp) and for loading.
    num_gpus : float, optional
        What the actor takes of Ray's GPUs. Default: 1 on a GPU, else 0.
    spread : bool
        Whether the nodes of the Ray cluster take turns with actors started so.

    Raises
    ------
    TrunkError
        If Ray is not running in this process, the name is taken, no machine of Ray's
        has such a GPU, or loading takes too long.
    PlanError
        If the model cannot be cut so.
    """
    deadline = time.monotonic() + timeout
    wait_for_ray(timeout)
    on_gpu = source.device.startswith("cuda")
    gpus = float(on_gpu) if num_gpus is None else num_gpus
    limits = replace(source.limits, passes_at_once=1 if on_gpu else threads)
    source = replace(source, limits=limits)
    as_actor: Any = ray.remote  # its types know no concurrency groups
    make = as_actor(concurrency_groups={_CONTROL: 2})(TrunkActor).options(
        name=name,
        namespace=NAMESPACE,
        num_cpus=0,
        num_gpus=gpus,
        max_concurrency=max(WAITING, threads),
        max_restarts=0,
        scheduling_strategy="SPREAD" if spread else "DEFAULT",
        memory=1 if spread else None,  # Ray spreads only what asks for something
        runtime_env={"env_vars": dict(packing_environment())},
    )
    try:
        actor = make.remote()
    except ValueError as error:
        raise TrunkError(f"a Ray trunk {name!r} cannot be started: {error}") from None
    host = RayTrunkHost(actor, name)
    is_loaded = False
    try:
        loaded = actor.load.remote(source)
        while not ray.wait([loaded], timeout=LOOK)[0] and time.monotonic() < deadline:
            _check_gpus(gpus)
        _result(loaded, max(deadline - time.monotonic(), 1.0))
        is_loaded = True
    finally:
        if not is_loaded:
            host.stop()
    return host


def _check_gpus(wanted: float) -> None:
    """Refuse to wait for a GPU that no machine of Ray's has, or has any more."""
    nodes: Any = ray.nodes  # without types
    alive = [node for node in nodes() if node["Alive"]]
    most = max((node["Resources"].get("GPU", 0.0) for node in alive), default=0.0)
    if wanted > most:
        raise TrunkError(
            f"the trunk wants {wanted:g} of a GPU, and none of the {len(alive)} "
            f"machines that are in Ray's cluster has more than {most:g}: one may have "
            "died, or Ray was told of no GPU (--federation-config "
            "'init-args-num-gpus=1'); or set trunk-device='cpu'"
        )


@dataclass(frozen=True)
class RayTrunkHost:
    """The owner's handle of the actor (see :class:`~atlas_flwr.trunk.TrunkHost`).

    To it an actor that Ray cannot reach is lost at once: Ray calls it dead 15 to 65 s
    later, and a call may have been done or not.

    Parameters
    ----------
    actor : Any
        Ray's handle.
    name : str
        Clients connect to ``ray://<name>``.
    timeout : float
        Seconds to wait for each answer.
    """

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

    def share(self, name: str, products: Mapping[str, LoraFactors]) -> None:
        """Hold products that many sessions fold, once for all of them."""
        self._get(self.actor.share.remote(name, dict(products)))

    def unshare(self, name: str) -> None:
        """Forget shared products."""
        self._get(self.actor.unshare.remote(name))

    def adapters(self, token: str) -> AdapterState:
        """Copy out what a session has trained."""
        state = self._get(self.actor.adapters.remote(token))
        assert isinstance(state, AdapterState)
        return state

    def importance(self, token: str) -> dict[str, float]:
        """Return what a probing session has measured, by layer."""
        return dict(self._get(self.actor.importance.remote(token)))

    def close(self, token: str) -> None:
        """Close a session."""
        self._get(self.actor.close.remote(token))

    def stats(self) -> TrunkStats:
        """Return an account."""
        stats = self._get(self.actor.stats.remote())
        assert isinstance(stats, TrunkStats)
        return stats

    def ping(self) -> None:
        """Check that the actor lives, and answers within a minute."""
        self._get(self.actor.ping.remote(), min(self.timeout, PING))

    def stop(self) -> None:
        """End the actor, if Ray itself has not ended."""
        if ray.is_initialized():
            ray.kill(self.actor)

    def _get(self, reference: Any, timeout: float | None = None) -> Any:
        try:
            return _result(reference, timeout or self.timeout)
        except _Unreachable as error:
            raise _lost(str(error)) from None


@dataclass(kw_only=True)
class RayTrunk(FramedTrunk):
    """A client's session on the actor; made by :func:`connect_ray`.

    Parameters
    ----------
    actor : Any
        Ray's handle.
    """

    actor: Any

    @property
    def has_wire(self) -> bool:
        """Whether the cluster has several machines."""
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        return sum(bool(node["Alive"]) for node in nodes) > 1

    def exchange(self, request: Request) -> bytes:
        """Call the actor."""
        wait = min(self.timeout, request.patience)
        frame = _result(self.actor.answer.remote(request), wait)
        assert isinstance(frame, bytes)
        return frame


def connect_ray(name: str, token: str, codec: Codec) -> RayTrunk:
    """Connect to a session on an actor of this Ray cluster.

    Raises
    ------
    TrunkLost
        If there is no such actor, or this process is in no Ray cluster.
    """
    if not ray.is_initialized():
        raise TrunkLost(
            f"ray://{name} is reached from a worker of the same Ray cluster only, and "
            "this process is in none; in a deployment use another transport"
        )
    try:
        actor = ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        raise _lost(f"no actor {name!r}") from None
    return RayTrunk(token=token, codec=codec, actor=actor)


def _result(reference: Any, timeout: float) -> Any:
    """Wait for an answer; errors of ours come through as themselves."""
    try:
        return ray.get(reference, timeout=timeout)
    except RayTaskError as error:
        if isinstance(error.cause, AtlasError):
            raise error.cause from None
        raise
    except ActorUnavailableError as error:
        said = str(error).partition("\n")[0]
        raise _Unreachable(f"the trunk cannot be reached right now: {said}") from None
    except RayActorError as error:
        raise _lost(str(error).partition("\n")[0]) from None
    except GetTimeoutError:
        raise TrunkError(
            f"the trunk gave no answer in {timeout:.0f} s; it is overloaded (see "
            "trunk-threads), or its machine is"
        ) from None


class _Unreachable(TrunkBusy):
    """Ray cannot reach the actor, and does not know whether it lives."""


def _lost(what: str) -> TrunkLost:
    return TrunkLost(
        f"the trunk is gone ({what}), and with it the steps of this round; continue "
        "the run from its last checkpoint with "
        "--run-config \"resume='<run folder>'\""
    )
