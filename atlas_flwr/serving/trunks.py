# SPDX-License-Identifier: Apache-2.0
"""The trunk that answers: an engine in this process behind frames, or a Ray actor."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from atlas_flwr.trunk import Endpoint, TrunkSource, serve_local

__all__ = ["TRUNKS"]

Start = Callable[[TrunkSource], AbstractContextManager[Endpoint]]


@contextmanager
def _local(source: TrunkSource) -> Iterator[Endpoint]:
    engine = source.engine()
    with serve_local(_name(), engine) as address:
        yield Endpoint(engine, address)


@contextmanager
def _ray(source: TrunkSource) -> Iterator[Endpoint]:
    from atlas_flwr.trunk.ray import own_ray, start_ray_trunk

    with own_ray():
        host = start_ray_trunk(_name(), source, threads=1)
        try:
            yield Endpoint(host, host.address)
        finally:
            host.stop()


def _name() -> str:
    return f"serving-{secrets.token_hex(4)}"


# A new transport is an entry here.
TRUNKS: Mapping[str, Start] = {"local": _local, "ray": _ray}
