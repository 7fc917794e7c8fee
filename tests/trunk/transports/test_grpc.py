"""An engine behind TLS: the same numbers, and no way in without a token."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import pairwise
from unittest.mock import Mock

import grpc
import pytest
import torch
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_flwr.errors import SessionError, TrunkBusy, TrunkError, TrunkLost, WireError
from atlas_flwr.lora import Scaling, attach, linear_names
from atlas_flwr.split import SplitModel, SplitPlan, partition
from atlas_flwr.trunk import (
    ServeOptions,
    SessionSpec,
    TrunkEngine,
    connect,
    serve_grpc,
)
from atlas_flwr.trunk.state_bytes import state_bytes
from atlas_flwr.trunk.transports import certificates
from atlas_flwr.trunk.transports import grpc as service
from atlas_flwr.trunk.transports import grpc_channel as transport
from atlas_flwr.trunk.transports.certificates import run_identity
from atlas_flwr.trunk.transports.envelope import opened_answer
from atlas_flwr.trunk.transports.grpc_channel import TOKEN, own_grpc
from atlas_flwr.trunk.transports.local import EngineTrunk
from atlas_flwr.trunk.transports.owner_requests import Served
from atlas_flwr.trunk.transports.ownership import OwnerService
from atlas_flwr.types import OptimizerSpec, TrunkCall
from tests.families import build
from tests.trunk.engine.test_parity import adapters

PLAN = SplitPlan(1, 1)
IDENTITY = run_identity("127.0.0.1")


@pytest.fixture(scope="module")
def engine():
    torch.manual_seed(0)
    return TrunkEngine(partition(build("llama"), PLAN).trunk)


@pytest.fixture(scope="module")
def address(engine):
    with serve_grpc(engine, ServeOptions(identity=IDENTITY)) as found:
        yield found


def dialled(address, engine, **changes):
    token = engine.open(SessionSpec(PLAN))
    return connect(address, **{"token": token, "ca": IDENTITY.ca, **changes})


def learned(trunk_of):
    """Train a split model for three steps; return losses and the trunk's adapters."""
    torch.manual_seed(0)
    model = build("llama")
    state = adapters(model, range(1, 4))
    parts = partition(model, PLAN)
    engine = TrunkEngine(parts.trunk)
    token = engine.open(SessionSpec(PLAN, state, OptimizerSpec(lr=0.01)))
    for side in (parts.head, parts.tail):
        attach(side, dict.fromkeys(linear_names(side), 2), Scaling(4.0))
    losses = []
    with trunk_of(engine, token) as trunk:
        split = SplitModel(parts.head, parts.tail, trunk)
        for step in range(3):
            ids = torch.randint(3, 60, (2, 6), generator=torch.manual_seed(step))
            loss = split(input_ids=ids, labels=ids).loss
            loss.backward()
            losses.append(float(loss))
    factors = engine.adapters(token).factors.values()
    return losses, torch.cat([t.flatten() for f in factors for t in (f.A, f.B)])


def test_training_over_tls_has_the_bits_of_training_beside_the_engine():
    from contextlib import contextmanager

    @contextmanager
    def beside(engine, token):
        yield EngineTrunk(engine, token)

    @contextmanager
    def afar(engine, token):
        with serve_grpc(engine, ServeOptions(identity=IDENTITY)) as address:
            yield connect(address, token=token, ca=IDENTITY.ca.decode())

    (near, mine), (far, theirs) = learned(beside), learned(afar)
    assert near == far
    assert torch.equal(mine, theirs)


def test_what_is_larger_than_a_message_crosses_in_pieces(address, engine, monkeypatch):
    hidden = torch.randn(3, 50, 32)
    whole = dialled(address, engine).forward(TrunkCall(hidden))
    monkeypatch.setattr(transport, "WHOLE", 1000)
    monkeypatch.setattr(transport, "PIECE", 700)
    assert torch.equal(dialled(address, engine).forward(TrunkCall(hidden)), whole)


@pytest.fixture
def narrow(monkeypatch):
    """Let no message be larger than 20 kB."""
    kinds = ("send", "receive")
    sizes = [(f"grpc.max_{kind}_message_length", 20_000) for kind in kinds]
    for module in (transport, service):
        monkeypatch.setattr(module, "SIZES", sizes)
    monkeypatch.setattr(transport, "WHOLE", 16_000)
    monkeypatch.setattr(transport, "PIECE", 4_000)


def test_logits_that_are_larger_than_a_message_come_in_pieces(narrow):
    plan, call = SplitPlan(2, None), TrunkCall(torch.randn(1, 100, 32))
    engine = TrunkEngine(partition(build("llama"), plan).trunk)
    wanted = EngineTrunk(engine, engine.open(SessionSpec(plan))).loss(call, None)
    with serve_grpc(engine, ServeOptions(identity=IDENTITY)) as address:
        trunk = connect(address, engine.open(SessionSpec(plan)), IDENTITY.ca)
        sent = [trunk.meter.total_up]
        for _ in range(3):
            assert torch.equal(trunk.loss(call, None).logits, wanted.logits)
            sent.append(trunk.meter.total_up)
    first, second, third = (b - a for a, b in pairwise(sent))
    assert first == 2 * second == 2 * third  # that they are large is known by then


def test_calls_whose_answers_are_too_large_at_the_same_time_are_all_answered(narrow):
    plan, call = SplitPlan(2, None), TrunkCall(torch.randn(1, 100, 32))
    engine = TrunkEngine(partition(build("llama"), plan).trunk)
    both = threading.Barrier(2)
    with serve_grpc(engine, ServeOptions(identity=IDENTITY)) as address:
        trunk = connect(address, engine.open(SessionSpec(plan)), IDENTITY.ca)
        sent = trunk.channel._sent

        def together(*given):
            if not given[-1]:  # both go whole
                both.wait()
            return sent(*given)

        trunk.channel._sent = together
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(trunk.loss, 2 * [call], 2 * [None]))
    assert torch.equal(found[0].logits, found[1].logits)


def test_adapters_that_are_larger_than_a_message_come_in_pieces(narrow):
    model = build("llama")
    state = adapters(model, range(1, 4))
    assert len(state_bytes(state)) > 20_000
    engine, secret = TrunkEngine(partition(model, PLAN).trunk), "s" * 32
    served = Served("first", "llama", "1/1", 5, 32, 0, "float32", "abc")
    owner = OwnerService(engine, secret, served)
    with (
        serve_grpc(engine, ServeOptions(identity=IDENTITY), owner) as address,
        own_grpc(address, secret, IDENTITY.ca.decode()) as host,
    ):
        found = host.adapters(host.open(SessionSpec(PLAN, state)))
    for name, factors in state.factors.items():
        assert torch.equal(found.factors[name].B, factors.B)


def test_a_call_larger_than_the_service_bears_is_refused(engine, monkeypatch):
    monkeypatch.setattr(transport, "WHOLE", 1000)
    options = ServeOptions(identity=IDENTITY, largest=2000)
    with serve_grpc(engine, options) as address:
        trunk = dialled(address, engine)
        with pytest.raises(TrunkError, match="INVALID_ARGUMENT: more than 0 MiB"):
            trunk.forward(TrunkCall(torch.randn(3, 50, 32)))


def test_without_a_sessions_token_nothing_is_answered(address, engine):
    trunk = dialled(address, engine, token="guessed")
    with pytest.raises(SessionError, match="not open"):
        trunk.forward(TrunkCall(torch.randn(1, 2, 32)))
    token = engine.open(SessionSpec(PLAN))
    engine.close(token)
    with pytest.raises(SessionError, match="not open"):
        dialled(address, engine, token=token).forward(TrunkCall(torch.randn(1, 2, 32)))


def test_another_authority_is_not_believed(address, engine, monkeypatch):
    monkeypatch.setattr(transport, "HELLO", 2.0)
    with pytest.raises(TrunkLost, match="certificate is not of the given authority"):
        dialled(address, engine, ca=run_identity("127.0.0.1").ca)


@pytest.mark.parametrize("ahead", [50, 70])
def test_a_trunks_clock_may_be_an_hour_ahead_and_beyond_that_clocks_are_named(
    engine, monkeypatch, ahead
):
    """Its certificate begins an hour before its own time, so later by the clients'."""
    begins = certificates.SLACK - timedelta(minutes=ahead)
    monkeypatch.setattr(certificates, "SLACK", begins)
    monkeypatch.setattr(transport, "HELLO", 0.7)
    shown = run_identity("127.0.0.1")
    with serve_grpc(engine, ServeOptions(identity=shown)) as address:
        if ahead < 60:
            assert dialled(address, engine, ca=shown.ca)
            return
        with pytest.raises(TrunkLost, match="do both clocks agree"):
            dialled(address, engine, ca=shown.ca)


def test_a_certificate_may_come_as_a_file_and_has_to_be_one(address, engine, tmp_path):
    path = tmp_path / "ca.pem"
    path.write_bytes(IDENTITY.ca)
    dialled(address, engine, ca=str(path))
    with pytest.raises(TrunkError, match="neither a certificate in PEM nor a file"):
        dialled(address, engine, ca="nowhere.pem")


@pytest.mark.parametrize("target", ["10.0.0.1:7001", "trunk.example:7001"])
def test_another_machine_is_not_dialled_without_tls(target):
    with pytest.raises(TrunkError, match="has no TLS and reaches this machine alone"):
        connect(f"grpc://{target}", token="t")


def test_nobody_listens_to_other_machines_without_tls(engine):
    with (
        pytest.raises(TrunkError, match="without TLS"),
        serve_grpc(engine, ServeOptions(listen="0.0.0.0:0")),
    ):
        pass


def test_on_this_machine_tls_may_be_left_out(engine):
    with serve_grpc(engine, ServeOptions()) as address:
        assert address.startswith("grpc://127.0.0.1:")
        trunk = connect(address, token=engine.open(SessionSpec(PLAN)))
        assert trunk.forward(TrunkCall(torch.zeros(1, 2, 32))).shape == (1, 2, 32)


def test_a_port_is_not_shared_with_another_trunk(engine):
    with serve_grpc(engine, ServeOptions()) as address:
        taken = address.removeprefix("grpc://")
        with (
            pytest.raises(TrunkError, match="cannot listen on"),
            serve_grpc(engine, ServeOptions(listen=taken)),
        ):
            pass


def test_a_trunk_that_is_gone_is_busy_for_a_while_and_lost_after_it(
    engine, monkeypatch
):
    with serve_grpc(engine, ServeOptions(identity=IDENTITY)) as address:
        trunk = dialled(address, engine)
        trunk.forward(TrunkCall(torch.zeros(1, 2, 32)))
    with pytest.raises(TrunkBusy, match="does not answer right now"):
        trunk.exchange(_request(trunk))
    monkeypatch.setattr(transport, "AWAY", 0.0)
    with pytest.raises(TrunkLost, match="has not answered"):
        trunk.forward(TrunkCall(torch.zeros(1, 2, 32)))


def test_one_that_comes_back_goes_on_with_the_call(engine):
    port = None
    with serve_grpc(engine, ServeOptions(identity=IDENTITY)) as address:
        trunk = dialled(address, engine)
        port = address.rpartition(":")[2]
    back = threading.Event()

    def again():
        options = ServeOptions(listen=f"127.0.0.1:{port}", identity=IDENTITY)
        with serve_grpc(engine, options):
            back.wait(30)

    thread = threading.Timer(0.5, again)
    thread.start()
    try:
        found = trunk.forward(TrunkCall(torch.zeros(1, 2, 32)))
    finally:
        back.set()
        thread.join()
    assert found.shape == (1, 2, 32)


def _request(trunk):
    from atlas_flwr.trunk import Request
    from atlas_flwr.trunk.transports.requests import Verb

    return Request(Verb.FORWARD, trunk.token, "raw", b"")


@pytest.fixture(scope="module")
def raw_channel(address, engine):
    shown = [(TOKEN, engine.open(SessionSpec(PLAN)).encode())]
    credentials = grpc.ssl_channel_credentials(IDENTITY.ca)
    with grpc.secure_channel(address.removeprefix("grpcs://"), credentials) as channel:
        yield channel, shown


@given(st.binary(max_size=400), st.booleans())
@settings(max_examples=150)
def test_noise_is_answered_by_an_error_and_leaves_the_service_well(
    raw_channel, noise, marked
):
    channel, shown = raw_channel
    call = channel.unary_unary(f"/{transport.CLIENTS}/Call")
    sent = b"ATLS" + noise if marked else noise
    with pytest.raises(WireError, match=r"envelope|speaks version"):
        opened_answer(call(sent, timeout=10, metadata=shown))


def test_who_shows_no_token_keeps_nobody_out_by_calls_that_are_half_sent(engine):
    never = threading.Event()

    def half():
        yield b"ATLS"
        never.wait(30)

    with (
        serve_grpc(engine, ServeOptions(calls=2)) as address,
        grpc.insecure_channel(address.removeprefix("grpc://")) as stranger,
    ):
        begin = stranger.stream_stream(f"/{transport.CLIENTS}/Pieces")
        for _ in range(8):
            with pytest.raises(WireError, match=r"shows no token .* earlier version"):
                opened_answer(next(begin(half(), timeout=10)))
            guessed = begin(half(), timeout=10, metadata=[(TOKEN, b"guessed")])
            with pytest.raises(SessionError, match="not open"):
                opened_answer(next(guessed))
        trunk = connect(address, engine.open(SessionSpec(PLAN)))
        trunk.timeout = 10.0
        assert trunk.forward(TrunkCall(torch.zeros(1, 2, 32))).shape == (1, 2, 32)
        never.set()


def test_who_shows_another_sessions_token_is_held_to_what_the_call_says(engine):
    shown, closed = (engine.open(SessionSpec(PLAN)) for _ in "ab")
    engine.close(closed)
    with serve_grpc(engine, ServeOptions()) as address:
        trunk = connect(address, closed)
        trunk.channel.secret = shown
        with pytest.raises(SessionError, match="not open"):
            trunk.forward(TrunkCall(torch.zeros(1, 2, 32)))


def test_a_run_has_an_authority_of_its_own_for_the_name_that_clients_dial():
    one, other = run_identity("trunk.example"), run_identity("10.1.2.3")
    assert one.ca != other.ca
    for identity, name in ((one, "trunk.example"), (other, "10.1.2.3")):
        ca, server = map(
            x509.load_pem_x509_certificate, (identity.ca, identity.certificate)
        )
        server.verify_directly_issued_by(ca)
        names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        known = names.value.get_values_for_type(x509.DNSName)
        known += map(str, names.value.get_values_for_type(x509.IPAddress))
        assert name in known
        basic = server.extensions.get_extension_for_class(x509.BasicConstraints)
        assert not basic.value.ca


CODES = grpc.StatusCode
AWAY = CODES.UNAVAILABLE


@pytest.mark.parametrize(
    "told",
    [
        pytest.param([(10.0, CODES.RESOURCE_EXHAUSTED)], id="it was full"),
        pytest.param([(10.0, CODES.UNIMPLEMENTED)], id="it is another server"),
        pytest.param([], id="nobody asked"),
    ],
)
def test_a_trunk_that_may_have_been_there_meanwhile_was_not_away_all_the_time(
    monkeypatch, told
):
    class Refused(grpc.RpcError):
        def __init__(self, code):
            self.code, self.details = (lambda: code), (lambda: "said so")

    channel = transport.GrpcChannel("grpc://there", None, transport.CLIENTS)
    later = [(30.0, AWAY), (40.0, CODES.DEADLINE_EXCEEDED), (49.0, AWAY), (51.0, AWAY)]
    found = []
    for now, code in [(1.0, AWAY), *told, *later]:
        monkeypatch.setattr(transport.time, "monotonic", lambda now=now: now)
        monkeypatch.setattr(channel, "_sent", Mock(side_effect=Refused(code)))
        with pytest.raises(TrunkError) as refused:
            channel.call(b"", 1.0)
        found.append(refused.type)
    assert found[0] is TrunkBusy
    assert found[-4:] == [TrunkBusy, TrunkError, TrunkBusy, TrunkLost]


def test_a_connection_that_was_closed_says_so():
    channel = transport.GrpcChannel(
        "grpc://there", grpc.insecure_channel("localhost:1"), transport.CLIENTS
    )
    channel.close()
    with pytest.raises(TrunkError, match="closed"):
        channel.call(b"", 1.0)
