# SPDX-License-Identifier: Apache-2.0
"""The trunk that a ServerApp starts: a Ray actor, or an engine in its own process."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from flwr.serverapp import Grid
from flwr.superlink.grid import HttpGrid

from atlas_flwr.config import RunConfig
from atlas_flwr.errors import ConfigError
from atlas_flwr.server_apps.build import RunContext, covering_plan, needs_trunk
from atlas_flwr.trunk import Limits, TrunkEngine, TrunkHost, serve_local
from atlas_flwr.types import Side

__all__ = ["TRUNKS", "check_reach", "trunk_of"]

Start = Callable[[RunContext, str], AbstractContextManager[tuple[TrunkHost, str]]]
SHARED_GPU = 0.01  # clients take the rest of it


def check_reach(config: RunConfig, grid: Grid) -> None:
    """Refuse a trunk that this run's clients cannot reach, before it is waited for.

    Flower has no name for the kind of a run that holds for ``run_simulation`` too, but
    its grids differ: HTTP in a deployment, memory in a simulation.

    Raises
    ------
    ConfigError
        If the clients are SuperNodes and the trunk is one of simulations.
    """
    if not isinstance(grid, HttpGrid) or not needs_trunk(config):
        return
    reach = {
        "ray": "an actor of the Ray cluster that Flower's simulation starts",
        "local": "an engine inside the ServerApp's process",
    }
    raise ConfigError(
        [
            f"trunk={config.trunk!r} is {reach[config.trunk]}, and the clients of this "
            "run are SuperNodes (Flower's deployment engine), which cannot reach it. "
            "Run it as a simulation (atlas-flwr run, or flwr run on a SuperLink that "
            "was started with --simulation), or with no trunk: split='none' or "
            "strategy='fedavg'"
        ],
        ["trunk"],
    )


@contextmanager
def trunk_of(setting: RunContext) -> Iterator[tuple[TrunkHost, str]]:
    """Start the configured trunk, and stop it when the run ends, however it ends.

    Yields
    ------
    tuple[TrunkHost, str]
        Its host, and the address that clients connect to.
    """
    name = f"trunk-{secrets.token_hex(4)}"
    with TRUNKS[setting.config.trunk](setting, name) as found:
        yield found


@contextmanager
def _local(setting: RunContext, name: str) -> Iterator[tuple[TrunkHost, str]]:
    plan = covering_plan(setting.config, setting.outline)
    trunk = setting.files.parts(plan, sides=(Side.TRUNK,)).trunk
    engine = TrunkEngine(
        trunk, limits=_limits(setting), recompute=setting.config.trunk_recompute
    )
    with serve_local(name, engine) as address:
        yield engine, address


@contextmanager
def _ray(setting: RunContext, name: str) -> Iterator[tuple[TrunkHost, str]]:
    from atlas_flwr.trunk.ray import TrunkSource, start_ray_trunk

    config, files = setting.config, setting.files
    source = TrunkSource(
        path=files.source.path,
        plan=covering_plan(config, setting.outline),
        classes=files.classes,
        dtype=config.dtype,
        device=files.device,
        seed=files.seed,
        recompute=config.trunk_recompute,
        limits=_limits(setting),
    )
    on_gpu = files.device == "cuda"
    host = start_ray_trunk(
        name,
        source,
        threads=config.trunk_threads,
        num_gpus=SHARED_GPU if on_gpu and config.device != "cpu" else None,
    )
    try:
        yield host, host.address
    finally:
        host.stop()


# A new transport is an entry here and a word of the key ``trunk``.
TRUNKS: Mapping[str, Start] = {"local": _local, "ray": _ray}


def _limits(setting: RunContext) -> Limits:
    """Say how many clients share a pass: see ``trunk-batch``."""
    on_gpu = setting.files.device.startswith("cuda")
    return Limits(sessions_per_pass=setting.config.trunk_batch or (64 if on_gpu else 1))
