# SPDX-License-Identifier: Apache-2.0
"""A client that is killed and a link that is cut, in a chosen hop of a chosen step.

The client that is hit answers each message in a process of its own, the trunk is
another, and TCP to it goes through a link that the test cuts. What a run learns is
compared, bit by bit, with a run in one process that nothing disturbs, or with one to
which the client that was lost answered by an error.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from atlas_flwr.client_apps import resident
from atlas_flwr.trunk.transports.grpc_channel import own_grpc
from benchmarks.faulty_link import FaultyLink
from benchmarks.trunk_process import REPOSITORY, TrunkProcess, free_port
from tests.golden.record import digest
from tests.server_apps.faulty_worker import FAULT
from tests.server_apps.test_failures import failing
from tests.server_apps.test_run import BASE, run, summary

pytestmark = pytest.mark.slow

CLIENT, STEP, STEPS = 1, 1, 4  # who is hit, and when
KEYS = {"nodes": 2, "num_clusters": 1, "local_steps": STEPS, "evaluate_every": 2}
EVERY_STEP = {0: STEPS, CLIENT: STEPS}
HOPS = ("head-forward", "trunk-forward", "tail-loss", "trunk-backward")


@pytest.fixture(scope="module")
def place():
    """A folder with a short name, for sockets."""
    with tempfile.TemporaryDirectory() as found:
        yield Path(found)


@pytest.fixture(scope="module")
def trunk(place):
    """A trunk's process, behind its `link` for all but who asks its `stats`."""
    port = free_port()
    link = FaultyLink(port)
    same = {key: BASE[key] for key in ("model", "tasks")}
    more = "--advertise", f"127.0.0.1:{link.port}", "--audit", f"{place}/audit"
    found = TrunkProcess(place / "trunk", same, more, port)
    found.link, access = link, found.access
    with own_grpc(f"grpcs://127.0.0.1:{port}", access.secret, access.ca) as host:
        found.stats = host.stats
        yield found
    found.kill()


@pytest.fixture(scope="module", autouse=True)
def worker(place):
    """What forks for each message, in the place of the node's own resident worker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(place))
        path = resident._folder() / f"{resident._code()}.sock"
        command = [sys.executable, "-m", "tests.server_apps.faulty_worker", str(path)]
        process = subprocess.Popen(command, cwd=REPOSITORY)
        while not path.exists():
            assert process.poll() is None
            time.sleep(0.05)
        yield
        process.kill()
        process.wait()


@pytest.fixture
def faulty_run(trunk, tmp_path, monkeypatch):
    """Run through trunk and link, one client through the worker, which has a fault."""

    def found(kind, **told):
        told = {"client": CLIENT, "round": 1, "kind": kind, **told}
        monkeypatch.setenv(FAULT, json.dumps({**told, "folder": str(tmp_path)}))
        access = str(trunk.folder / "access.json")
        nodes = [{}, {resident.KEY: 600}]
        given = {**KEYS, "codec": "raw", "trunk": "grpc", "trunk_access": access}
        return run(tmp_path / "far", node_configs=nodes, **given)

    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return digest(run(tmp_path_factory.mktemp("near"), trunk="local", **KEYS).path)


@pytest.fixture(scope="module")
def without_client(tmp_path_factory):
    """What is learned where the client answers the first round by an error."""
    fails, seen = failing("train", nodes=(CLIENT,)), []

    def once(message):
        verdict = "deliver" if seen else fails(message)
        seen.extend([verdict] * (verdict != "deliver"))
        return verdict

    found = run(tmp_path_factory.mktemp("without"), once, trunk="local", **KEYS)
    return digest(found.path)


@contextmanager
def meeting(folder, acts):
    """Let the client's process meet acts, one in each of the hops where it stands."""
    failed = []

    def watch():
        try:
            for number, act in enumerate(acts):
                while not (folder / f"here-{number}").exists():
                    time.sleep(0.01)
                go = (folder / f"go-{number}").touch
                act(int((folder / f"here-{number}").read_text()), go)
                go()
        except BaseException as error:
            failed.append(error)
            for number in range(len(acts)):  # or it would stand there for ever
                (folder / f"go-{number}").touch()
            raise

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield
    thread.join(60)
    assert not thread.is_alive()
    assert not failed


@contextmanager
def done_by_the_trunk(trunk, go):
    """Let a call go; with its answer held back, once the trunk has done it."""
    before = trunk.stats()
    trunk.link.holds_answers = True
    go()
    try:
        while (now := trunk.stats()).passes == before.passes and (
            now.steps == before.steps
        ):
            time.sleep(0.01)
        yield
    finally:
        trunk.link.holds_answers = False


def steps_taken(place):
    """Steps of each client's training in round 1, of the run that is over."""
    lines = map(json.loads, (place / "audit").read_text().splitlines())
    closed = [line for line in lines if line["event"] == "closed" and line["steps"]]
    run_id = closed[-1]["run"]
    # The last of each: before it came its fingerprint.
    return {
        int(line["client"]): line["steps"]
        for line in closed
        if line["run"] == run_id and line["round"] == 1
    }


@pytest.mark.parametrize("hop", HOPS)
def test_a_client_killed_in_a_hop_is_left_out_by_name_and_nothing_of_it_counts(
    hop, faulty_run, trunk, place, tmp_path, without_client, caplog
):
    def kill(pid, go):
        held = hop.startswith("trunk-")
        with done_by_the_trunk(trunk, go) if held else nullcontext():
            os.kill(pid, signal.SIGKILL)

    with meeting(tmp_path, [kill]):
        found = faulty_run("stands", stops=[(hop, STEP)])
    assert digest(found.path) == without_client
    assert [r["failures"] for r in summary(found)["per_round"]] == [0, 1, 0]
    assert f"train: 1 of 2 clients FAILED: client {CLIENT}: " in caplog.text
    assert "has died" in caplog.text
    own = STEP + (hop == "trunk-backward")
    assert steps_taken(place) == EVERY_STEP | {CLIENT: own}
    left = trunk.stats()
    assert (left.sessions, left.passes, left.kept_bytes) == (0, 0, 0)


def test_links_cut_and_processes_frozen_for_seconds_leave_the_bits_as_they_are(
    faulty_run, trunk, place, tmp_path, undisturbed
):
    def cut_before(pid, go):
        trunk.link.cut(3.0)

    def cut_on_the_way_back(pid, go):
        with done_by_the_trunk(trunk, go):
            trunk.link.cut(3.0)

    def stall_link(pid, go):
        trunk.link.stall(3.0)

    def freeze_client(pid, go):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(3)
        os.kill(pid, signal.SIGCONT)

    acts = {
        ("head-forward", 0): cut_before,
        ("trunk-forward", 1): cut_on_the_way_back,
        ("tail-loss", 1): stall_link,
        ("trunk-backward", 2): cut_on_the_way_back,
        ("tail-loss", 3): freeze_client,
    }
    with meeting(tmp_path, acts.values()):
        found = faulty_run("stands", stops=list(acts))
    assert digest(found.path) == undisturbed
    assert not any(r["failures"] for r in summary(found)["per_round"])
    assert steps_taken(place) == EVERY_STEP


def test_a_link_cut_for_longer_than_clients_wait_costs_that_client_its_round(
    faulty_run, trunk, tmp_path, without_client, caplog
):
    def cut(pid, go):
        with done_by_the_trunk(trunk, go):
            trunk.link.cut(6.0)

    with meeting(tmp_path, [cut]):
        found = faulty_run("stands", stops=[("trunk-backward", STEP)], away=1.0)
    assert digest(found.path) == without_client
    assert [r["failures"] for r in summary(found)["per_round"]] == [0, 1, 0]
    assert f"1 of 2 clients FAILED: client {CLIENT}: TrunkLost: " in caplog.text


@pytest.mark.parametrize(("kind", "delay"), [("calls twice", 0.0), ("is slow", 0.1)])
def test_repeated_and_late_calls_slowness_far_links_and_wrong_clocks_change_no_bit(
    kind, delay, faulty_run, trunk, place, undisturbed
):
    trunk.link.delay = delay
    try:
        found = faulty_run(kind)
    finally:
        trunk.link.delay = 0.0
    assert digest(found.path) == undisturbed
    assert not any(r["failures"] for r in summary(found)["per_round"])
    assert steps_taken(place) == EVERY_STEP
