# SPDX-License-Identifier: Apache-2.0
"""Calls a second: who is too fast waits for the same bits, and guesses cost time."""

from __future__ import annotations

import io
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.errors import SessionError, TooFast, TrunkBusy, TrunkError, WireError
from atlas_flwr.split import SplitPlan, partition
from atlas_flwr.trunk import (
    ServeOptions,
    SessionSpec,
    TrunkEngine,
    connect,
    serve_grpc,
)
from atlas_flwr.trunk.transports import link, retry
from atlas_flwr.trunk.transports.envelope import (
    opened_answer,
    sealed,
    sealed_request,
)
from atlas_flwr.trunk.transports.grpc import _clients
from atlas_flwr.trunk.transports.grpc_channel import own_grpc
from atlas_flwr.trunk.transports.metrics import TrunkMetrics
from atlas_flwr.trunk.transports.ownership import OwnerService
from atlas_flwr.trunk.transports.rates import (
    GUESSED_AT_ONCE,
    GUESSES,
    LEAST_BURST,
    Buckets,
    Rates,
    address_of,
)
from atlas_flwr.trunk.transports.requests import Request, Verb
from atlas_flwr.trunk.transports.watching import TOLD, Calls, Journal, Watch
from atlas_flwr.types import Role, TrunkCall
from atlas_flwr.wire.codecs import codec_named
from atlas_flwr.wire.messages import encode_tensors
from tests.families import build
from tests.trunk.transports.test_grpc import learned
from tests.trunk.transports.test_ownership import SECRET, SERVED

PLAN = SplitPlan(1, 1)
CALL = TrunkCall(torch.zeros(1, 2, 32))


class Clock:
    """Stands still, or goes on by a step at each look."""

    def __init__(self, step=0.0):
        self.now, self.step = 0.0, step

    def __call__(self):
        self.now += self.step
        return self.now


@pytest.fixture(scope="module")
def engine():
    torch.manual_seed(0)
    return TrunkEngine(partition(build("llama"), PLAN).trunk)


@given(
    st.lists(st.floats(0, 3).map(lambda s: round(s * 8) / 8), max_size=25),
    st.integers(1, 5),
    st.integers(1, 8),
)
def test_in_no_time_more_pass_than_burst_and_rate_allow_and_none_less(
    pauses, rate, burst
):
    """Eighths of a second and whole rates: nothing is rounded."""
    clock = Clock()
    buckets = Buckets(rate, burst, clock)
    passed = []
    for pause in pauses:
        clock.now += pause
        windows = [
            burst + rate * (clock.now - passed[first]) - (len(passed) - first)
            for first in range(len(passed))
        ]
        allowed = all(left >= 1 for left in windows)
        assert buckets.take("a") == allowed
        if allowed:
            passed.append(clock.now)


def test_what_is_given_back_can_be_taken_and_others_have_their_own():
    buckets = Buckets(1, 2, Clock())
    assert [buckets.take("a") for _ in range(3)] == [True, True, False]
    buckets.give_back("a")
    assert [buckets.take("a"), buckets.take("a")] == [True, False]
    assert buckets.take("b")


def test_no_more_keys_are_remembered_than_there_is_room_for():
    buckets = Buckets(1, 1, Clock(), room=3)
    for key in "abcda":
        assert buckets.take(key)
    assert not buckets.take("d")
    assert len(buckets._left) == 3


@contextmanager
def counted(engine, rates):
    """Serve; yield the address, and what reads how many calls were refused why."""
    metrics = TrunkMetrics(engine.stats)
    watch = Watch(Journal([io.StringIO()]), metrics.heard)
    owner = OwnerService(engine, SECRET, SERVED)

    def refused(error):
        rows = metrics.text().decode().splitlines()
        found = (r for r in rows if r.startswith("atlas_trunk_refused_calls_total"))
        return sum(float(r.split()[-1]) for r in found if f'"{error}"' in r)

    with serve_grpc(engine, ServeOptions(rates=rates), owner, watch) as address:
        yield address, refused


def test_a_client_that_is_too_fast_is_slowed_and_has_the_same_bits(monkeypatch):
    monkeypatch.setattr(retry, "FIRST_PAUSE", 1e-4)
    refusals = []

    @contextmanager
    def afar(engine, token, rates=None):
        with counted(engine, rates or Rates()) as (address, refused):
            yield connect(address, token=token)
            refusals.append(refused("TooFast"))

    def limited(engine, token):
        clock = Clock()
        rates = Rates(1, clock)
        for _ in range(LEAST_BURST):
            rates.called(token)
        clock.step = 0.4
        return afar(engine, token, rates)

    (near, mine), (far, theirs) = learned(afar), learned(limited)
    assert near == far
    assert torch.equal(mine, theirs)
    assert refusals[0] == 0
    assert refusals[1] >= 6  # three steps of two calls, each refused once at least


def test_the_limit_is_each_sessions_own(engine):
    clock = Clock()
    with counted(engine, Rates(10, clock)) as (address, refused):
        fast, slow = (connect(address, engine.open(SessionSpec(PLAN))) for _ in "ab")
        for _ in range(LEAST_BURST):
            fast.forward(CALL)
        with pytest.raises(TrunkBusy, match="more than 10 calls a second of one"):
            fast.exchange(Request(Verb.FORWARD, fast.token, "raw", b""))
        slow.forward(CALL)
        assert refused("TooFast") == 1
        clock.now += 0.1
        fast.forward(CALL)


def test_measuring_a_link_is_no_more_than_may_come_at_once(engine, monkeypatch):
    """A measurement that waited would choose another codec."""
    monkeypatch.setattr(link, "ENOUGH", 1e9)  # so all sizes are tried
    with counted(engine, Rates(1, Clock())) as (address, refused):
        link.link_speed(connect(address, engine.open(SessionSpec(PLAN))))
        assert refused("TooFast") == 0


def told(trunk, token):
    """Ask once; return the kind of the refusal, if the token was refused."""
    request = Request(Verb.FORWARD, token, "raw", b"")
    try:
        opened_answer(trunk.channel.call(sealed_request(request), 10))
    except TrunkError as error:
        return type(error)
    except WireError:  # of the empty frame: the token was right
        return None


def test_guesses_run_out_and_a_right_one_is_told_no_sooner(engine):
    clock = Clock()
    with counted(engine, Rates(1000, clock)) as (address, refused):
        known, right = (engine.open(SessionSpec(PLAN)) for _ in "ab")
        trunk = connect(address, known)
        trunk.forward(CALL)
        kinds = [told(trunk, f"guess {n}") for n in range(GUESSED_AT_ONCE + 5)]
        assert kinds == [SessionError] * GUESSED_AT_ONCE + [TrunkBusy] * 5
        assert told(trunk, right) is TrunkBusy
        trunk.forward(CALL)  # who trains already is not disturbed
        assert refused("TooFast") == 6
        clock.now += 1.0
        assert told(trunk, right) is None  # and costs nothing
        kinds = [told(trunk, f"again {n}") for n in range(GUESSES + 1)]
        assert kinds == [SessionError] * GUESSES + [TrunkBusy]


def test_guessing_the_owners_secret_is_as_slow(engine):
    owner = OwnerService(engine, SECRET, SERVED)
    shown = partial(Rates(1000, Clock()).shown, "10.0.0.1")

    def answer(secret):
        asked = sealed({"verb": "hello", "secret": secret, "run": "r"}, b"")
        return opened_answer(owner.answer(asked, shown))

    assert answer(SECRET)
    for n in range(GUESSED_AT_ONCE):
        with pytest.raises(TrunkError, match="another one's"):
            answer(f"guess {n}")
    with pytest.raises(TrunkBusy, match="wrong tokens or secrets a second"):
        answer("guess")
    assert answer(SECRET)


def test_an_owner_over_grpc_is_counted_by_its_address(engine):
    rates = Rates(1000, Clock())
    with counted(engine, rates) as (address, _):
        for n in range(GUESSED_AT_ONCE):
            rates.shown("127.0.0.1", f"{n}", is_right=False)
        with (
            pytest.raises(TrunkBusy, match=r"127\.0\.0\.1: call again"),
            own_grpc(address, SECRET, None, timeout=1.0),
        ):
            pass


def test_without_a_limit_nothing_is_counted():
    rates = Rates(0, Clock())
    for n in range(3 * GUESSED_AT_ONCE):
        rates.shown("10.0.0.1", f"{n}", is_right=False)
        rates.called("a")


def test_many_sessions_behind_one_address_cost_it_nothing():
    rates = Rates(1000, Clock())
    for n in range(10 * GUESSED_AT_ONCE):
        rates.shown("10.0.0.1", f"{n}", is_right=True)
    for n in range(GUESSED_AT_ONCE):
        rates.shown("10.0.0.1", f"wrong {n}", is_right=False)
    with pytest.raises(TooFast):
        rates.shown("10.0.0.1", "wrong", is_right=False)


class Caller:
    """What gRPC says of who calls."""

    def __init__(self, address):
        self.peer = lambda: f"ipv4:{address}:5000"


def test_a_flood_of_refused_calls_grows_nothing_and_starves_no_session(engine):
    """Guesses, noise, another version, and a session that is too fast, with no pause.

    Each is refused and counted; who trains, from the address of guessers too, is
    answered by a frame each time.
    """
    clock, calls, written = Clock(), Calls(), io.StringIO()
    metrics = TrunkMetrics(engine.stats)
    watch = Watch(Journal([written], clock), calls.heard)
    options = ServeOptions(rates=Rates(1000, clock))
    answer = _clients(engine, options, watch, ThreadPoolExecutor(1)).answer
    honest, fast = (engine.open(SessionSpec(PLAN)) for _ in "ab")
    echo = encode_tensors(codec_named("raw"), {"echo": (torch.ones(9), Role.ADAPTER)})

    def asked(token, address):
        request = Request(Verb.ECHO, token, "raw", echo)
        return answer(sealed_request(request), Caller(address))

    def flooded(numbers):
        for n in numbers:
            here = f"10.0.0.{n % 7}"
            answer(b"noise", Caller(here))
            answer(sealed({}, b"").replace(b"ATLS\2", b"ATLS\1"), Caller(here))
            asked(f"guess {n}", here)
            asked(fast, "10.0.0.9")
            if n % 50 == 0:
                assert opened_answer(asked(honest, "10.0.0.3"))

    for _ in range(2 * 1000):
        asked(fast, "10.0.0.9")
    with calls.heard_by(metrics.heard):
        assert opened_answer(asked(honest, "10.0.0.3"))
        flooded(range(1500))  # until guesses are refused unread
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        flooded(range(1500, 2000))
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    guesses = 7 * GUESSED_AT_ONCE
    assert calls.refused() == {
        "SessionError": guesses,
        "TooFast": 2000 - guesses + 2000,
        "WireError": 2 * 2000,
    }
    assert after - before < 20_000  # ten bytes a refusal
    assert written.getvalue().count("\n") == TOLD
    assert opened_answer(asked(engine.open(SessionSpec(PLAN)), "10.0.0.8"))


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.0.1:5000", "10.0.0.1"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:5000", "2001:db8:1:2::/64"),
        ("ipv6:[fe80::1%25eth0]:5000", "fe80::/64"),
        ("ipv6:[::ffff:10.0.0.1]:5000", "10.0.0.1"),
        ("unix:/run/trunk", "unix:/run/trunk"),
    ],
)
def test_an_address_is_a_machines_not_a_connections(peer, address):
    assert address_of(peer) == address
