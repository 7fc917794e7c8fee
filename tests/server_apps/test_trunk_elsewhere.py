# SPDX-License-Identifier: Apache-2.0
"""A run whose trunk is served on another machine has the numbers of any other."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest
from flwr.app import MessageType

from atlas_flwr.cli.gate import Gate
from atlas_flwr.cli.trunk import Outlook, serve
from atlas_flwr.config import load_config
from atlas_flwr.errors import ConfigError, TrunkLost
from atlas_flwr.server_apps.run import Run
from atlas_flwr.trunk import TrunkEngine
from atlas_flwr.trunk.transports.certificates import Authority
from benchmarks.trunk_process import TrunkProcess
from tests.golden.record import digest
from tests.server_apps.test_failures import adapters
from tests.server_apps.test_run import BASE, NODES, accuracies, run, summary


@pytest.fixture
def served_elsewhere(tmp_path, monkeypatch):
    """Serve a trunk as `atlas-flwr trunk` does; yield its folder and how to end it."""
    ended = {}

    @contextmanager
    def serving(gate=None, **changes):
        config = load_config({**BASE, "trunk": "grpc", **changes})
        given = config, tmp_path / "trunk", None, Outlook(), gate
        thread = threading.Thread(target=serve, args=given, daemon=True)
        thread.start()
        access = tmp_path / "trunk" / "access.json"
        while not access.exists():
            assert thread.is_alive()
            time.sleep(0.05)
        yield str(access)
        ended["now"]()
        thread.join(20)
        assert not thread.is_alive()

    # Handlers of signals are for main threads; here the test is who sends them.
    monkeypatch.setattr(
        signal, "signal", lambda _, handler: ended.update(now=lambda: handler(0, None))
    )
    return serving


def certified(folder, site, name):
    """Make a node's certificate; return the node config that names it."""
    shown = site.credentials(name)
    for kind, content in (("cert", shown.certificate), ("key", shown.key)):
        (folder / f"{name}.{kind}").write_bytes(content)
    return {f"trunk-{kind}": f"{folder}/{name}.{kind}" for kind in ("cert", "key")}


def test_a_trunk_that_asks_for_certificates_learns_the_same_elsewhere_and_in_the_server(
    tmp_path, served_elsewhere, monkeypatch
):
    """As one process does, by what `test_reach` says of a trunk in the ServerApp."""
    bound, opened = [], TrunkEngine.open

    def seen(self, spec):
        bound.append(spec.holder)
        return opened(self, spec)

    monkeypatch.setattr(TrunkEngine, "open", seen)
    site = Authority.made("site")
    gate = Gate(site.certificate, site.credentials("ServerApp"))
    nodes = [certified(tmp_path, site, f"node-{n}") for n in range(NODES)]
    keys = {"trunk": "grpc", "codec": "raw", "num_rounds": 1, "node_configs": nodes}
    with served_elsewhere(gate) as access:
        far = run(tmp_path / "far", trunk_access=access, **keys)
    (tmp_path / "ca.crt").write_bytes(site.certificate)
    near = run(tmp_path / "near", trunk_client_ca=str(tmp_path / "ca.crt"), **keys)
    assert digest(far.path) == digest(near.path)
    # Each session is its own node's: of the fingerprint, training, two evaluations.
    assert Counter(bound) == {f"CN=node-{n}": 2 * 4 for n in range(NODES)}


def test_a_trunk_of_another_model_is_refused_before_anybody_trains(
    tmp_path, served_elsewhere
):
    with (
        served_elsewhere(dtype="bfloat16", aggregation="truncate") as access,
        pytest.raises(ConfigError, match=r"dtype 'bfloat16' \(run: 'float32'\)"),
    ):
        run(tmp_path / "far", trunk="grpc", trunk_access=access)


def test_a_way_to_a_trunk_that_leads_nowhere_is_told_before_anything_starts(tmp_path):
    with pytest.raises(ConfigError, match="copy it to this machine"):
        Run.begin(
            {**BASE, "trunk": "grpc", "trunk-access": str(tmp_path / "none.json")}
        )


def test_its_problems_are_counted_once(tmp_path):
    bad = tmp_path / "access.json"
    bad.write_text('{"address": 1}')
    with pytest.raises(ConfigError) as caught:
        run(tmp_path, trunk="grpc", trunk_access=str(bad))
    assert str(caught.value).count("1 problem in") == 1


SAME = {key: BASE[key] for key in ("model", "tasks")}


@pytest.fixture
def process(tmp_path):
    found = TrunkProcess(tmp_path / "trunk", SAME)
    yield found
    found.kill()


@pytest.mark.slow
@pytest.mark.parametrize("killed_at", [2, 7])
def test_a_trunk_that_is_killed_and_started_anew_leaves_the_numbers_as_they_are(
    tmp_path, process, killed_at
):
    seen = []

    def intercept(message):
        if message.metadata.message_type == MessageType.TRAIN:
            seen.append(message)
            if len(seen) == killed_at:
                process.kill()
                process.start()
        return "deliver"

    access = str(tmp_path / "trunk" / "access.json")
    keys = {"trunk": "grpc", "trunk_access": access, "codec": "raw"}
    broken = run(tmp_path / "far", intercept, **keys)
    intact = run(tmp_path / "near", trunk="local")
    assert process.starts == 2
    assert accuracies(broken) == accuracies(intact)
    expected, got = adapters(intact), adapters(broken)
    assert expected.keys() == got.keys()
    assert all(np.array_equal(got[key], value) for key, value in expected.items())


@pytest.mark.slow
def test_one_of_two_trunks_that_is_killed_for_good_leaves_the_numbers_as_they_are(
    tmp_path, process
):
    other, seen = TrunkProcess(tmp_path / "other", SAME), []

    def intercept(message):
        if message.metadata.message_type == MessageType.TRAIN:
            seen.append(message)
            if len(seen) == 6:
                other.kill()
        return "deliver"

    files = [str(tmp_path / name / "access.json") for name in ("trunk", "other")]
    keys = {"trunk": "grpc", "trunk_access": ",".join(files), "codec": "raw"}
    broken = run(tmp_path / "far", intercept, **keys, trunk_restarts=0)
    intact = run(tmp_path / "near", trunk="local")
    assert digest(broken.path) == digest(intact.path)
    assert summary(broken)["replicas_lost"] == 1
    assert 0 < summary(broken)["replica_moves"] < 4


@pytest.mark.slow
def test_a_trunk_that_stays_away_ends_the_run_with_one_error(tmp_path, process):
    def intercept(message):
        if message.metadata.message_type == MessageType.TRAIN:
            process.kill()
        return "deliver"

    access = str(tmp_path / "trunk" / "access.json")
    with pytest.raises(TrunkLost, match=r"has not answered|nothing answers"):
        run(
            tmp_path / "far",
            intercept,
            trunk="grpc",
            trunk_access=access,
            trunk_restarts=0,
        )
