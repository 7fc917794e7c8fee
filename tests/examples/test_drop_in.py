# SPDX-License-Identifier: Apache-2.0
"""examples/drop-in: what its README says of it holds, with Atlas and with FedAvg."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict, UserConfig

from atlas_flwr.cli.launch import Federation, private_superlink
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


def test_it_runs_in_simulation(app: Path, capfd: pytest.CaptureFixture[str]) -> None:
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
