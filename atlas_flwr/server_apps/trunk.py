# SPDX-License-Identifier: Apache-2.0
"""The trunk of a run: a Ray actor, an engine in this process, or one elsewhere."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from logging import INFO, WARNING
from pathlib import Path

from flwr.serverapp import Grid
from flwr.superlink.grid import HttpGrid, InMemoryGrid

from atlas_flwr.config import RunConfig, split_list
from atlas_flwr.config.parsing import parse_address
from atlas_flwr.config.reach_rules import beyond_simulation, beyond_supernodes
from atlas_flwr.errors import ConfigError, TrunkLost
from atlas_flwr.log import log
from atlas_flwr.server_apps.build import RunContext, covering_plan
from atlas_flwr.server_apps.peers import SERVER, peers_of
from atlas_flwr.server_apps.replicas import replicas_of
from atlas_flwr.split import SplitPlan
from atlas_flwr.train.same_model import owned_elsewhere
from atlas_flwr.train.weights import ModelFiles
from atlas_flwr.trunk import Endpoint, Limits, TrunkSource, serve_local
from atlas_flwr.trunk.credentials import read_authorities
from atlas_flwr.trunk.transports.access import Access

__all__ = ["TRUNKS", "check_reach", "trunk_kind", "trunk_of", "trunk_source"]

Start = Callable[[RunContext, str, Grid], AbstractContextManager[Endpoint]]
SHARED_GPU = 0.01  # clients take the rest of it
SPREAD_GPU = 0.51  # so that two replicas are never on one
STARTS = 8  # actors that load at the same time


def check_reach(config: RunConfig, grid: Grid) -> None:
    """Refuse a trunk that this run's clients cannot reach, before it is waited for.

    Raises
    ------
    ConfigError
        If the clients are SuperNodes and the trunk is one of simulations, or the other
        way round.
    """
    if isinstance(grid, InMemoryGrid):
        found = beyond_simulation(config)
    elif isinstance(grid, HttpGrid):
        found = beyond_supernodes(config)
    else:
        return
    for problem in found:
        raise ConfigError([problem.sentence], problem.keys)


def trunk_kind(config: RunConfig, grid: Grid) -> str:
    """Return the key of :data:`TRUNKS` that a run takes.

    Flower has no name for the kind of a run that holds for ``run_simulation`` too, but
    its grids differ: HTTP in a deployment, memory in a simulation.
    """
    if config.trunk != "auto":
        return config.trunk
    if config.trunk_access or isinstance(grid, HttpGrid):
        return "grpc"
    return "ray" if isinstance(grid, InMemoryGrid) else "local"


@contextmanager
def trunk_of(setting: RunContext, grid: Grid) -> Iterator[Endpoint]:
    """Start a trunk, or find it; leave none behind, however the run ends."""
    name, kind = f"trunk-{secrets.token_hex(4)}", trunk_kind(setting.config, grid)
    if kind == "grpc" and isinstance(grid, InMemoryGrid):
        from atlas_flwr.trunk.transports.ray_cluster import wait_for_ray

        wait_for_ray()  # which forks, and cannot while gRPC's threads run
    with TRUNKS[kind](setting, name, grid) as found, _shown(setting, found):
        yield found


@contextmanager
def _shown(setting: RunContext, trunk: Endpoint) -> Iterator[None]:
    """Serve the trunk's numbers on this machine, if the run is to."""
    port = setting.config.trunk_metrics
    if not port:
        yield
        return
    from atlas_flwr.trunk.transports.metrics import TrunkMetrics, serve_metrics

    unseen = "metrics: the trunk gives no account of itself: %s"
    metrics = TrunkMetrics(trunk.host.stats, partial(log, WARNING, unseen))
    served = serve_metrics(str(port), metrics, metrics.is_up)
    with setting.calls.heard_by(metrics.heard), served as place:
        log(INFO, "metrics and health of the trunk: %s", place)
        yield


def trunk_source(config: RunConfig, files: ModelFiles, plan: SplitPlan) -> TrunkSource:
    """Say what a run's trunk is loaded from, and what it bears."""
    on_gpu = files.device.startswith("cuda")
    limits = Limits(
        sessions_per_pass=config.trunk_batch or (64 if on_gpu else 1),
        passes_at_once=1 if on_gpu else config.trunk_threads,
        queue=config.trunk_queue,
        passes_per_session=max(Limits.passes_per_session, config.in_flight),
        session_bytes=config.trunk_limit_bytes,
    )
    return files.trunk(plan, recompute=config.trunk_recompute, limits=limits)


def _source(setting: RunContext) -> TrunkSource:
    plan = covering_plan(setting.config, setting.outline)
    return trunk_source(setting.config, setting.files, plan)


def _named(
    start: Callable[[str], AbstractContextManager[Endpoint]], name: str, copies: int
) -> list[Callable[[], AbstractContextManager[Endpoint]]]:
    """Return what starts each of so many copies, under a name of its own each time."""
    if copies == 1:
        return [partial(start, name)]
    numbers = count(1)
    return [lambda: start(f"{name}-{next(numbers)}")] * copies


@contextmanager
def _local(setting: RunContext, name: str, grid: Grid) -> Iterator[Endpoint]:
    source = _source(setting)
    starts = _named(partial(_local_trunk, source), name, setting.config.trunk_replicas)
    with replicas_of(setting, starts, 1) as found:
        yield found


@contextmanager
def _local_trunk(source: TrunkSource, name: str) -> Iterator[Endpoint]:
    engine = source.engine()
    with serve_local(name, engine) as address:
        yield Endpoint(engine, address)


@contextmanager
def _grpc(setting: RunContext, name: str, grid: Grid) -> Iterator[Endpoint]:
    config = setting.config
    if config.trunk_access:
        given = config.trunk_address
        found = [Access.read(path) for path in split_list(config.trunk_access)]
        found = [replace(each, address=given or each.address) for each in found]
        places = ", ".join(each.address for each in found)
        starts = [partial(_elsewhere, setting, each) for each in found]
        with replicas_of(setting, starts, 1) as endpoint:
            log(INFO, "the trunk of this run is at %s", places)
            yield endpoint
        return
    with _grpc_trunk(setting, _source(setting)) as endpoint:
        yield endpoint


@contextmanager
def _grpc_trunk(setting: RunContext, source: TrunkSource) -> Iterator[Endpoint]:
    from atlas_flwr.trunk.transports.certificates import run_identity
    from atlas_flwr.trunk.transports.grpc import ServeOptions, serve_grpc
    from atlas_flwr.trunk.transports.rates import Rates
    from atlas_flwr.trunk.transports.watching import Watch

    config = setting.config
    dialled = config.trunk_advertise or config.trunk_listen
    identity = run_identity(parse_address(dialled)[0])
    options = ServeOptions(
        config.trunk_listen,
        config.trunk_advertise,
        identity,
        _client_ca(config),
        rates=Rates(config.trunk_rate),
    )
    engine = source.engine(own_threads=True)
    watch = Watch(None, setting.calls.heard)
    with serve_grpc(engine, options, watch=watch) as address:
        log(INFO, "the trunk listens on %s, for %s", config.trunk_listen, address)
        yield Endpoint(engine, address, identity.ca.decode())


def _client_ca(config: RunConfig) -> bytes | None:
    path = config.trunk_client_ca
    return read_authorities(Path(path), "trunk-client-ca=") if path else None


def _elsewhere(setting: RunContext, access: Access) -> AbstractContextManager[Endpoint]:
    plan = covering_plan(setting.config, setting.outline)
    return owned_elsewhere(access, setting.files, setting.outline, plan)


@contextmanager
def _ray(setting: RunContext, name: str, grid: Grid) -> Iterator[Endpoint]:
    from atlas_flwr.trunk.transports.ray_cluster import check_gpus, wait_for_ray

    copies, on_gpu = setting.config.trunk_replicas, setting.files.device == "cuda"
    if copies > 1:
        wait_for_ray()
        check_gpus(copies * on_gpu)
    start = partial(_ray_trunk, setting, _source(setting))
    with replicas_of(setting, _named(start, name, copies), STARTS) as found:
        yield found


@contextmanager
def _ray_trunk(
    setting: RunContext, source: TrunkSource, name: str
) -> Iterator[Endpoint]:
    from atlas_flwr.trunk.transports.ray import start_ray_trunk

    config = setting.config
    on_gpu, alone = setting.files.device == "cuda", config.trunk_replicas == 1
    share = SHARED_GPU if alone else SPREAD_GPU
    host = start_ray_trunk(
        name,
        source,
        threads=config.trunk_threads,
        num_gpus=share if on_gpu and config.device != "cpu" else None,
        spread=not alone,
    )
    try:
        yield Endpoint(host, host.address)
    finally:
        host.stop()


@contextmanager
def _peers(setting: RunContext, name: str, grid: Grid) -> Iterator[Endpoint]:
    """Let clients carry the trunk: their own services, or what stands in for them.

    In a simulation actors do, in the places of those that lend memory.
    """
    simulated = isinstance(grid, InMemoryGrid)
    profiles = setting.roster.profiles
    if simulated:
        from atlas_flwr.trunk.transports.ray_cluster import wait_for_ray

        wait_for_ray()

    def start(plan: SplitPlan, client: str) -> AbstractContextManager[Endpoint]:
        access = {p.client: p.offer.access for p in profiles.values()}.get(client)
        if access:
            return _elsewhere(setting, _told(client, access))
        if isinstance(grid, HttpGrid) and client != SERVER:
            raise TrunkLost(
                f"client {client} lends memory, and its node config names no "
                "trunk-access: start `atlas-flwr trunk` beside its SuperNode, and name "
                "the file access.json that it writes"
            )
        source = trunk_source(setting.config, setting.files, plan)
        if isinstance(grid, HttpGrid):
            return _grpc_trunk(setting, source)
        place = f"{name}-{client}"
        if simulated:
            return _ray_trunk(setting, source, place)
        return _local_trunk(source, place)

    with peers_of(setting, start, STARTS if simulated else 1) as found:
        yield found


def _told(client: str, access: str) -> Access:
    """Read where a client says that its trunk is; if that is no use, it is lost."""
    try:
        return Access.parse(access)
    except ValueError as error:
        raise TrunkLost(
            f"what client {client} says of its trunk cannot be read, {error}: install "
            "the same atlas-flwr there and where the ServerApp runs"
        ) from None


# A new transport is an entry here and a word of the key ``trunk``.
TRUNKS: Mapping[str, Start] = {
    "grpc": _grpc,
    "local": _local,
    "peers": _peers,
    "ray": _ray,
}
