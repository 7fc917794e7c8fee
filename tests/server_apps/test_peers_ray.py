# SPDX-License-Identifier: Apache-2.0
"""Peers as Ray actors of Flower's simulation, one of which is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.golden.record import digest

CONFIG = (
    "model='tiny' tasks='questions,movies' num-rounds=1 local-steps=40 cut='1/1' "
    "train-examples=32 test-examples=8 fingerprint-batches=4 num-clusters=2 "
)


def begun(folder, name, keys):
    config = f"{CONFIG} runs-dir='{folder}' run-name='{name}' {keys}"
    command = [sys.executable, "-m", "atlas_flwr.cli", "run", "-n", "4", "-c", config]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def told(folder, event):
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else ()
    return [e for e in map(json.loads, lines) if e["event"] == event]


def kill_a_peer(parent):
    """Kill one that this run has started, as a machine that is switched off ends."""
    for process in psutil.Process(parent).children(recursive=True):
        if "TrunkActor" in " ".join(process.cmdline()):
            os.kill(process.pid, signal.SIGKILL)
            return
    raise AssertionError("no peer runs")


@pytest.mark.slow
def test_a_peer_that_is_killed_while_it_trains_leaves_the_bits_of_a_central_trunk(
    tmp_path,
):
    keys = "trunk='peers' peer-memory='1GiB,0'"
    with begun(tmp_path, "peers", keys) as running:
        while not any(
            e["what"] == "train" for e in told(tmp_path / "peers", "peers-paired")
        ):
            assert running.poll() is None
            time.sleep(0.2)
        time.sleep(1)
        kill_a_peer(running.pid)
        assert running.wait() == 0
    with begun(tmp_path, "central", "trunk='ray'") as running:
        assert running.wait() == 0
    assert len(told(tmp_path / "peers", "peer-lost")) == 1
    assert told(tmp_path / "peers", "peer-moved")
    found = (tmp_path / name / "adapters" for name in ("peers", "central"))
    assert digest(next(found)) == digest(next(found))
