# SPDX-License-Identifier: Apache-2.0
"""The trunk that answers: an engine in this process behind frames, or a Ray actor."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from atlas_flwr.split import SplitPlan
from atlas_flwr.train.weights import ModelFiles
from atlas_flwr.trunk import TrunkEngine, TrunkHost, serve_local
from atlas_flwr.types import Side

__all__ = ["TRUNKS"]

Start = Callable[[ModelFiles, SplitPlan], AbstractContextManager[tuple[TrunkHost, str]]]


@contextmanager
def _local(files: ModelFiles, plan: SplitPlan) -> Iterator[tuple[TrunkHost, str]]:
    engine = TrunkEngine(files.parts(plan, sides=(Side.TRUNK,)).trunk)
    with serve_local(_name(), engine) as address:
        yield engine, address


@contextmanager
def _ray(files: ModelFiles, plan: SplitPlan) -> Iterator[tuple[TrunkHost, str]]:
    from atlas_flwr.trunk.ray import TrunkSource, own_ray, start_ray_trunk

    source = TrunkSource(
        path=files.source.path,
        plan=plan,
        dtype=str(files.dtype).removeprefix("torch."),
        device=files.device,
        seed=files.seed,
    )
    with own_ray():
        host = start_ray_trunk(_name(), source, threads=1)
        try:
            yield host, host.address
        finally:
            host.stop()


def _name() -> str:
    return f"serving-{secrets.token_hex(4)}"


# A new transport is an entry here. Each yields a host and the address of its clients.
TRUNKS: Mapping[str, Start] = {"local": _local, "ray": _ray}
