# SPDX-License-Identifier: Apache-2.0
"""examples/drop-in: what its README says of it holds, with Atlas and with FedAvg."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict, UserConfig
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import NDArrays
from flwr.serverapp.strategy import FedAvg, Result

from atlas_flwr.cli.launch import Federation, private_superlink
from atlas_flwr.errors import RoundError
from atlas_flwr.strategies import Atlas
from atlas_flwr.testing import local_grid

APP = Path(__file__).parents[2] / "examples" / "drop-in"
SERVER_APP = "dropin/server_app.py"


def readme_swap() -> list[tuple[str, str]]:
    """Pairs of (FedAvg's line, Atlas's line) from the README's diff."""
    readme = (APP / "README.md").read_text()
    block = re.search(r"```diff\n(.*?)```", readme, re.DOTALL)
    assert block
    lines = block[1].splitlines()
    old = [line[1:] for line in lines if line.startswith("-")]
    new = [line[1:] for line in lines if line.startswith("+")]
    return list(zip(old, new, strict=True))


def swapped(text: str, pairs: list[tuple[str, str]]) -> str:
    for before, after in pairs:
        assert text.count(before) == 1
        text = text.replace(before, after)
    return text


def to_fedavg(text: str) -> str:
    return swapped(text, [(atlas, fedavg) for fedavg, atlas in readme_swap()])


def run_config(**overrides: bool | int | float | str) -> UserConfig:
    project = tomllib.loads((APP / "pyproject.toml").read_text())
    config: UserConfig = project["tool"]["flwr"]["app"]["config"]
    return config | {key.replace("_", "-"): v for key, v in overrides.items()}


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the example, first on sys.path and not imported yet."""
    copy = tmp_path / "drop-in"
    shutil.copytree(APP, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.syspath_prepend(str(copy))
    for name in [n for n in sys.modules if n.split(".")[0] == "dropin"]:
        monkeypatch.delitem(sys.modules, name)
    return copy


def arrays_of(message: Message) -> dict[str, bytes]:
    arrays = message.content.array_records["arrays"]
    return {key: array.numpy().tobytes() for key, array in arrays.items()}


def last_adapters(nodes: int, config: UserConfig) -> list[dict[str, bytes]]:
    """Run the app in this process; return what each node was sent at the end."""
    client_app = importlib.import_module("dropin.client_app").app
    server_app = importlib.import_module("dropin.server_app")
    context = Context(0, 0, {}, RecordDict(), config)
    with local_grid(client_app, nodes, run_config=config) as grid:
        server_app.app(grid, context)
    return [arrays_of(message) for message in grid.sent[-nodes:]]


def test_the_swap_is_one_line_and_its_import() -> None:
    pairs = readme_swap()
    shipped = (APP / SERVER_APP).read_text()
    assert len(pairs) == 2
    assert pairs[0][1].startswith(("import", "from"))
    assert swapped(to_fedavg(shipped), pairs) == shipped


class FlowerClient(NumPyClient):
    """A client of Flower's older style, of two kinds: what it learns is its kind's."""

    def __init__(self, context: Context) -> None:
        self.kind = int(context.node_config["partition-id"]) % 2

    def fit(
        self, parameters: NDArrays, config: UserConfig
    ) -> tuple[NDArrays, int, UserConfig]:
        step = [np.full_like(p, (-1) ** self.kind / 8) for p in parameters]
        found = [p + s for p, s in zip(parameters, step, strict=True)]
        return found, 4, {"train-loss": 0.5}

    def evaluate(
        self, parameters: NDArrays, config: UserConfig
    ) -> tuple[float, int, UserConfig]:
        product = float((parameters[1] @ parameters[0]).mean())
        return product, 4, {"right": float((product > 0) == (self.kind == 0))}


def older_style(app: ClientApp, strategy: FedAvg) -> Result:
    names = [f"q.lora_{factor}.weight" for factor in "AB"]
    values = np.ones((2, 3), np.float32), np.zeros((3, 2), np.float32)
    given = zip(names, values, strict=True)
    arrays = ArrayRecord({name: Array(value) for name, value in given})
    with local_grid(app, 4) as grid:
        return strategy.start(grid, arrays, num_rounds=2)


def test_a_client_of_the_older_style_takes_part_behind_what_the_readme_shows() -> None:
    readme = (APP / "README.md").read_text()
    block = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    assert block
    space: dict[str, Any] = {"FlowerClient": FlowerClient}
    exec(block[1], space)
    strategy = Atlas(num_clusters=2)
    result = older_style(space["app"], strategy)
    kinds = [set(found) for found in _by_cluster(strategy.clusters).values()]
    assert sorted(map(sorted, kinds)) == [["1000", "1014"], ["1007", "1021"]]
    assert {key.partition(".")[0] for key in result.arrays} == {"q"}
    one, other = (
        arrays["q.lora_B.weight"].numpy() @ arrays["q.lora_A.weight"].numpy()
        for arrays in strategy.cluster_arrays().values()
    )
    assert one.mean() * other.mean() < 0
    assert result.evaluate_metrics_clientapp[2]["right"] == 1


def test_a_client_of_the_older_style_alone_fails_as_the_readme_says() -> None:
    app = ClientApp(client_fn=lambda context: FlowerClient(context).to_client())
    assert not older_style(app, FedAvg()).arrays
    with pytest.raises(RoundError, match=r"KeyError: 'fitins\.parameters'"):
        older_style(app, Atlas())


def _by_cluster(clusters: dict[str, int]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for client, label in clusters.items():
        found.setdefault(label, []).append(client)
    return found


def test_only_the_server_knows_atlas() -> None:
    knowing = [p.name for p in APP.glob("dropin/*.py") if "atlas_flwr" in p.read_text()]
    assert knowing == ["server_app.py"]


def test_atlas_gives_each_kind_of_text_its_own_adapters(app: Path) -> None:
    config = run_config(num_server_rounds=1)
    sent = last_adapters(9, config)
    for node, arrays in enumerate(sent):
        same = [other for other, theirs in enumerate(sent) if theirs == arrays]
        assert same == [other for other in range(9) if other % 3 == node % 3]


def test_fedavg_in_its_place_gives_all_the_same(app: Path) -> None:
    server_app = app / SERVER_APP
    server_app.write_text(to_fedavg(server_app.read_text()))
    config = run_config(num_server_rounds=1, local_steps=1)
    sent = last_adapters(3, config)
    assert sent[0] == sent[1] == sent[2]


@pytest.fixture
def dead_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder of Ray's that names a cluster which was killed, not stopped."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # sockets want short paths
        (Path(folder) / "ray").mkdir()
        (Path(folder) / "ray" / "ray_current_cluster").write_text("127.0.0.1:9")
        monkeypatch.setenv("RAY_TMPDIR", folder)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        yield


def test_it_runs_in_simulation_beside_what_is_left_of_a_ray_cluster(
    app: Path, dead_ray: None, capfd: pytest.CaptureFixture[str]
) -> None:
    overrides = {"num-server-rounds": 1, "local-steps": 1}
    with private_superlink(app) as superlink:
        status = superlink.run(overrides, Federation(num_supernodes=3))
    out = capfd.readouterr().out
    assert status == "finished:completed", out
    assert re.search(r"round 1: held-out loss \d", out)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("strategy", ["Atlas", "FedAvg"])
def test_it_runs_on_a_superlink_with_three_supernodes(app: Path, strategy: str) -> None:
    server_app = app / SERVER_APP
    if strategy == "FedAvg":
        server_app.write_text(to_fedavg(server_app.read_text()))
    ran = deployed(app, "num-server-rounds=1 local-steps=1")
    said = ran.stdout + ran.stderr
    assert ran.returncode == 0, said
    assert f"Starting {strategy} strategy" in said
    assert "Sampled 3 nodes (out of 3)" in said
    assert re.search(r"round 1: held-out loss \d", said)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_deployment_whose_run_fails_says_so_by_its_exit_code(app: Path) -> None:
    ran = deployed(app, "model='no/such/folder'")
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert 'the run ended as "finished:failed"' in ran.stderr


def deployed(app: Path, config: str) -> subprocess.CompletedProcess[str]:
    tools = str(Path(sys.executable).parent)
    return subprocess.run(
        ["./run_deployment.sh", "--run-config", config],
        cwd=app,
        env=os.environ | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
