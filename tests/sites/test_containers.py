# SPDX-License-Identifier: Apache-2.0
"""Container files, read as they are; docs/deployment.md says what was run of them."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

TOP = Path(__file__).parents[2]
DOCKERFILE = TOP / "examples" / "deployment" / "Dockerfile"
INSIDE = {"host": "a.example.org", "port": 8000, "trunk-port": 7001}
SITES = {
    "trunk in the ServerApp": {"link": {**INSIDE, "trunk-mutual": True}},
    "trunk elsewhere": {"trunk": {"host": "gpu.example.org", "port": 7002}},
    "odd path": {"link": INSIDE, "run": {"app": "/opt/my 'app'; #1"}},
}


@pytest.mark.parametrize("name", SITES)
def test_a_compose_file_runs_its_own_folders_script_behind_its_own_ports(kits, name):
    site, changes = kits(**SITES[name]), SITES[name]
    app = changes.get("run", {}).get("app")
    link, trunk = changes.get("link", {"port": 18000}), changes.get("trunk")
    own = [link["trunk-port"]] if "trunk-port" in link else []
    ports = {"link": [link["port"], *own], "node": []}
    if trunk:
        ports["trunk"] = [trunk["port"]]
    files = sorted(site.rglob("compose.yaml"))
    assert len(files) == 3 + bool(trunk)  # and two nodes'
    for file in files:
        (role, service), *rest = yaml.safe_load(file.read_text())["services"].items()
        assert rest == []
        assert role == file.parent.name or file.parent.parent.name == "nodes"
        (script,) = service.pop("command")
        place = Path(service.pop("working_dir"))
        assert os.access(file.parent / Path(script).relative_to(place), os.X_OK)
        mounts: list[object] = [f".:{place}"]
        if app and role != "node":
            # In the short form Docker makes an empty folder of one that is not there.
            source = {"type": "bind", "source": f"${{ATLAS_APP:-{app}}}"}
            mounts.append({**source, "target": app, "read_only": True})
        assert service.pop("volumes") == mounts
        assert service.pop("ports", []) == [f"{p}:{p}" for p in ports[role]]
        # In what outlives the container, and where its user may write.
        homes = service.pop("environment")
        assert set(homes) == {"ATLAS_CACHE", "HOME"}
        assert all(Path(home).is_relative_to(place) for home in homes.values())
        tag = image_of(service.pop("image"))
        assert f"-t {tag} ." in DOCKERFILE.read_text()
        assert service == {
            "user": "${ATLAS_USER:-1000:1000}",
            "restart": "unless-stopped",
            "stop_grace_period": "30s",
            "init": True,
            "security_opt": ["no-new-privileges:true"],
            "cap_drop": ["ALL"],
        }


def test_a_mount_does_not_hide_the_app_that_the_image_has(kits):
    """Where an owner has none, Docker would lay an empty folder over it."""
    (line,) = (x for x in DOCKERFILE.read_text().splitlines() if "WORKDIR" in x)
    app = line.removeprefix("WORKDIR ")
    site = kits(link=INSIDE)
    assert f"ATLAS_APP:-{app}" in (site / "link" / "run.sh").read_text()
    for file in site.rglob("compose.yaml"):
        (service,) = yaml.safe_load(file.read_text())["services"].values()
        assert service["volumes"] == [".:/site"]


def image_of(given: str) -> str:
    return given.removeprefix("${ATLAS_IMAGE:-").removesuffix("}")


def test_the_image_has_a_python_that_the_package_takes_and_pinned_versions():
    lines = DOCKERFILE.read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and line[0] != "#"]
    assert [step for step, _ in steps] == ["FROM", "ARG", "WORKDIR", "COPY", "RUN"]
    said = dict(steps)
    python = said["FROM"].removeprefix("python:").removesuffix("-slim")
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    assert python in SpecifierSet(project["requires-python"])
    assert f"Python {python}" in (TOP / "constraints.txt").read_text()
    assert "--constraint constraints.txt" in said["RUN"]


def test_an_image_is_made_of_the_package_alone_and_holds_no_key():
    rules = (TOP / ".dockerignore").read_text().splitlines()
    rules = [rule for rule in rules if not rule.startswith("#")]
    assert rules[0] == "*"
    taken = {rule[1:] for rule in rules if rule.startswith("!")}
    assert all((TOP / name).exists() for name in taken)
    assert {"atlas_flwr", "constraints.txt", "pyproject.toml"} <= taken
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    assert project["readme"] in taken
    links = {path.name for path in TOP.iterdir() if path.is_symlink()}
    assert links <= taken
    assert taken <= links | {
        *("LICENSE", "README.md", "atlas_flwr", "constraints.txt", "pyproject.toml")
    }
