# SPDX-License-Identifier: Apache-2.0
"""What the engine holds is bounded, and what is forgotten is freed."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import replace

import pytest
import torch

from atlas_flwr.errors import SessionError, TrunkBusy, TrunkError
from atlas_flwr.split import SplitPlan, partition
from atlas_flwr.trunk import (
    EngineTrunk,
    Limits,
    SessionSpec,
    SkippingTrunk,
    TrunkEngine,
)
from atlas_flwr.trunk.transports.retry import retry_while_busy
from atlas_flwr.types import OptimizerSpec, TrunkCall
from tests.families import build

PLAN = SplitPlan(1, 1)
SPEC = SessionSpec(PLAN)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build("llama")


class Clock:
    """Time that passes when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def made(model, clock=None, recompute=False, **limits):
    trunk = partition(model, PLAN).trunk
    return TrunkEngine(
        trunk, limits=Limits(**limits), clock=clock or Clock(), recompute=recompute
    )


def call(step, rows=2):
    return TrunkCall(torch.ones(rows, 5, 32), step=step)


def test_a_session_in_use_is_not_evicted(model):
    clock = Clock()
    engine = made(model, clock, idle_seconds=10)
    token = engine.open(SPEC)
    for clock.now in range(0, 100, 9):
        engine.forward(token, call(None))
        engine.open(SPEC)
    engine.forward(token, call(None))


def test_a_forgotten_session_is_evicted_with_its_activations(model):
    clock = Clock()
    engine = made(model, clock, idle_seconds=10)
    token = engine.open(SPEC)
    engine.forward(token, call(0))
    clock.now = 11
    engine.open(SPEC)
    stats = engine.stats()
    assert (stats.sessions, stats.passes, stats.kept_bytes) == (1, 0, 0)
    with pytest.raises(SessionError, match="evicted"):
        engine.backward(token, 0, torch.ones(2, 5, 32))


def test_a_session_that_has_taken_its_steps_waits_for_its_owner(model):
    clock = Clock()
    engine = made(model, clock, idle_seconds=10)
    spec = replace(SPEC, steps=2)
    token, other = engine.open(spec), engine.open(SPEC)
    for step in range(2):
        for one in (token, other):
            engine.forward(one, call(step))
            engine.backward(one, step, torch.ones(2, 5, 32))
    clock.now = 1000  # the others take their time, or its client checks its trunk
    engine.forward(engine.open(SPEC), call(0))
    assert engine.adapters(token).factors.keys() == spec.state.factors.keys()
    with pytest.raises(SessionError, match="evicted"):
        engine.adapters(other)  # nobody said that these were all


def test_a_session_whose_client_took_fewer_steps_waits_for_its_owner_too(model):
    clock = Clock()
    engine = made(model, clock, idle_seconds=10)
    spec = replace(SPEC, steps=3)
    skips, died = engine.open(spec), engine.open(spec)
    trunk = SkippingTrunk(EngineTrunk(engine, skips), 0.5, steps=3)
    for step, size in enumerate((1.0, 0.1, 1.0)):
        trunk.forward(call(step))
        trunk.backward(step, torch.full((2, 5, 32), size))
    engine.forward(died, call(0))
    clock.now = 1000
    engine.forward(engine.open(SPEC), call(0))
    assert trunk.skipped == 1
    assert engine.adapters(skips).factors.keys() == spec.state.factors.keys()
    with pytest.raises(SessionError, match="evicted"):
        engine.adapters(died)


def test_a_client_that_waits_for_its_turn_keeps_its_session(model):
    clock = Clock()
    engine = made(model, clock, idle_seconds=10, sessions=2)
    waiting = engine.open(SPEC)
    clock.now = 1000
    engine.open(SPEC)
    engine.forward(waiting, call(None))


def test_room_is_made_at_the_cost_of_sessions_never_used(model):
    clock = Clock()
    engine = made(model, clock, idle_seconds=10, sessions=1)
    engine.open(SPEC)
    with pytest.raises(TrunkBusy, match=r"raise Limits\.sessions"):
        engine.open(SPEC)
    clock.now = 11
    engine.open(SPEC)


def test_bytes_push_back_as_counts_do(model):
    engine = made(model, kept_bytes=1)
    one, two = engine.open(SPEC), engine.open(SPEC)
    engine.forward(one, call(0))
    with pytest.raises(TrunkBusy, match="bytes of activations"):
        engine.forward(two, call(0))
    engine.forward(two, call(None))  # keeps nothing
    engine.backward(one, 0, torch.ones(2, 5, 32))
    engine.forward(two, call(0))


@pytest.mark.parametrize("limit", ["passes", "kept_bytes"])
def test_batches_in_flight_do_not_keep_each_other_out(model, limit):
    """A later one goes on only when those before it have been answered."""
    alone = made(model)
    alone.forward(alone.open(SPEC), call(0))
    one = {"passes": 1, "kept_bytes": alone.stats().kept_bytes}[limit]
    engine = made(model, **{limit: 2 * one}, passes_per_session=2)
    spec = replace(SPEC, optimizer=OptimizerSpec(accumulate=3))
    tokens = [engine.open(spec) for _ in range(2)]
    for token in tokens:
        engine.forward(token, call(0))
    for token in tokens:
        with pytest.raises(TrunkBusy):
            engine.forward(token, call(1))
        engine.backward(token, 0, torch.ones(2, 5, 32))
        engine.forward(token, call(2))  # before the one that was refused asks again
    with pytest.raises(TrunkBusy):
        engine.forward(engine.open(spec), call(0))
    for token in tokens:
        engine.forward(token, call(1))
        for step in (1, 2):
            engine.backward(token, step, torch.ones(2, 5, 32))
    assert engine.stats().passes == 0


def test_an_answer_repeated_needs_no_room(model):
    engine = made(model, passes=1)
    token = engine.open(SPEC)
    first = engine.forward(token, call(0))
    assert engine.forward(token, call(0)) is first


def test_a_restarted_client_is_not_locked_out_by_its_own_pass(model):
    engine = made(model, passes=1)
    token = engine.open(SPEC)
    engine.forward(token, call(0))
    engine.forward(token, TrunkCall(torch.zeros(2, 5, 32), step=0))
    assert engine.stats().passes == 1


def test_kept_bytes_grow_with_the_batch_and_vanish_after_it(model):
    kept = {}
    for rows in (2, 4, 8):
        engine = made(model)
        token = engine.open(SPEC)
        engine.forward(token, call(0, rows))
        kept[rows] = engine.stats().kept_bytes
        engine.backward(token, 0, torch.ones(rows, 5, 32))
        assert engine.stats().kept_bytes == 0
    # Rotary tables and the like do not grow with it, and weigh little.
    assert kept[8] - kept[4] == 2 * (kept[4] - kept[2]) > 0.9 * kept[4]


def test_recomputing_keeps_the_input_alone(model):
    engine = made(model, recompute=True)
    token = engine.open(SPEC)
    engine.forward(token, call(0))
    assert engine.stats().kept_bytes == 2 * 5 * 32 * 4


def test_passes_of_many_threads_never_exceed_the_limit(model):
    engine = made(model, passes=3)
    tokens = [engine.open(SPEC) for _ in range(8)]
    outcomes: Counter[str] = Counter()
    start = threading.Barrier(len(tokens))

    def work(token):
        start.wait()
        try:
            engine.forward(token, call(0))
            outcomes["kept"] += 1
        except TrunkBusy:
            outcomes["busy"] += 1

    threads = [threading.Thread(target=work, args=(token,)) for token in tokens]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == {"kept": 3, "busy": 5}
    assert engine.stats().passes == 3


def test_accounts_are_read_while_passes_run(model):
    engine = made(model)
    tokens = [engine.open(SPEC) for _ in range(2)]
    failures = []

    def work(token):
        for step in range(15):
            engine.forward(token, call(step))
            engine.backward(token, step, torch.ones(2, 5, 32))

    def watch():
        try:
            while any(thread.is_alive() for thread in threads):
                assert 0 <= engine.stats().passes <= 2
                time.sleep(0.001)  # or it would keep the interpreter to itself
        except (AssertionError, RuntimeError) as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(token,)) for token in tokens]
    watcher = threading.Thread(target=watch)
    for thread in (*threads, watcher):
        thread.start()
    for thread in (*threads, watcher):
        thread.join()
    assert not failures
    assert engine.stats().steps == 30
    assert engine.stats().busy_seconds > 0


def test_tokens_are_long_and_never_alike(model):
    engine = made(model)
    tokens = {engine.open(SPEC) for _ in range(50)}
    assert len(tokens) == 50
    assert min(map(len, tokens)) >= 32


@pytest.mark.parametrize("name", ["sessions", "passes", "idle_seconds", "kept_bytes"])
def test_limits_that_let_nothing_in_are_refused(name):
    with pytest.raises(TrunkError, match=name):
        Limits(**{name: 0})


def test_patience_ends_with_the_timeout_and_pauses_longer_each_time():
    clock, pauses = Clock(), []

    def sleep(seconds):
        pauses.append(seconds)
        clock.now += seconds

    def ask():
        raise TrunkBusy("busy")

    with pytest.raises(TrunkBusy):
        retry_while_busy(ask, 10, clock=clock, sleep=sleep)
    assert pauses == sorted(pauses)
    assert sum(pauses) <= 10 < sum(pauses) + 2.0


def test_patience_is_rewarded():
    left = [TrunkBusy("busy"), TrunkBusy("busy")]

    def ask():
        if left:
            raise left.pop()
        return "answer"

    assert (
        retry_while_busy(ask, 10, clock=Clock(), sleep=lambda seconds: None) == "answer"
    )
