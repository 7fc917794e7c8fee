"""What is said when Ray's own process is gone, and when Ray ended it itself."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
import types

import pytest

from atlas_flwr.server_apps.raylet import watched_raylet


@pytest.mark.parametrize("ray_is_up", [True, False])
def test_a_raylet_that_is_killed_is_named_unless_ray_ended_it(
    ray_is_up, tmp_path, monkeypatch, caplog
):
    fake = types.SimpleNamespace(is_initialized=lambda: ray_is_up)
    monkeypatch.setitem(sys.modules, "ray", fake)
    raylet = shutil.copy(shutil.which("sleep"), tmp_path / "raylet")
    process = subprocess.Popen([raylet, "60"])
    with watched_raylet(poll=0.01):
        process.kill()
        for _ in range(1000 if ray_is_up else 20):
            if not caplog.records:
                time.sleep(0.01)
    process.wait()
    said = f"raylet, pid {process.pid}) was ended from outside" in caplog.text
    assert said == ray_is_up
    assert ("resume=" in caplog.text) == ray_is_up


def test_nothing_is_said_of_a_run_that_ends(caplog):
    with watched_raylet(poll=0.01):
        time.sleep(0.05)
    assert not caplog.records
