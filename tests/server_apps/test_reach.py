"""A trunk that the clients of a run cannot reach is refused before anything waits."""

from __future__ import annotations

import time

import pytest
from flwr.superlink.grid import HttpGrid, InMemoryGrid

from atlas_flwr.config import load_config
from atlas_flwr.errors import ConfigError
from atlas_flwr.server_apps.run import Run
from atlas_flwr.server_apps.trunk import check_reach, trunk_kind
from tests.golden.record import digest
from tests.read_keys import read_by
from tests.server_apps.test_run import BASE, run


def deployment():
    """Flower's grid on a real SuperLink; it dials only when it is asked something."""
    return HttpGrid(token="t")


@pytest.mark.parametrize("trunk", ["ray", "local"])
def test_a_deployment_with_a_simulations_trunk_ends_at_once_and_says_the_way_out(
    tmp_path, trunk
):
    config = {**BASE, "trunk": trunk, "runs-dir": str(tmp_path)}
    begun = Run.begin(config)
    started = time.monotonic()
    with pytest.raises(ConfigError, match=rf"trunk='{trunk}'.*trunk='grpc'"):
        begun.execute(deployment())
    assert time.monotonic() - started < 1


def test_what_needs_no_trunk_or_runs_in_a_simulation_is_let_through():
    split = load_config({**BASE, "trunk": "auto"})
    simulation = InMemoryGrid.__new__(InMemoryGrid)  # its state takes a whole SuperLink
    check_reach(split, simulation)
    for change in ({"split": "none"}, {"strategy": "fedavg"}):
        base = read_by(change.get("strategy", "atlas"), BASE)
        check_reach(load_config({**base, **change}), deployment())


def test_a_simulation_with_a_trunk_in_the_serverapps_process_says_the_way_out():
    simulation = InMemoryGrid.__new__(InMemoryGrid)
    with pytest.raises(ConfigError, match=r"trunk='local'.*Ray's; set trunk='auto'"):
        check_reach(load_config(BASE), simulation)
    check_reach(load_config({**BASE, "split": "none"}), simulation)


def test_a_simulations_clients_are_asked_for_no_certificates():
    config = load_config({**BASE, "trunk": "grpc", "trunk-client-ca": "ca.crt"})
    check_reach(config, deployment())
    with pytest.raises(ConfigError, match="no node config that would name"):
        check_reach(config, InMemoryGrid.__new__(InMemoryGrid))


@pytest.mark.parametrize("trunk", ["auto", "grpc"])
def test_a_deployment_takes_grpc_and_a_simulation_ray(trunk):
    config = load_config({**BASE, "trunk": trunk})
    check_reach(config, deployment())
    assert trunk_kind(config, deployment()) == "grpc"
    simulation = InMemoryGrid.__new__(InMemoryGrid)
    assert trunk_kind(config, simulation) == ("ray" if trunk == "auto" else "grpc")


@pytest.mark.parametrize(
    "split", ["u-shaped", pytest.param("vanilla", marks=pytest.mark.slow)]
)
def test_a_run_over_grpc_learns_the_bits_of_one_in_one_process(tmp_path, split):
    keys = {"codec": "raw", "split": split, "num_rounds": 1}
    found = [
        digest(run(tmp_path / trunk, trunk=trunk, **keys).path)
        for trunk in ("local", "grpc")
    ]
    assert found[0] == found[1]
