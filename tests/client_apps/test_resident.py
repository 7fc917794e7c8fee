# SPDX-License-Identifier: Apache-2.0
"""A node's resident worker answers as the ClientApp's own process would."""

from __future__ import annotations

import errno
import math
import os
import socket
import subprocess
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import psutil
import pytest
from flwr.app import Message, RecordDict

from atlas_flwr.client_apps import resident, resident_worker
from atlas_flwr.client_apps.app import app
from atlas_flwr.client_apps.resident import received, sent
from atlas_flwr.errors import AtlasError, ConfigError
from atlas_flwr.server_apps.run import Run
from atlas_flwr.testing import local_grid
from tests.golden.record import digest

CONFIG = {
    "model": "tiny",
    "tasks": "spam",
    "strategy": "fedavg",
    "num-rounds": 1,
    "local-steps": 2,
    "train-examples": 16,
    "test-examples": 8,
}


@contextmanager
def placed():
    """A folder of its own for sockets, with a short name; workers end with it."""
    with tempfile.TemporaryDirectory() as base, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", base)
        yield Path(base) / f"atlas-flwr-{os.getuid()}"
        for process in workers(Path(base)):
            process.kill()


@pytest.fixture
def place():
    with placed() as found:
        yield found


@pytest.fixture(scope="module")
def shared_place():
    """The same with one worker for several tests, as its start takes seconds."""
    with placed() as found:
        yield found


def workers(folder):
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "atlas_flwr.client_apps.resident_worker" in words and any(
            str(folder) in word for word in words
        ):
            found.append(process)
    return found


def run(folder, **node):
    config = {**CONFIG, "runs-dir": str(folder)}
    with local_grid(app, 2, run_config=config, node_configs=[node, node]) as grid:
        begun = Run.begin(config)
        begun.execute(grid)
    return digest(begun.folder.path)


def wait_until(holds):
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_run_by_resident_workers_has_the_bits_of_any_other(place, tmp_path):
    with_worker = run(tmp_path / "a", resident=60)
    (worker,) = workers(place)
    assert worker.num_threads() == 1  # as it forks
    assert run(tmp_path / "b") == with_worker


@pytest.mark.slow
def test_an_idle_worker_ends(place, tmp_path):
    run(tmp_path / "a", resident=1)
    wait_until(lambda: not workers(place))
    assert not list(place.glob("*.sock"))


def test_a_worker_ends_with_what_starts_client_apps_and_takes_its_socket_along(
    place, monkeypatch
):
    """By SIGKILL, whatever the seconds; one who has called by then is waited for."""
    monkeypatch.setattr(resident_worker, "LOOK", 0.01)
    answered = threading.Event()
    monkeypatch.setattr(os, "waitpid", lambda pid, _: (answered.is_set() * pid, 0))
    monkeypatch.setattr(resident_worker, "_forked", lambda *_: 31)
    path = resident._folder() / "its.sock"
    with (
        subprocess.Popen(["sleep", "60"]) as node,
        socket.socket(socket.AF_UNIX) as server,
    ):
        monkeypatch.setattr(os, "getppid", lambda: node.pid)
        server.bind(str(path))
        server.listen()
        with resident._starter() as starter:
            serving = threading.Thread(
                target=resident_worker._serve, args=(server, path, 600.0, starter)
            )
            serving.start()
            with resident._dialled(path):
                node.kill()
                wait_until(lambda: not path.exists())
                assert serving.is_alive()
                answered.set()
                serving.join(10)
            assert not serving.is_alive()


def test_what_answers_ends_with_the_client_app(shared_place):
    with resident._connected(60.0) as connection:
        socket.send_fds(connection, [b"w"], [1, 2])
        (worker,) = workers(shared_place)
        wait_until(lambda: len(worker.children()) == 1)
    wait_until(lambda: not worker.children())
    assert worker.is_running()


def test_an_error_comes_back_as_one_sentence(shared_place, tmp_path):
    config = {**CONFIG, "runs-dir": str(tmp_path), "tasks": "nosuch"}
    given = {"run_config": config, "node_configs": [{"resident": 60}]}
    with local_grid(app, 1, **given) as grid:
        (node,) = grid.get_node_ids()
        message = Message(RecordDict(), node, "query.describe")
        (reply,) = grid.send_and_receive([message])
    assert reply.has_error()
    assert "nosuch" in reply.error.reason


def test_what_answers_has_nothing_of_the_environment_of_who_started_the_worker(
    monkeypatch, tmp_path
):
    """Two nodes of one user have one worker, and each its own cache folder."""
    monkeypatch.chdir(tmp_path)
    with mock.patch.dict(os.environ, {"ATLAS_CACHE": "of another"}):
        resident_worker._stand_in({"HOME": "/own"}, str(tmp_path.parent))
        assert dict(os.environ) == {"HOME": "/own"}
        assert Path.cwd() == tmp_path.parent


def test_a_worker_that_dies_is_told():
    here, there = socket.socketpair()
    there.close()
    with here, pytest.raises(EOFError):
        received(here)


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_parts_come_out_as_they_were_put_in(size):
    here, there = socket.socketpair()
    with here, there:
        part = os.urandom(size)
        sender = threading.Thread(target=sent, args=(here, part))
        sender.start()
        assert received(there) == part
        sender.join()


@pytest.mark.parametrize("mode", [0o755, 0o770])
def test_a_folder_that_others_reach_is_refused(place, mode):
    place.mkdir(mode=mode)
    place.chmod(mode)
    with pytest.raises(AtlasError, match="not this user's alone"):
        resident._folder()


@pytest.mark.parametrize("seconds", [-1, "600", True, math.nan, math.inf, 1e18])
def test_no_number_of_seconds_is_refused(seconds):
    node = SimpleNamespace(node_config={"resident": seconds})
    with pytest.raises(ConfigError, match="it is the seconds"):
        resident.answered_by_resident(None, node, None)


def test_an_old_system_with_a_new_python_has_no_handle_to_hold(monkeypatch):
    def unknown(pid):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", unknown)
    with resident._starter() as held:
        assert held == ()
