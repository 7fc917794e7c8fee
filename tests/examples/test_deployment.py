# SPDX-License-Identifier: Apache-2.0
"""examples/deployment: processes over TLS, certificates to adapters, and no orphan."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

RUN = Path(__file__).parents[2] / "examples" / "deployment" / "run.sh"
SMALL = (
    "model='tiny' max-length=24 num-rounds=1 local-steps=2 batch-size=8 "
    "train-examples=32 test-examples=8"
)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("switch", ["", "MUTUAL", "PEERS"])
def test_three_supernodes_train_with_a_trunk_behind_tls(
    tmp_path: Path, switch: str
) -> None:
    peers = switch == "PEERS"
    tools = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "LOGS": str(tmp_path / "logs"),
        **({switch: "1"} if switch else {}),
    }
    overrides = [SMALL, f"runs-dir='{tmp_path / 'runs'}'"]
    ended = subprocess.run(
        [RUN, *overrides], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ("grpcs://127.0.0.1:" in ended.stdout) == (not peers)
    if switch == "MUTUAL":
        served = (tmp_path / "logs" / "trunk.log").read_text()
        assert "serves at grpcs://127.0.0.1:" in served
    (folder,) = (tmp_path / "runs").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["carried"] == ({"0": 3} if peers else {})
    assert len(summary["clusters"]) == 3
    assert summary["bytes_up"] > 100_000
    assert list((folder / "adapters").glob("*/adapter_model.safetensors"))
    # By what they inherited: others on this machine may run SuperNodes, too.
    running = psutil.process_iter(["cmdline", "environ"])
    logs = environment["LOGS"]
    assert not [
        p.info["cmdline"]
        for p in running
        if (p.info["environ"] or {}).get("LOGS") == logs
    ]
