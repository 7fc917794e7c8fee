# SPDX-License-Identifier: Apache-2.0
"""A trunk that is owned from another machine, by who has its secret and nobody else."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, datetime

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_flwr.errors import (
    ConfigError,
    PlanError,
    SessionError,
    TooFast,
    TrunkBusy,
    TrunkError,
    TrunkLost,
    WireError,
)
from atlas_flwr.lora import AdapterState, LoraFactors
from atlas_flwr.split import SplitPlan, partition
from atlas_flwr.trunk import (
    ServeOptions,
    SessionSpec,
    TrunkEngine,
    TrunkHost,
    connect,
    serve_grpc,
)
from atlas_flwr.trunk.credentials import Credentials
from atlas_flwr.trunk.state_bytes import spec_bytes
from atlas_flwr.trunk.transports.access import Access
from atlas_flwr.trunk.transports.certificates import kept_identity, run_identity
from atlas_flwr.trunk.transports.envelope import (
    opened_answer,
    sealed,
    sealed_answer,
)
from atlas_flwr.trunk.transports.grpc_channel import own_grpc
from atlas_flwr.trunk.transports.local import EngineTrunk
from atlas_flwr.trunk.transports.owner_requests import Served
from atlas_flwr.trunk.transports.ownership import SILENT, OwnerService
from atlas_flwr.trunk.transports.remote_host import RemoteHost
from atlas_flwr.trunk.transports.retry import retry_while_busy
from atlas_flwr.types import OptimizerSpec, TrunkCall
from tests.families import build
from tests.trunk.engine.test_parity import adapters

PLAN = SplitPlan(1, 1)
SECRET = "s" * 32
IDENTITY = run_identity("127.0.0.1")
SERVED = Served("first", "llama", "1/1", 4, 32, 0, "float32", "abc")
LAYER = "model.layers.1.mlp.up_proj"


def made(**changes):
    """Return an engine, its service, and its state of adapters."""
    torch.manual_seed(0)
    model = build("llama")
    state = adapters(model, range(1, 4))
    clock = changes.get("clock", time.monotonic)
    engine = TrunkEngine(partition(model, PLAN).trunk, clock=clock)
    return engine, OwnerService(engine, SECRET, SERVED, **changes), state


def host_of(service, secret=SECRET):
    return RemoteHost(service.answer, secret)


def trained(engine, token, steps=2):
    trunk = EngineTrunk(engine, token)
    for step in range(steps):
        hidden = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(step))
        answer = trunk.forward(TrunkCall(hidden, step=step))
        trunk.backward(step, torch.ones_like(answer))


def flat(state):
    return torch.cat([t.flatten() for f in state.factors.values() for t in (f.A, f.B)])


def test_an_owner_far_away_reads_what_one_beside_the_engine_reads():
    engine, service, state = made()
    spec = SessionSpec(PLAN, state, OptimizerSpec(lr=0.01), probe=True)
    with serve_grpc(engine, ServeOptions(identity=IDENTITY), service) as address:
        with own_grpc(address, SECRET, IDENTITY.ca.decode()) as host:
            assert isinstance(host, TrunkHost)
            mine, theirs = engine.open(spec), host.open(spec)
            for token in (mine, theirs):
                trained(engine, token)
            assert torch.equal(flat(engine.adapters(mine)), flat(host.adapters(theirs)))
            assert engine.importance(mine) == host.importance(theirs)
            assert host.importance(theirs)
            assert host.stats() == engine.stats()
            host.ping()
        with pytest.raises(SessionError, match="not open"):
            engine.adapters(theirs)
        engine.adapters(mine)


def test_errors_of_the_engine_are_the_owners():
    _, service, state = made()
    host = host_of(service)
    with pytest.raises(PlanError, match="cut 4/1 of 5"):
        host.open(SessionSpec(SplitPlan(4, 1), state))
    with pytest.raises(SessionError, match="not open"):
        host.adapters("nobody's")


@pytest.mark.parametrize("secret", ["", "t" * 32, "s" * 31, "ß" * 32])
def test_without_the_secret_nothing_is_told(secret):
    _, service, _ = made()
    with pytest.raises(TrunkError, match="not this trunk's owner"):
        host_of(service, secret)


def test_a_short_secret_is_no_secret():
    engine, _, _ = made()
    with pytest.raises(TrunkError, match="at least 32"):
        OwnerService(engine, "short", SERVED)


def test_a_client_cannot_ask_as_an_owner_nor_where_nobody_owns_it_so():
    engine, _, _ = made()
    with serve_grpc(engine, ServeOptions(identity=IDENTITY)) as address:
        token = engine.open(SessionSpec(PLAN))
        connect(address, token=token, ca=IDENTITY.ca).forward(
            TrunkCall(torch.randn(1, 2, 32))
        )
        with (
            pytest.raises(TrunkError, match=r"no service atlas\.TrunkOwner"),
            own_grpc(address, SECRET, IDENTITY.ca.decode()),
        ):
            pass


def test_what_two_runs_call_alike_are_two_things():
    engine, service, state = made()
    one, other = host_of(service), host_of(service)
    shared = SessionSpec(PLAN, state, OptimizerSpec(lr=0.01), shared="all")
    mine, theirs = one.open(shared), other.open(shared)
    trained(engine, mine)
    assert torch.equal(flat(other.adapters(theirs)), flat(state))
    assert not torch.equal(flat(one.adapters(mine)), flat(state))


def test_shared_products_are_folded_as_beside_the_engine():
    engine, service, state = made()
    m, n = engine.base.shapes[LAYER]
    product = LoraFactors(torch.randn(3, n), torch.randn(m, 3))
    folding = SessionSpec(
        PLAN, AdapterState(state.factors, origin="sum"), folds={LAYER: 1}
    )
    hidden = torch.randn(2, 5, 32)
    answers = []
    for host in (engine, host_of(service)):
        with pytest.raises(SessionError, match="share\\(\\) it first"):
            host.open(folding)
        host.share("sum", {LAYER: product})
        token = host.open(folding)
        answers.append(EngineTrunk(engine, token).forward(TrunkCall(hidden)))
        host.unshare("sum")
        with pytest.raises(SessionError, match="share\\(\\) it first"):
            host.open(folding)
    assert torch.equal(*answers)


def test_who_leaves_closes_its_own_sessions_alone():
    engine, service, _ = made()
    one, other = host_of(service), host_of(service)
    mine, theirs = one.open(SessionSpec(PLAN)), other.open(SessionSpec(PLAN))
    one.leave()
    engine.adapters(theirs)
    with pytest.raises(SessionError):
        engine.adapters(mine)


@pytest.mark.parametrize("verb", ["open", "share"])
def test_what_is_made_while_its_run_leaves_is_not_left_behind(verb):
    engine, service, state = made()
    host = host_of(service)
    reached, goes_on = threading.Event(), threading.Event()
    made_now = getattr(engine, verb)

    def slowly(*given):
        reached.set()
        assert goes_on.wait(60)
        return made_now(*given)

    setattr(engine, verb, slowly)
    given = {"open": [SessionSpec(PLAN, state)], "share": ["sum", {}]}[verb]
    with ThreadPoolExecutor(2) as pool:
        making = pool.submit(getattr(host, verb), *given)
        assert reached.wait(60)
        leaving = pool.submit(host.leave)
        wait([leaving], timeout=0.2)  # it may not wait for what is being made
        goes_on.set()
        making.exception()
        leaving.result()
    assert engine.stats().sessions == 0
    folding = AdapterState(origin=f"{host._own('sum')}")
    with pytest.raises(SessionError):
        engine.open(SessionSpec(PLAN, folding, folds={LAYER: 1}))


def test_a_call_that_arrives_after_its_run_has_left_makes_nothing():
    engine, service, state = made()
    sent = []

    def call(envelope):
        sent.append(envelope)
        return service.answer(envelope)

    host = RemoteHost(call, SECRET)
    host.open(SessionSpec(PLAN, state))
    host.share("sum", {})
    _, opening, sharing = sent
    host.leave()
    for late in (opening, sharing):
        with pytest.raises(TrunkError, match="has left"):
            opened_answer(service.answer(late))
    assert engine.stats().sessions == 0
    host_of(service).open(SessionSpec(PLAN, state))


def test_a_session_whose_opening_was_not_heard_of_is_opened_once():
    engine, service, state = made()
    lost = [0]

    def call(envelope):
        answer = service.answer(envelope)
        lost[0] += 1
        if lost[0] == 2:  # after the greeting
            raise TrunkBusy("the connection broke")
        return answer

    host = RemoteHost(call, SECRET)
    token = host.open(SessionSpec(PLAN, state))
    assert lost == [3]
    assert engine.stats().sessions == 1
    trained(engine, token)
    assert host.open(SessionSpec(PLAN, state)) != token


def test_a_run_that_ended_without_a_word_is_cleared_away_when_another_begins():
    now = [0.0]
    engine, service, _ = made(clock=lambda: now[0])
    dead, living = host_of(service), host_of(service)
    left, kept = dead.open(SessionSpec(PLAN)), living.open(SessionSpec(PLAN))
    now[0] = SILENT
    living.ping()
    now[0] = SILENT + 1
    host_of(service)
    engine.adapters(kept)
    with pytest.raises(SessionError):
        engine.adapters(left)


@pytest.mark.parametrize("call", [None, "", 1])
def test_a_call_without_a_name_opens_nothing(call):
    """Two of them would be taken for one that was made again."""
    engine, service, state = made()
    head = {**HEAD, "verb": "open", "call": call}
    envelope = sealed(head, spec_bytes(SessionSpec(PLAN, state)))
    with pytest.raises(WireError, match="which call it is of"):
        opened_answer(service.answer(envelope))
    assert engine.stats().sessions == 0


def test_a_run_whose_clients_train_for_long_is_not_taken_for_one_that_ended():
    now = [0.0]
    engine, service, state = made(clock=lambda: now[0])
    host = host_of(service)
    waits, trains = [host.open(SessionSpec(PLAN, state)) for _ in range(2)]
    now[0] = SILENT
    trained(engine, trains)
    now[0] = 2 * SILENT
    host_of(service)
    for token in (waits, trains):
        engine.adapters(token)
    now[0] = 3 * SILENT + 1
    host_of(service)
    for token in (waits, trains):
        with pytest.raises(SessionError):
            engine.adapters(token)


def test_an_owner_that_was_silent_for_long_has_its_sessions_when_it_asks():
    now = [0.0]
    engine, service, _ = made(clock=lambda: now[0])
    host = host_of(service)
    token = host.open(SessionSpec(PLAN))
    now[0] = SILENT + 1
    host.ping()
    engine.adapters(token)


def test_a_trunk_that_was_started_anew_is_not_the_one_before():
    _, service, _ = made()
    host = host_of(service)
    host.ping()
    service.served = Served("second", *list(vars(SERVED).values())[1:])
    with pytest.raises(TrunkLost, match="started anew"):
        host.ping()


HEAD = {"secret": SECRET, "run": "r", "call": "c"}


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=60)
    | st.builds(
        lambda verb, data: sealed({**HEAD, "verb": verb}, data),
        st.sampled_from(["open", "share", "adapters", "close", "eat"]),
        st.binary(max_size=60),
    )
)
def test_noise_is_answered_by_an_error_of_this_library(noise):
    service = NOISY
    with pytest.raises((WireError, TrunkError)):
        opened_answer(service.answer(noise))


_, NOISY, _ = made()


def test_an_access_file_is_its_owners_alone_and_comes_back(tmp_path):
    access = Access("grpcs://gpu:7001", "pem", SECRET)
    path = tmp_path / "access.json"
    access.write(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Access.read(path) == access
    assert SECRET not in repr(access)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"address": "a"}', "\xff"])
def test_another_file_is_no_access(tmp_path, text):
    path = tmp_path / "access.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match="atlas-flwr trunk"):
        Access.read(path)
    with pytest.raises(ConfigError, match="No such file"):
        Access.read(tmp_path / "none")


def test_a_trunk_that_is_started_again_shows_the_certificate_that_clients_know(
    tmp_path,
):
    first = kept_identity(tmp_path, "gpu.example")
    assert kept_identity(tmp_path, "gpu.example") == first
    other = kept_identity(tmp_path, "10.0.0.1")
    assert other != first
    assert kept_identity(tmp_path, "10.0.0.1") == other
    assert stat.S_IMODE((tmp_path / "server.key").stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["server.pem", "server.key", "ca.pem"])
@pytest.mark.parametrize("damaged", [False, True])
def test_files_of_which_a_crash_has_left_some_are_made_anew(tmp_path, name, damaged):
    kept_identity(tmp_path, "gpu.example")
    other = run_identity("gpu.example")
    parts = {"server.pem": other.certificate, "server.key": other.key}
    left = b"" if damaged else parts.get(name, other.ca)
    (tmp_path / name).write_bytes(left)
    found = kept_identity(tmp_path, "gpu.example")
    shown = Credentials(found.certificate, found.key)
    shown.check(datetime.now(UTC), found.ca)
    assert kept_identity(tmp_path, "gpu.example") == found


@pytest.mark.parametrize("write", ["access", "identity"])
def test_secrets_are_written_whole_and_for_their_owner_alone(
    tmp_path, monkeypatch, write
):
    name = "access.json" if write == "access" else "server.key"
    path = tmp_path / name
    path.write_text("old")
    path.chmod(0o644)  # as a file that was carried may be

    def written():
        if write == "access":
            Access("grpcs://a:1", "", SECRET).write(path)
        else:
            kept_identity(tmp_path, "gpu.example")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            written()
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert path.read_text() == "old"
    written()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() != "old"


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda host: host.open(SessionSpec(PLAN)), {"no": "token"}),
        (lambda host: host.importance("token"), {"layer": "much"}),
        (lambda host: host.importance("token"), {"layer": None}),
        (lambda host: host.stats(), {"nothing": 1}),
    ],
)
def test_a_trunk_that_answers_something_else_is_no_end_but_an_error_of_the_wire(
    ask, said
):
    _, service, _ = made()
    host, told = host_of(service), json.dumps(said).encode()
    host._call = lambda envelope: sealed_answer(lambda: told)
    with pytest.raises(WireError, match="a trunk that answers"):
        ask(host)


def test_an_owner_who_is_told_to_wait_asks_again():
    """As one behind the address of somebody who guesses, at its first call."""
    (_, service, _), calls = made(), []

    def answer(envelope):
        calls.append(envelope)

        def busy():
            raise TooFast("call again in a moment")

        return sealed_answer(busy) if len(calls) == 1 else service.answer(envelope)

    assert RemoteHost(answer, SECRET).served == SERVED
    assert len(calls) == 2


def test_a_trunk_that_has_as_many_calls_as_it_bears_for_a_minute_is_not_lost(
    monkeypatch,
):
    _, service, _ = made()
    host, slept = host_of(service), [0.0]
    waiting = retry_while_busy.__kwdefaults__
    monkeypatch.setitem(waiting, "sleep", slept.append)
    monkeypatch.setitem(waiting, "clock", lambda: sum(slept))

    def answer(envelope):
        if sum(slept) < 60:
            raise TrunkBusy("as many calls as it bears")
        return service.answer(envelope)

    host._call = answer
    host.ping()
    assert 60 <= sum(slept) < 70
