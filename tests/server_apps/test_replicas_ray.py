# SPDX-License-Identifier: Apache-2.0
"""Replicas on two nodes of a Ray cluster, one of which is killed."""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest
from ray.cluster_utils import Cluster

from tests.golden.record import digest
from tests.server_apps.test_peers_ray import begun, told

RAW = "trunk='ray' codec='raw'"  # else the links between nodes choose


@pytest.fixture
def cluster(monkeypatch):
    """Two nodes on this machine, as `ray start` makes them."""
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    found.add_node(num_cpus=1)
    monkeypatch.setenv("RAY_ADDRESS", found.address)
    yield found
    found.shutdown()


def replicas():
    """The processes of replicas by the node that they are on."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        if "TrunkActor" in " ".join(process.cmdline()):
            found[process.ppid()] = process.pid
    return found


@pytest.mark.slow
def test_a_replica_that_is_killed_on_its_node_leaves_the_bits_of_one_trunk(
    tmp_path, cluster
):
    with begun(tmp_path, "two", f"{RAW} trunk-replicas=2") as running:
        while not told(tmp_path / "two", "clustered"):
            assert running.poll() is None
            time.sleep(0.2)
        spread = replicas()
        assert len(spread) == 2
        os.kill(next(iter(spread.values())), signal.SIGKILL)
        assert running.wait() == 0
    with begun(tmp_path, "one", RAW) as running:
        assert running.wait() == 0
    folders = [tmp_path / name for name in ("two", "one")]
    found, one = (digest(folder / "adapters") for folder in folders)
    assert found == one
    assert told(folders[0], "replica-lost")
    assert told(folders[0], "replica-moved")
