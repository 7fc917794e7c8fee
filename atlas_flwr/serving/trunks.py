# SPDX-License-Identifier: Apache-2.0
"""The trunk that answers: an engine here behind frames, a Ray actor, or a far one."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from atlas_flwr.split import SplitPlan
from atlas_flwr.train.outline import Outline
from atlas_flwr.train.same_model import owned_elsewhere
from atlas_flwr.train.weights import ModelFiles
from atlas_flwr.trunk import Endpoint, TrunkSource, serve_local
from atlas_flwr.trunk.transports.access import Access

__all__ = ["TRUNKS", "answering"]

Start = Callable[[TrunkSource], AbstractContextManager[Endpoint]]


@contextmanager
def _local(source: TrunkSource) -> Iterator[Endpoint]:
    engine = source.engine()
    with serve_local(_name(), engine) as address:
        yield Endpoint(engine, address)


@contextmanager
def _ray(source: TrunkSource) -> Iterator[Endpoint]:
    from atlas_flwr.trunk.transports.ray import start_ray_trunk
    from atlas_flwr.trunk.transports.ray_cluster import own_ray

    with own_ray():
        host = start_ray_trunk(_name(), source, threads=1)
        try:
            yield Endpoint(host, host.address)
        finally:
            host.stop()


def answering(
    files: ModelFiles, outline: Outline, plan: SplitPlan, where: str | Access
) -> AbstractContextManager[Endpoint]:
    """Start the trunk of a plan, or find one that serves elsewhere.

    Parameters
    ----------
    files, outline, plan : ModelFiles, Outline, SplitPlan
        The model, and the cut.
    where : str or Access
        A key of :data:`TRUNKS`, or the way to an ``atlas-flwr trunk``.
    """
    if isinstance(where, Access):
        covering = SplitPlan(1, None if plan.tail is None else 1)
        return owned_elsewhere(where, files, outline, covering)
    return TRUNKS[where](files.trunk(plan))


def _name() -> str:
    return f"serving-{secrets.token_hex(4)}"


# A new transport is an entry here.
TRUNKS: Mapping[str, Start] = {"local": _local, "ray": _ray}
