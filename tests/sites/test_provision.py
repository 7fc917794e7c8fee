# SPDX-License-Identifier: Apache-2.0
"""What a site's folders hold is accepted by those who read it, and by nobody else."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
import tomllib
from argparse import Namespace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from flwr.cli.supernode.register import try_load_public_key
from flwr.common.config import parse_config_args
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.cli.flower_supernode import _try_setup_client_authentication

from atlas_flwr.cli import main
from atlas_flwr.config import load_config
from atlas_flwr.errors import SiteError
from atlas_flwr.trunk.credentials import Credentials
from atlas_flwr.trunk.transports.access import Access

SECRETS = ("*.key", "access.json")
TRUNK = {"host": "localhost", "port": 17001, "listen": "127.0.0.1"}
INSIDE = {"port": 8000, "trunk-port": 7001, "trunk-mutual": True}


def handshake(served: Path, ca: Path, host: str) -> str:
    """Shake hands on loopback; return the server's name, by OpenSSL alone."""
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(served / "server.pem", served / "server.key")
    ours = ssl.create_default_context(cafile=ca)
    ours.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python 3.13 does
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            near, _ = listening.accept()
            with near:
                try:
                    theirs.wrap_socket(near, server_side=True).close()
                except (ssl.SSLError, OSError):
                    return

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with (
                socket.create_connection(listening.getsockname()) as plain,
                ours.wrap_socket(plain, server_hostname=host) as far,
            ):
                subject = far.getpeercert()["subject"]
                return str(dict(pair for (pair,) in subject)["commonName"])
        finally:
            thread.join()


def test_clients_that_have_the_authority_trust_both_servers_by_their_names(kits):
    site = kits(trunk=TRUNK)
    node = site / "nodes" / "north" / "ca.crt"
    assert handshake(site / "link", node, "127.0.0.1") == "lab SuperLink"
    assert handshake(site / "trunk", node, "localhost") == "lab trunk"
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        handshake(site / "link", node, "elsewhere.example.org")


def test_another_site_is_not_trusted_and_a_renewed_one_is(kits):
    site, other = kits(), kits("other")
    renewed = kits("renewed", authority=site / "authority")
    node = site / "nodes" / "north" / "ca.crt"
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(other / "link", node, "127.0.0.1")
    assert handshake(renewed / "link", node, "127.0.0.1") == "lab SuperLink"


def test_flower_takes_the_keys_and_the_public_half_is_of_the_private_one(kits):
    site = kits()
    for name in ("north", "south"):
        given = Namespace(
            auth_supernode_private_key=str(site / "nodes" / name / "node.key"),
            auth_supernode_public_key=None,
        )
        _, public = _try_setup_client_authentication(given)
        registered = try_load_public_key(site / "link" / "nodes" / f"{name}.pub")
        assert registered == public_key_to_bytes(public)


def test_checksums_are_those_of_all_files(kits):
    for sums in kits(trunk=TRUNK).rglob("SHA256SUMS"):
        told = dict(line.split("  ")[::-1] for line in sums.read_text().splitlines())
        files = [p for p in sums.parent.rglob("*") if p.is_file() and p != sums]
        assert told == {
            str(p.relative_to(sums.parent)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in files
        }


def test_secrets_are_their_owners_alone_and_in_no_other_folder(kits):
    site = kits(trunk=TRUNK)
    secrets = [path for kind in SECRETS for path in site.rglob(kind)]
    assert sorted(str(path.relative_to(site)) for path in secrets) == [
        "authority/ca.key",
        "link/access.json",
        "link/server.key",
        "nodes/north/node.key",
        "nodes/south/node.key",
        "trunk/access.json",
        "trunk/server.key",
    ]
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}
    files = [path for path in site.rglob("*") if path.is_file()]
    for secret in secrets:
        held = secret.read_text()
        if secret.name == "access.json":
            held = Access.read(secret).secret
        holders = {p.relative_to(site).parts[0] for p in files if held in p.read_text()}
        shared = {"link", "trunk"} if secret.name == "access.json" else None
        assert holders == (shared or {secret.relative_to(site).parts[0]})
    north, south = (
        {p.read_bytes() for p in (site / "nodes" / name).iterdir() if is_secret(p)}
        for name in ("north", "south")
    )
    assert not north & south


def test_a_trunk_that_asks_is_shown_what_the_site_gave_each_and_by_nobody_twice(kits):
    plain, site = kits("plain", trunk=TRUNK), kits(trunk={**TRUNK, "mutual": True})
    assert not [*plain.rglob("trunk.*")]
    ca, now = (site / "link" / "ca.crt").read_bytes(), datetime.now(UTC)
    access = Access.read(site / "link" / "access.json")
    assert access == Access.read(site / "trunk" / "access.json")
    shown = [access.shown]
    for name in ("north", "south"):
        node = site / "nodes" / name
        pair = (node / "trunk.pem", node / "trunk.key")
        shown.append(Credentials.read(*map(str, pair)))
        assert stat.S_IMODE(pair[1].stat().st_mode) == 0o600
        words = words_of(node)
        config = words[words.index("--node-config") + 1]
        assert 'trunk-cert="trunk.pem" trunk-key="trunk.key"' in config
        assert "`trunk.key` is another secret" in (node / "README.md").read_text()
        assert "trunk.key" in (node / "SHA256SUMS").read_text()
    for each in shown:
        each.check(now, ca)
        uses = each.own.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert [*uses] == [ExtendedKeyUsageOID.CLIENT_AUTH]  # nobody poses as a server
    assert len({each.key for each in shown}) == 3
    inside = kits("inside", link={"host": "a.example.org", **INSIDE})
    assert "trunk.key" in {path.name for path in (inside / "nodes/north").iterdir()}
    assert 'trunk-cert="trunk.pem"' in (inside / "nodes/north/start.sh").read_text()
    run = tomllib.loads((inside / "link" / "run.toml").read_text())
    assert run["trunk-client-ca"] == "ca.crt"  # the folder's, where the SuperLink runs
    load_config(run)
    words = words_of(site / "trunk")
    assert words[words.index("--client-ca") + 1] == "ca.crt"
    assert "--client-ca" not in words_of(plain / "trunk")


def words_of(folder: Path) -> list[str]:
    script = (folder / "start.sh").read_text()
    return shlex.split(script[script.index("exec ") :])


def is_secret(path: Path) -> bool:
    return any(path.match(kind) for kind in SECRETS)


def test_a_folder_that_exists_is_left_as_it_is(kits, tmp_path):
    site = kits()
    before = (site / "authority" / "ca.key").read_bytes()
    with pytest.raises(SiteError, match="never written over"):
        kits()
    assert (site / "authority" / "ca.key").read_bytes() == before
    assert not list(tmp_path.glob(".site-*"))


def test_every_mistake_is_told_at_once_and_nothing_is_written(
    tmp_path, capsys, monkeypatch
):
    file = tmp_path / "bad.yaml"
    file.write_text(
        "name: A lab\nlnk: 1\nvalid-days: 0\n"
        "link: {host: 'a b', port: 99999, trunk-port: true, trunk-mutual: true}\n"
        "trunk: {host: gpu.example.org, mutual: 1}\n"
        "nodes: [{name: a}, {name: a}, {name: '../b', config: {X: [1]}}, 3]\n"
        "run: {app: here, config: {num-round: 3, trunk-listen: '0.0.0.0:1'}}\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["provision", str(file)]) == 1
    told = capsys.readouterr().err
    wanted = (
        *("name is 'A lab'", "'lnk'", "valid-days is 0", "link.host", "link.port"),
        *("link.trunk-port", "2 nodes are called 'a'", "'../b'", "the key 'X'"),
        *("nodes[3] is 3", "run.app", "num-round is not", "trunk-listen is not yours"),
        *("trunk.mutual is 1", "link.trunk-mutual is of a trunk inside"),
    )
    assert [text for text in wanted if text not in told] == []
    assert list(tmp_path.iterdir()) == [file]


def test_nodes_without_a_trunk_to_dial_are_told(kits):
    with pytest.raises(SiteError, match="no trunk to dial"):
        kits(link={"host": "server.example.org"})
    kits(link={"host": "server.example.org", "trunk-port": 7001})


@pytest.mark.parametrize(
    "app", ["app", "/a$b", '/a"b', "/a\\b", "/a:b", "/a}b", "/a\nb"]
)
def test_an_app_that_a_compose_file_cannot_mount_is_refused(kits, app):
    with pytest.raises(SiteError, match=r"run\.app is .* it is an absolute path"):
        kits(run={"app": app})


def test_words_of_a_site_reach_the_commands_as_they_are(kits):
    config = {"data": '$(touch injected); it\'s "quoted"', "partition-id": 7}
    site = kits(nodes=[{"name": "north", "config": config}])
    words = words_of(site / "nodes" / "north")
    pairs = words[words.index("--node-config") + 1]
    assert parse_config_args([pairs]) == {"num-partitions": 1, **config}


def test_units_say_what_runs(kits):
    site = kits(link={"host": "a.example.org", "port": 8000, "trunk-port": 7001})
    for unit in site.rglob("*.service"):
        text, folder = unit.read_text(), unit.parent.relative_to(site)
        assert f"/{folder}/start.sh" in text
        # All else is read-only to it: also the home of its user, wherever that is.
        (writable,) = re.findall("(?m)^ReadWritePaths=(.*)$", text)
        homes = re.findall("(?m)^Environment=(?:ATLAS_CACHE|HOME)=(.*)$", text)
        assert [Path(home).parent for home in homes] == [Path(writable)] * 2
    run = (site / "link" / "run.toml").read_text()
    assert 'trunk-listen = "0.0.0.0:7001"' in run
    assert 'trunk-advertise = "a.example.org:7001"' in run


@pytest.mark.parametrize("runs", ["runs", "/srv/runs", "/srv/100% of runs"])
def test_the_unit_that_trains_may_write_where_runs_are_kept(kits, runs):
    site = kits(trunk={"host": "gpu.example.org"}, run={"config": {"runs-dir": runs}})
    for unit in site.rglob("*.service"):
        (line,) = re.findall("(?m)^ReadWritePaths=(.*)$", unit.read_text())
        own, *more = shlex.split(line.replace("%%", "%"))
        folder = unit.parent.relative_to(site)
        assert own == f"/opt/atlas-flwr/{folder}"
        is_its = runs.startswith("/") and folder == Path("link")
        assert more == ([runs] if is_its else [])


@pytest.mark.parametrize(
    ("run", "node", "seen"),
    [
        ({}, {}, set()),
        ({"app": "/srv/home/app"}, {}, set()),
        ({"app": "/home/lab/app"}, {}, {"trunk"}),
        ({"config": {"model": "/home/lab/m"}}, {}, {"trunk", "link", "north"}),
        ({"config": {"tasks": "spam,/root/a.yaml"}}, {}, {"trunk", "link", "north"}),
        ({}, {"trunk-cert": "/home/lab/a.pem", "trunk-key": "k"}, {"north"}),
    ],
)
def test_units_see_users_homes_where_they_read_there(run, node, seen, kits):
    nodes = [{"name": "north", "config": node}]
    site = kits(trunk={"host": "gpu.example.org"}, run=run, nodes=nodes)
    units = {unit.parent.name: unit.read_text() for unit in site.rglob("*.service")}
    homes = {
        name: re.findall("(?m)^ProtectHome=(.*)$", text) for name, text in units.items()
    }
    wanted = {name: ["read-only" if name in seen else "true"] for name in units}
    assert homes == wanted


def test_keys_that_a_trunk_alone_reads_go_to_its_machine_alone(kits):
    keys = {"model": "tiny", "trunk-batch": 4, "trunk-limit": "1GiB"}
    site = kits(trunk={"host": "gpu.example.org"}, run={"config": keys})
    trunk, link = (
        tomllib.loads((site / role / "run.toml").read_text())
        for role in ("trunk", "link")
    )
    assert trunk == keys
    assert link == {"model": "tiny", "trunk-access": "access.json"}
    load_config(link)


FLOWER = """#!/usr/bin/env bash
case "$*" in
*north.pub*) echo "Error: Public key already in use." >&2; exit 1 ;;
*south.pub*) [ ! "${BROKEN:-}" ] || { echo "Error: no answer" >&2; exit 1; } ;;
esac
echo "registered: $*"
"""


@pytest.mark.parametrize("broken", ["", "1"])
def test_nodes_that_are_registered_already_stay_so_and_others_are_told(kits, broken):
    folder = kits(nodes=[{"name": "north"}, {"name": "south"}]) / "link"
    (folder / "flwr.sh").write_text(FLOWER)
    environment = {**os.environ, "BROKEN": broken}
    done = subprocess.run(
        [folder / "register.sh"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == bool(broken)
    assert done.stdout.startswith("north is registered already\n")
    assert ("registered: supernode register nodes/south.pub" in done.stdout) != bool(
        broken
    )
    told = "Error: no answer\nnot registered: south (./flwr.sh supernode list shows"
    assert done.stderr.startswith(told if broken else "")


@pytest.mark.parametrize(
    "name", ["it's", "Größe 2", 'so "called"', r"C:\new\u0041", "$HOME"]
)
def test_flower_is_told_of_a_folder_whatever_it_is_called(name, kits, tmp_path):
    folder = tmp_path / name / "link"
    (kits() / "link").rename((tmp_path / name).mkdir() or folder)
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "flwr").write_text("#!/bin/sh\nexit 0\n")
    (tools / "flwr").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    subprocess.run([folder / "flwr.sh", "list"], env=environment, check=True)
    told = tomllib.loads((folder / "flwr" / "config.toml").read_text())
    known = told["superlink"][told["superlink"]["default"]]
    assert (
        Path(known["root-certificates"]).read_text() == (folder / "ca.crt").read_text()
    )


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


@pytest.mark.slow
def test_a_node_comes_online_from_the_folders_own_scripts(kits, tmp_path):
    port, own = free_ports(2)
    link = {"host": "127.0.0.1", "port": port, "listen": "127.0.0.1"}
    site = kits(link=link, nodes=[{"name": "north", "port": own}])
    tools = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    started = []

    def start(folder: Path) -> None:
        with (tmp_path / f"{folder.name}.log").open("w") as log:
            command = [folder / "start.sh"]
            started.append(
                subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            )

    def flower(*words: str) -> str:
        command = [site / "link" / "flwr.sh", *words]
        return subprocess.check_output(command, env=environment, text=True)

    try:
        start(site / "link")
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert started[0].poll() is None
            time.sleep(0.2)
        for _ in range(2):  # who does it again is told that it is done
            script = site / "link" / "register.sh"
            subprocess.run([script], env=environment, check=True)
        start(site / "nodes" / "north")
        until = time.monotonic() + 120
        while '"online"' not in (told := flower("supernode", "list", "--format=json")):
            assert time.monotonic() < until, told
            time.sleep(1)
    finally:
        for process in started[::-1]:
            process.send_signal(signal.SIGTERM)
        for process in started:
            process.wait(30)
