# SPDX-License-Identifier: Apache-2.0
"""A trunk that asks for certificates: the same numbers, and no way in without one."""

from __future__ import annotations

import json
import re
import socket
import ssl
from argparse import Namespace
from contextlib import contextmanager
from datetime import timedelta

import pytest
import torch

from atlas_flwr.cli import main
from atlas_flwr.cli.gate import Gate, gate_of
from atlas_flwr.client_apps.identity import Identity
from atlas_flwr.config import RunConfig
from atlas_flwr.errors import ConfigError, SessionError, TrunkError, TrunkLost
from atlas_flwr.split import SplitPlan, partition
from atlas_flwr.trunk import (
    ServeOptions,
    SessionSpec,
    TrunkEngine,
    connect,
    serve_grpc,
)
from atlas_flwr.trunk.credentials import Credentials, holder_of
from atlas_flwr.trunk.host import Door
from atlas_flwr.trunk.hosts.chain import connect_all
from atlas_flwr.trunk.transports import grpc_channel
from atlas_flwr.trunk.transports.access import Access
from atlas_flwr.trunk.transports.certificates import Authority, run_identity
from atlas_flwr.trunk.transports.grpc_channel import own_grpc
from atlas_flwr.trunk.transports.ownership import OwnerService
from atlas_flwr.types import TrunkCall
from tests.families import build
from tests.trunk.transports.test_grpc import learned
from tests.trunk.transports.test_ownership import SECRET, SERVED

PLAN = SplitPlan(1, 1)
SERVER = run_identity("127.0.0.1")
SITE = Authority.made("site")
NODE, LINK = SITE.credentials("north"), SITE.credentials("ServerApp")
SOUTH = SITE.credentials("south")
ENDED = SITE.credentials("old", timedelta(minutes=-30))
FOREIGN = Authority.made("site").credentials("north")
SERVES = SITE.identity("server", "127.0.0.1")
POSING = Credentials(SERVES.certificate, SERVES.key)
OPTIONS = ServeOptions(identity=SERVER, client_ca=SITE.certificate)


@pytest.fixture(scope="module")
def engine():
    torch.manual_seed(0)
    return TrunkEngine(partition(build("llama"), PLAN).trunk)


@pytest.fixture(scope="module")
def address(engine):
    with serve_grpc(engine, OPTIONS, OwnerService(engine, SECRET, SERVED)) as found:
        yield found


def test_training_with_certificates_has_the_bits_of_training_without_tls():
    @contextmanager
    def plain(engine, token):
        with serve_grpc(engine, ServeOptions()) as address:
            yield connect(address, token=token)

    @contextmanager
    def mutual(engine, token):
        with serve_grpc(engine, OPTIONS) as address:
            yield connect_all([Door(address, token, SERVER.ca.decode())], shown=NODE)

    (near, mine), (far, theirs) = learned(plain), learned(mutual)
    assert near == far
    assert torch.equal(mine, theirs)


def answer_by_openssl(address, folder, shown):
    """Shake hands as no code of ours does; return what HTTP/2 says first."""
    context = ssl.create_default_context(cadata=SERVER.ca.decode())
    context.set_alpn_protocols(["h2"])
    if shown:
        context.load_cert_chain(*written(folder, "own", shown))
    port = int(address.rpartition(":")[2])
    with (
        socket.create_connection(("127.0.0.1", port), 10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
    ):
        try:
            return secure.recv(9)
        except OSError:  # gRPC closes without TLS's alert
            return b""


def test_openssl_is_answered_with_a_good_certificate_alone(address, tmp_path):
    assert answer_by_openssl(address, tmp_path, NODE)[3] == 4  # a frame of settings
    for shown in (None, FOREIGN, ENDED, POSING):
        assert answer_by_openssl(address, tmp_path, shown) == b""


@pytest.mark.parametrize(
    ("shown", "told"),
    [
        (None, "asks for a certificate .* this client has none"),
        (FOREIGN, "does not take the certificate that this client shows"),
        (ENDED, "does not take the certificate"),
        (POSING, "not one of a client"),
    ],
    ids=["none", "another authority's", "ended", "a server's"],
)
def test_without_a_good_certificate_neither_client_nor_owner_is_let_in(
    address, engine, monkeypatch, shown, told
):
    monkeypatch.setattr(grpc_channel, "HELLO", 0.7)
    monkeypatch.setattr(grpc_channel, "OWNED", 0.7)
    before = engine.stats().bytes_in
    with pytest.raises(TrunkLost, match=told):
        connect(address, engine.open(SessionSpec(PLAN)), SERVER.ca, shown=shown)
    owning = own_grpc(address, SECRET, SERVER.ca.decode(), shown=shown)
    with pytest.raises(TrunkLost, match=told), owning:
        pass
    assert engine.stats().bytes_in == before


def test_a_certificate_opens_no_session_and_owns_nothing(address, engine):
    token = engine.open(SessionSpec(PLAN))
    engine.close(token)
    for other in (token, "guessed"):
        trunk = connect(address, other, SERVER.ca, shown=NODE)
        with pytest.raises(SessionError, match="not open"):
            trunk.forward(TrunkCall(torch.randn(1, 2, 32)))
    ca = SERVER.ca.decode()
    with pytest.raises(TrunkError), own_grpc(address, "guessed", ca, shown=NODE):
        pass
    with own_grpc(address, SECRET, ca, shown=LINK) as host:
        assert host.open(SessionSpec(PLAN))


def test_a_token_is_of_no_use_with_another_nodes_certificate(address):
    ca, call = SERVER.ca.decode(), TrunkCall(torch.randn(1, 2, 32))

    def answer(token, shown):
        return connect(address, token, ca, shown=shown).forward(call)

    with own_grpc(address, SECRET, ca, shown=LINK) as host:
        token = host.open(SessionSpec(PLAN, holder=NODE.holder))
        anybodys = host.open(SessionSpec(PLAN))
        with pytest.raises(SessionError, match="than the one shown, 'CN=south'"):
            answer(token, SOUTH)
        # A new certificate of the same name is the same node's.
        for shown in (NODE, SITE.credentials("north")):
            assert torch.equal(answer(token, shown), answer(anybodys, SOUTH))
        host.close(token)
        for shown in (NODE, SOUTH):
            with pytest.raises(SessionError, match="not open"):
                answer(token, shown)


def test_without_an_owners_service_a_session_is_its_holders_too(engine):
    """As of the trunk inside the ServerApp, which opens sessions itself."""
    call = TrunkCall(torch.randn(1, 2, 32))
    with serve_grpc(engine, OPTIONS) as address:
        token = engine.open(SessionSpec(PLAN, holder=NODE.holder))
        trunk, thief = (
            connect(address, token, SERVER.ca, shown=shown) for shown in (NODE, SOUTH)
        )
        trunk.forward(call)
        with pytest.raises(SessionError, match="than the one shown, 'CN=south'"):
            thief.forward(call)


def test_a_holder_is_called_by_all_names_of_its_certificate():
    assert NODE.holder == "CN=north"
    served = SITE.identity("gpu", "gpu.example.org")
    names = "127.0.0.1; ::1; gpu.example.org; localhost"
    assert holder_of(served.certificate) == f"CN=gpu; {names}"
    with pytest.raises(ValueError, match="no certificate in PEM"):
        holder_of(b"words")


def test_certificates_are_asked_for_and_shown_over_tls_alone(engine):
    with (
        pytest.raises(TrunkError, match="for TLS"),
        serve_grpc(engine, ServeOptions(client_ca=SITE.certificate)),
    ):
        pass
    with (
        serve_grpc(engine, ServeOptions()) as plain,
        pytest.raises(TrunkError, match="has no TLS"),
    ):
        connect(plain, "t", shown=NODE)


def written(folder, name, shown):
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    for path, content in zip(paths, (shown.certificate, shown.key), strict=True):
        path.write_bytes(content)
    return tuple(map(str, paths))


class Node:
    """A Flower context's part that is read."""

    def __init__(self, **config):
        own = {key.replace("_", "-"): value for key, value in config.items()}
        self.node_config = {"partition-id": 0, "num-partitions": 1, **own}


def test_a_node_config_names_what_is_shown(tmp_path):
    certificate, key = written(tmp_path, "north", NODE)
    found = Identity.of(Node(trunk_cert=certificate, trunk_key=key), RunConfig())
    assert found.shown == NODE
    assert Identity.of(Node(), RunConfig()).shown is None


@pytest.mark.parametrize(
    ("shown", "told"),
    [
        (ENDED, "ended at"),
        (Credentials(NODE.certificate, LINK.key), "not of this key"),
        (Credentials(b"words", NODE.key), "no certificate in PEM"),
        (Credentials(NODE.certificate, b"words"), "key cannot be used"),
    ],
)
def test_files_that_are_no_use_are_told_before_a_trunk_is_dialled(
    tmp_path, shown, told
):
    certificate, key = written(tmp_path, "north", shown)
    node = Node(trunk_cert=certificate, trunk_key=key)
    with pytest.raises(ConfigError, match=f"trunk-cert=.*{told}"):
        Identity.of(node, RunConfig())


def test_a_file_that_is_missing_or_not_named_is_told(tmp_path):
    certificate, key = written(tmp_path, "north", NODE)
    with pytest.raises(ConfigError, match="trunk-cert is given without trunk-key"):
        Identity.of(Node(trunk_cert=certificate), RunConfig())
    node = Node(trunk_cert=f"{tmp_path}/none", trunk_key=key)
    with pytest.raises(ConfigError, match="none cannot be read"):
        Identity.of(node, RunConfig())


def test_an_access_file_brings_the_owners_certificate_and_old_ones_have_none(tmp_path):
    path = tmp_path / "access.json"
    pair = LINK.certificate.decode(), LINK.key.decode()
    Access("grpcs://gpu:1", "pem", SECRET, *pair).write(path)
    assert Access.read(path).shown == LINK
    assert pair[1] not in repr(Access.read(path))
    Access("grpcs://gpu:1", "pem", SECRET).write(path)
    assert set(json.loads(path.read_text())) == {"address", "ca", "secret"}
    assert Access.read(path).shown is None
    pair = ENDED.certificate.decode(), ENDED.key.decode()
    Access("grpcs://gpu:1", "pem", SECRET, *pair).write(path)
    with pytest.raises(ConfigError, match="ended at"):
        Access.read(path)


@pytest.mark.parametrize(
    ("authority", "owner", "told"),
    [
        (b"words", LINK, "--client-ca .*: there is no certificate in PEM"),
        (SITE.certificate, None, "give --owner-cert and --owner-key"),
        (SITE.certificate, FOREIGN, "--owner-cert: .* of another authority"),
        (SITE.certificate, ENDED, "--owner-cert=.*ended at"),
        (None, LINK, "are for --client-ca"),
    ],
)
def test_the_trunk_tells_what_is_wrong_before_it_loads(
    tmp_path, capsys, authority, owner, told
):
    given = ["trunk", "--folder", str(tmp_path)]
    if authority:
        (tmp_path / "ca.crt").write_bytes(authority)
        given += ["--client-ca", str(tmp_path / "ca.crt")]
    if owner:
        certificate, key = written(tmp_path, "owner", owner)
        given += ["--owner-cert", certificate, "--owner-key", key]
    assert main(given) == 1
    said = capsys.readouterr()
    assert "loading" not in said.out
    assert re.search(told, said.err)


def test_a_runs_key_is_refused_where_the_trunk_has_an_option_for_it(capsys):
    keys = "trunk-client-ca='ca.crt' tasks='spam' model='tiny'"
    assert main(["trunk", "-c", keys]) == 1
    assert "here it is --client-ca FILE" in capsys.readouterr().err


def test_a_trunk_that_is_started_again_keeps_the_owners_certificate(tmp_path):
    (tmp_path / "ca.crt").write_bytes(SITE.certificate)
    given = Namespace(
        client_ca=tmp_path / "ca.crt", owner_cert="", owner_key="", folder=tmp_path
    )
    for owner in (LINK, FOREIGN):
        pair = owner.certificate.decode(), owner.key.decode()
        Access("grpcs://gpu:1", "pem", SECRET, *pair).write(tmp_path / "access.json")
        if owner == LINK:
            assert gate_of(given) == Gate(SITE.certificate, LINK)
    with pytest.raises(ConfigError, match=r"access.json: .* of another authority"):
        gate_of(given)
