# SPDX-License-Identifier: Apache-2.0
"""The doctor tells a node what is wrong by its name, and what to do."""

from __future__ import annotations

import errno
import json
import socket
import ssl
import threading
import time
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from atlas_flwr.cli import main
from atlas_flwr.cli.deployment import examine_folder
from atlas_flwr.trunk.transports.certificates import Authority


@contextmanager
def superlink(folder: Path, identity=None, host="127.0.0.1"):
    """Answer HTTPS with a date, as uvicorn does; yield the port."""
    if identity:
        (folder / "server.pem").write_bytes(identity.certificate)
        (folder / "server.key").write_bytes(identity.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    server = Quiet((host, 0), Dated)
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    with serving(server) as port:
        yield port


@contextmanager
def serving(server):
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, address) -> None:
        """Say nothing of clients that leave."""


class Dated(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def findings(node: Path, port: int, ahead: float = 0.0, host: str = "127.0.0.1"):
    about = json.loads((node / "site.json").read_text())
    about["link"] = f"{host}:{port}"
    (node / "site.json").write_text(json.dumps(about))
    found = examine_folder(node, lambda: time.time() + ahead)
    return {finding.name: finding for finding in found}


@pytest.fixture
def site(kits):
    return kits()


def test_a_node_that_is_well_has_nothing_to_do(site, capsys):
    node = site / "nodes" / "north"
    with superlink(site / "link") as port:
        found = findings(node, port)
        assert main(["doctor", "--deployment", str(node)]) == 0
    told = capsys.readouterr().out
    assert "for 127.0.0.1" in found["SuperLink's certificate"].detail
    assert {name for name, f in found.items() if not f.ok} == {"checksums"}  # ours
    assert "ready to run" in told


@pytest.mark.parametrize(
    ("ahead", "ok", "needed"),
    [
        (0, True, False),
        (4, False, False),
        (60, False, True),
        (-60, False, False),
        (-600, False, True),
    ],
)
def test_a_wrong_clock_is_told_as_flower_would_judge_it(site, ahead, ok, needed):
    with superlink(site / "link") as port:
        clock = findings(site / "nodes" / "north", port, ahead)["clock"]
    assert (clock.ok, clock.needed) == (ok, needed)
    said = float(clock.detail.split()[0]) * (1 if "ahead of" in clock.detail else -1)
    assert said == pytest.approx(ahead, abs=1.5)
    assert "NTP" in clock.remedy


def test_an_expired_certificate_is_told_from_one_of_another_authority(site):
    signer = Authority(
        (site / "authority" / "ca.crt").read_bytes(),
        (site / "authority" / "ca.key").read_bytes(),
    )
    old = signer.identity("old", "127.0.0.1", timedelta(minutes=-30))
    with superlink(site / "link", old) as port:
        found = findings(site / "nodes" / "north", port)
    assert "has ended" in found["SuperLink's certificate"].detail
    assert found["clock"].ok
    assert "unproved" in found["clock"].detail
    foreign = Authority.made("lab CA").identity("lab", "127.0.0.1")
    with superlink(site / "link", foreign) as port:
        found = findings(site / "nodes" / "north", port)
    assert "another authority" in found["SuperLink's certificate"].detail


def test_a_certificate_for_another_name_is_told(site):
    with superlink(site / "link", host="127.0.0.2") as port:
        found = findings(site / "nodes" / "north", port, host="127.0.0.2")
    assert "another name" in found["SuperLink's certificate"].detail


def test_an_authority_that_ends_is_told_by_this_machines_clock(site):
    with superlink(site / "link") as port:
        node = site / "nodes" / "north"
        late = findings(node, port, 400 * 86400.0)["authority"]
        soon = findings(node, port, 350 * 86400.0)["authority"]
    assert (late.ok, late.needed, soon.ok, soon.needed) == (False, True, False, False)
    assert "ended at" in late.detail


def test_a_closed_port_and_one_without_tls_are_told_apart(site):
    node = site / "nodes" / "north"
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    closed = findings(node, port)
    assert "refused" in closed["SuperLink's port"].detail
    assert "firewall" in closed["SuperLink's port"].remedy
    server = Quiet(("127.0.0.1", 0), Dated)
    with serving(server) as port:
        plain = findings(node, port)
    assert plain["SuperLink's port"].ok
    assert "speaks no TLS" in plain["SuperLink's certificate"].detail
    assert "clock" not in plain


@pytest.mark.parametrize("lasting", [True, False])
def test_a_published_port_with_nothing_behind_it_is_no_answer(kits, lasting):
    """Docker's proxy takes connections for a container, whatever that one does."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        own = {"link": {"host": "127.0.0.1", "port": 1, "trunk-port": port}}
        if lasting:
            own = {"trunk": {"host": "127.0.0.1", "port": port}}
        node = kits(**own) / "nodes" / "north"

        def hang_up():
            while True:
                try:
                    held.accept()[0].close()
                except OSError:
                    return

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        found = findings(node, port)
        held.shutdown(socket.SHUT_RDWR)
        thread.join()
    for name in ("SuperLink's port", "trunk's port"):
        assert not found[name].ok
        assert "ended before any answer" in found[name].detail
    assert "does the SuperLink run" in found["SuperLink's port"].remedy
    assert found["trunk's port"].remedy.startswith("start it") == lasting
    assert not {"SuperLink's certificate", "trunk's certificate", "clock"} & set(found)


def test_a_folder_that_was_meddled_with_is_told(site, capsys):
    node, other = site / "nodes" / "north", site / "nodes" / "south"
    (node / "node.key").write_bytes((other / "node.key").read_bytes())
    (node / "node.key").chmod(0o644)
    (node / "start.sh").unlink()
    about = json.loads((node / "site.json").read_text())
    about["versions"] = {"flwr": "1.0.0", "no-such-package": "1"}
    (node / "site.json").write_text(json.dumps(about))
    found = findings(node, 1)
    assert "start.sh is not there" in found["checksums"].detail
    assert "node.key was changed" in found["checksums"].detail
    assert "0644" in found["secret"].detail
    assert "not the public half" in found["key"].detail
    assert "made with 1.0.0" in found["flwr"].detail
    assert found["no-such-package"].detail == "not installed"
    (node / "ca.crt").write_text("nothing")
    assert "was not dialled" in findings(node, 1)["SuperLink"].detail
    assert main(["doctor", "--deployment", str(site)]) == 1
    assert "provision" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "value"),
    [("site", None), ("link", ""), ("link", "example.org"), ("trunk", "a:b")],
)
def test_a_folder_that_does_not_say_what_it_is_of_is_told(site, capsys, key, value):
    node = site / "nodes" / "north"
    about = json.loads((node / "site.json").read_text()) | {key: value}
    kept = {name: told for name, told in about.items() if (name, told) != (key, None)}
    (node / "site.json").write_text(json.dumps(kept))
    assert main(["doctor", "--deployment", str(node)]) == 1
    assert "no site.json that can be read" in capsys.readouterr().out


def test_files_that_are_not_there_or_another_users_are_findings(kits, monkeypatch):
    link = kits() / "link"
    (link / "server.pem").rename(link / "server.pem.old")
    found = findings(link, 1)
    assert (found["certificate"].ok, found["certificate"].needed) == (False, True)
    assert "No such file" in found["certificate"].detail
    (link / "server.pem.old").rename(link / "server.pem")
    read = Path.read_bytes

    def of_another(path):
        if path.name in ("server.pem", "server.key"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", of_another)
    found = findings(link, 1)
    assert "Permission denied" in found["certificate"].detail
    assert "server.key cannot be read (Permission denied)" in found["checksums"].detail


@pytest.mark.parametrize("role", ["link", "trunk"])
def test_a_servers_key_that_is_of_another_certificate_is_told(kits, role):
    site = kits(trunk={"host": "localhost", "port": 1})
    other = {"link": "trunk", "trunk": "link"}[role]
    key = site / role / "server.key"
    assert findings(site / role, 1)["certificate"].ok
    key.write_bytes((site / other / "server.key").read_bytes())
    found = findings(site / role, 1)["certificate"]
    assert (found.ok, found.needed) == (False, True)
    assert found.detail == "server.pem, server.key: the certificate is not of this key"
    key.write_text("no key")
    assert "the key cannot be used" in findings(site / role, 1)["certificate"].detail
    key.unlink()
    found = findings(site / role, 1)["certificate"]
    assert (found.ok, found.needed) == (False, True)
    assert found.detail == "server.key: No such file or directory"


def test_what_the_trunk_is_shown_is_looked_at(kits):
    trunk = {"host": "localhost", "port": 1, "mutual": True}
    site = kits(trunk=trunk)
    north, name = site / "nodes" / "north", "certificate for the trunk"

    def found(folder, days=0.0):
        clock = time.time() + days * 86400
        return next(f for f in examine_folder(folder, lambda: clock) if f.name == name)

    for folder in (north, site / "link", site / "trunk"):
        assert found(folder).ok
        assert not found(folder, 350).ok
        assert "ended at" in found(folder, 400).detail
    other = kits("other", trunk=trunk) / "nodes" / "north"
    for file in ("trunk.pem", "trunk.key"):
        (north / file).write_bytes((other / file).read_bytes())
    assert "of another authority" in found(north).detail
    (north / "trunk.key").write_bytes((site / "nodes/south/trunk.key").read_bytes())
    assert "not of this key" in found(north).detail
    (north / "trunk.pem").unlink()
    assert (found(north).ok, found(north).needed) == (False, True)
    inside = kits("inside", link={"host": "127.0.0.1", "trunk-mutual": True})
    assert found(inside / "nodes" / "north").ok
    about = json.loads((inside / "link" / "site.json").read_text())
    assert not about["trunk-mutual"]  # the ServerApp shows its own trunk nothing
    plain = kits("plain", trunk={"host": "localhost", "port": 1})
    names = {finding.name for finding in examine_folder(plain / "link")}
    assert name not in names
