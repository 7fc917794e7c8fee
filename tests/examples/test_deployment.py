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
import yaml

RUN = Path(__file__).parents[2] / "examples" / "deployment" / "run.sh"
SMALL = (
    "model='tiny' max-length=24 num-rounds=1 local-steps=2 batch-size=8 "
    "train-examples=32 test-examples=8"
)
LONGEST = 1500  # seconds, on a machine that others load


def ran(environment: dict[str, str], overrides: list[str]) -> str:
    """Run the example; return what it said. It is ended so that it ends the others."""
    with subprocess.Popen(
        [RUN, *overrides],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            said, _ = process.communicate(timeout=LONGEST)
        except BaseException:
            process.terminate()
            raise
    assert process.returncode == 0, said
    return said


@pytest.mark.slow
@pytest.mark.timeout(LONGEST + 120)
@pytest.mark.parametrize("switch", ["", "MUTUAL=1", "MUTUAL=inside", "PEERS=1"])
def test_three_supernodes_train_with_a_trunk_behind_tls(
    tmp_path: Path, switch: str
) -> None:
    peers, (name, _, value) = switch == "PEERS=1", switch.partition("=")
    tools = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "LOGS": str(tmp_path / "logs"),
        **({name: value} if name else {}),
    }
    said = ran(environment, [SMALL, f"runs-dir='{tmp_path / 'runs'}'"])
    assert ("grpcs://127.0.0.1:" in said) == (not peers)
    if switch == "MUTUAL=1":
        served = (tmp_path / "logs" / "trunk.log").read_text()
        assert "serves at grpcs://127.0.0.1:" in served
    (folder,) = (tmp_path / "runs").iterdir()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["trunk-client-ca"] == "ca.crt") == (switch == "MUTUAL=inside")
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
