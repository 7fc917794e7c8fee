# SPDX-License-Identifier: Apache-2.0
"""Calls that wait together run as one pass, in their order, and alone if alone."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_flwr.budget.queues import Waiting
from atlas_flwr.errors import TrunkBusy, TrunkError
from atlas_flwr.split import SplitPlan, partition
from atlas_flwr.trunk import Limits, SessionSpec, TrunkEngine
from atlas_flwr.trunk.engine.gathering import Gathering
from atlas_flwr.trunk.engine.work import Evaluation
from atlas_flwr.trunk.state_bytes import spec_bytes, spec_of
from atlas_flwr.types import OptimizerSpec, TrunkCall
from tests.families import build
from tests.trunk.engine.test_parity import adapters

PLAN, SPEC = SplitPlan(1, 1), OptimizerSpec(lr=0.01)
LONG = 60.0  # no test may wait so long


class Recording:
    """A batcher that does nothing but remember; ``kinds`` by the work's name."""

    def __init__(self, kinds=None, fails=None):
        self.kinds, self.fails, self.passes = kinds or {}, fails, []

    def kind(self, work):
        return self.kinds.get(work.name, "any")

    def run(self, works):
        self.passes.append([work.name for work in works])
        if self.fails is not None:
            raise self.fails
        return [work.name.upper() for work in works]


def work(name, shape=(2, 4), left=0.0, cluster=""):
    hidden = torch.zeros(*shape, 1)
    session = SimpleNamespace(learner=name)
    return SimpleNamespace(
        name=name,
        session=session,
        call=SimpleNamespace(hidden=hidden),
        waiting=Waiting(left, cluster),
    )


def gathering(batcher, **limits):
    return Gathering(batcher, Limits(**limits))


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def together(gathering, calls):
    """Make calls from as many threads, which all wait before a pass begins."""
    results = {}

    def ask(name, do):
        try:
            results[name] = do()
        except Exception as error:
            results[name] = error

    with gathering._lock:
        gathering._passes += gathering.limits.passes_at_once
    threads = [threading.Thread(target=ask, args=call) for call in calls.items()]
    for thread in threads:
        before = len(gathering._waiting)
        thread.start()
        # A repeated call is answered at once, and does not wait.
        wait_until(
            lambda thread=thread, before=before: (
                len(gathering._waiting) > before or not thread.is_alive()
            )
        )
    with gathering._lock:
        gathering._passes -= gathering.limits.passes_at_once
        gathering._appoint()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    return results


def asked(made, works):
    return together(made, {w.name: (lambda w=w: made.do(w)) for w in works})


def test_calls_that_wait_together_run_as_one_pass_each_with_its_own_answer():
    batcher = Recording()
    made = gathering(batcher)
    assert asked(made, map(work, "abc")) == {"a": "A", "b": "B", "c": "C"}
    assert batcher.passes == [["a", "b", "c"]]
    assert (made.counts.passes, made.counts.joined_calls) == (1, 3)


def test_however_many_call_passes_run_in_as_few_threads_as_run_at_once():
    class Here(Recording):
        def run(self, works):
            where.append(threading.get_ident())
            return super().run(works)

    for own, most in ((True, 2), (False, 9)):
        where = []
        limits = Limits(sessions_per_pass=1, passes_at_once=2)
        made = Gathering(Here(), limits, own_threads=own)
        answers = asked(made, map(work, "abcdefghi"))
        assert answers == {name: name.upper() for name in "abcdefghi"}
        assert len(set(where)) <= most
        assert own == (len(set(where)) < len(where))


def test_what_fails_in_a_thread_of_its_own_is_told_to_who_called():
    made = Gathering(Recording(fails=TrunkBusy("full")), Limits(), own_threads=True)
    with pytest.raises(TrunkBusy, match="full"):
        made.do(work("a"))


def test_the_longest_waiting_goes_first_and_takes_its_like_along():
    batcher = Recording({"a": 1, "b": 2, "c": 1, "d": 2, "e": None, "f": 1})
    made = gathering(batcher, sessions_per_pass=2)
    asked(made, map(work, "abcdef"))
    assert batcher.passes == [["a", "c"], ["b", "d"], ["e"], ["f"]]
    assert made.counts.unjoined_calls == 1


def test_who_has_the_longest_way_before_it_goes_first():
    batcher = Recording({"a": 1, "b": 2, "c": 1, "d": 2})
    made = gathering(batcher, sessions_per_pass=2)
    lefts = {"a": 1.0, "b": 5.0, "c": 9.0, "d": 7.0}
    asked(made, [work(name, left=left) for name, left in lefts.items()])
    assert batcher.passes == [["c", "a"], ["d", "b"]]
    batcher.passes.clear()
    made = gathering(batcher, queue="fifo", sessions_per_pass=1)
    asked(made, [work(name, left=left) for name, left in lefts.items()])
    assert batcher.passes == [["a"], ["b"], ["c"], ["d"]]


def test_a_fair_trunk_does_not_let_a_crowd_go_first():
    batcher = Recording()
    made = gathering(batcher, queue="fair", sessions_per_pass=1)
    asked(made, [*(work(name, cluster="crowd") for name in "abcd"), work("e")])
    assert batcher.passes == [["a"], ["e"], ["b"], ["c"], ["d"]]


@pytest.mark.parametrize("held", [{}, {"model.layers.1.mlp.up_proj": 1}])
def test_a_call_that_waits_is_of_its_sessions_cluster(held):
    trunk = partition(build("llama"), PLAN).trunk
    engine, rows = TrunkEngine(trunk), torch.zeros(2, 3, 32)
    state = replace(adapters(build("llama"), range(1, 4)), origin="7")
    if held:
        engine.share("7", state.factors)
    sent = spec_bytes(SessionSpec(PLAN, state, folds=held, steps=5))
    token = engine.open(spec_of(sent))
    made = Evaluation(engine._table.find(token), TrunkCall(rows))
    assert made.waiting == Waiting(float("inf"), "7", 6)


def test_a_session_knows_how_long_its_client_will_be_away():
    now = 0.0
    engine = TrunkEngine(partition(build("llama"), PLAN).trunk, clock=lambda: now)
    token = engine.open(SessionSpec(PLAN, optimizer=SPEC, steps=3))
    session = engine._table._sessions[token]
    assert session.left == float("inf")  # so that a first call is not kept waiting
    hidden = torch.zeros(1, 2, 32)
    for step, away in enumerate((7.0, 3.0)):
        now += away
        engine.forward(token, TrunkCall(hidden, step=step))
        now += 1.0
        engine.backward(token, step, torch.zeros(1, 2, 32))
    # Between the calls 1, 3 and 1 s; the first 7 are before it began. Two calls left.
    assert session.left == pytest.approx(2 * 5 / 3)


def test_an_unknown_queue_is_refused():
    with pytest.raises(TrunkError, match="'random'; it must be one of fifo"):
        Limits(queue="random")


def test_a_pass_holds_no_more_rows_than_allowed_nor_much_that_is_filled_up():
    batcher = Recording()
    made = gathering(batcher, rows_per_pass=16)
    works = [work("a"), work("b", (2, 1)), work("c"), work("d"), work("e", (1, 1))]
    asked(made, works)
    assert batcher.passes == [["a", "c"], ["b"], ["d"], ["e"]]


def test_a_pass_too_large_for_any_company_runs_all_the_same():
    batcher = Recording()
    assert asked(gathering(batcher, rows_per_pass=1), map(work, "ab")) == {
        "a": "A",
        "b": "B",
    }
    assert batcher.passes == [["a"], ["b"]]


def test_passes_at_once_share_what_waits():
    batcher = Recording()
    made = gathering(batcher, passes_at_once=2)
    asked(made, map(work, "abcd"))
    assert batcher.passes[0] == ["a", "b"]
    assert sorted(name for names in batcher.passes for name in names) == list("abcd")


def test_calls_in_turn_wait_for_nobody():
    batcher = Recording()
    made = gathering(batcher, window_seconds=LONG)
    made._last_seconds = 2 * LONG
    for name in "abab":
        assert made.do(work(name)) == name.upper()
    assert batcher.passes == [["a"], ["b"], ["a"], ["b"]]


def test_a_pass_waits_for_those_that_called_beside_others_before():
    batcher = Recording()
    made = gathering(batcher, window_seconds=LONG)
    asked(made, map(work, "abc"))
    made._last_seconds = 2 * LONG
    threads = [threading.Thread(target=made.do, args=(work(n),)) for n in "ab"]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(made._waiting) == 2)
    assert len(batcher.passes) == 1
    made.do(work("c"))
    for thread in threads:
        thread.join(20)
    assert sorted(batcher.passes[1]) == ["a", "b", "c"]


def test_a_session_that_is_closed_is_waited_for_no_more():
    batcher = Recording()
    made = gathering(batcher, window_seconds=LONG)
    asked(made, map(work, "ab"))
    made._last_seconds = 2 * LONG
    thread = threading.Thread(target=made.do, args=(work("a"),))
    thread.start()
    wait_until(lambda: len(made._waiting) == 1)
    made.forget("b")
    thread.join(20)
    assert batcher.passes[1:] == [["a"]]


def test_one_that_stays_away_is_waited_for_once():
    batcher = Recording()
    made = gathering(batcher, window_seconds=0.05)
    asked(made, map(work, "ab"))
    made._last_seconds = 1.0
    made.do(work("a"))
    assert made._company == {"a"}
    made.limits = Limits(window_seconds=LONG)
    made._last_seconds = 2 * LONG
    made.do(work("a"))
    assert batcher.passes[1:] == [["a"], ["a"]]


def test_at_one_session_a_pass_nothing_is_joined_nor_waited_for():
    batcher = Recording()
    made = gathering(batcher, sessions_per_pass=1, window_seconds=LONG)
    made._last_seconds = 2 * LONG
    asked(made, map(work, "abc"))
    assert batcher.passes == [["a"], ["b"], ["c"]]


def test_a_pass_that_fails_tells_each_of_its_calls_and_harms_no_later_one():
    cause = ZeroDivisionError("no")
    batcher = Recording(fails=cause)
    made = gathering(batcher)
    for error in asked(made, map(work, "ab")).values():
        assert isinstance(error, TrunkError)
        assert error.__cause__ is cause
    with pytest.raises(ZeroDivisionError):
        made.do(work("a"))
    batcher.fails = None
    assert made.do(work("a")) == "A"


def test_a_rule_that_fails_is_told_to_who_leads_and_holds_nobody_up():
    class Trying(Recording):
        def kind(self, work):
            raise ZeroDivisionError("no")

    found = asked(gathering(Trying()), map(work, "abc"))
    assert len(found) == 3
    for error in found.values():
        assert isinstance(error, ZeroDivisionError)


def test_memory_that_ends_as_it_is_tried_what_joins_is_a_busy_trunk(monkeypatch):
    def full(base):
        raise torch.OutOfMemoryError("CUDA out of memory")

    engine, tokens = served(3)
    calls = {k: forward(engine, t, k, 0) for k, t in enumerate(tokens)}
    with monkeypatch.context() as patch:
        patch.setattr("atlas_flwr.trunk.engine.base.rows_join", full)
        found = together(engine._passes, calls)
    assert {type(error) for error in found.values()} == {TrunkBusy}
    found = together(engine._passes, calls)
    assert all(isinstance(answer, torch.Tensor) for answer in found.values())


def served(count, **limits):
    torch.manual_seed(0)
    model = build("llama")
    engine = TrunkEngine(partition(model, PLAN).trunk, limits=Limits(**limits))
    states = [adapters(model, range(1, 4), seed=k) for k in range(count)]
    return engine, [engine.open(SessionSpec(PLAN, s, SPEC)) for s in states]


def drawn(k, step, kind):
    seed = 100 * k + 10 * step + kind
    return torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(seed))


def forward(engine, token, k, step):
    return lambda: engine.forward(token, TrunkCall(drawn(k, step, 0), step=step))


def backward(engine, token, k, step):
    return lambda: engine.backward(token, step, drawn(k, step, 1))


def test_clients_in_threads_train_as_they_do_in_turn_in_a_twelfth_of_the_passes():
    (joined, ours), (apart, theirs) = served(12), served(12)
    for step in range(3):
        for verb in (forward, backward):
            calls = {k: verb(joined, t, k, step) for k, t in enumerate(ours)}
            got = together(joined._passes, calls)
            for k, token in enumerate(theirs):
                wanted = verb(apart, token, k, step)()
                torch.testing.assert_close(got[k], wanted, atol=1e-4, rtol=1e-4)
    for one, other in zip(ours, theirs, strict=True):
        found, wanted = (e.adapters(t) for e, t in ((joined, one), (apart, other)))
        for name, factors in wanted.factors.items():
            torch.testing.assert_close(
                found.factors[name].B, factors.B, atol=1e-4, rtol=1e-3
            )
    assert joined.stats().base_passes == 6
    assert joined.stats().joined_calls == 72
    assert (apart.stats().base_passes, apart.stats().joined_calls) == (72, 0)
    assert joined.stats().steps == apart.stats().steps == 36
    assert joined.stats().passes == joined.stats().kept_bytes == 0


def test_joined_calls_that_are_repeated_get_the_first_answer_and_no_second_step():
    engine, tokens = served(3)
    pairs = list(enumerate(tokens))
    first = together(engine._passes, {k: forward(engine, t, k, 0) for k, t in pairs})
    for k, token in pairs:
        assert torch.equal(forward(engine, token, k, 0)(), first[k])
    back = together(engine._passes, {k: backward(engine, t, k, 0) for k, t in pairs})
    trained = [engine.adapters(t) for t in tokens]
    for k, token in pairs:
        assert torch.equal(backward(engine, token, k, 0)(), back[k])
        assert torch.equal(forward(engine, token, k, 0)(), first[k])
        for name, factors in engine.adapters(token).factors.items():
            assert torch.equal(factors.B, trained[k].factors[name].B)
    assert engine.stats().steps == 3


def test_a_client_that_dies_in_a_joined_step_leaves_the_others_as_they_were():
    (engine, tokens), (apart, theirs) = served(4), served(4)
    pairs = list(enumerate(tokens))
    together(engine._passes, {k: forward(engine, t, k, 0) for k, t in pairs})
    engine.close(tokens[0])
    rest = pairs[1:]
    back = together(engine._passes, {k: backward(engine, t, k, 0) for k, t in rest})
    for k, token in enumerate(theirs):
        forward(apart, token, k, 0)()
        wanted = backward(apart, token, k, 0)()
        if k:
            torch.testing.assert_close(back[k], wanted, atol=1e-5, rtol=1e-5)
    assert engine.stats().passes == 0


def test_joined_passes_share_what_they_keep():
    (joined, ours), (apart, theirs) = served(4), served(4)
    calls = {k: forward(joined, t, k, 0) for k, t in enumerate(ours)}
    together(joined._passes, calls)
    for k, token in enumerate(theirs):
        forward(apart, token, k, 0)()
    one, other = joined.stats(), apart.stats()
    assert one.passes == other.passes == 4
    # Not less than half: the pass has copies of the adapters, but of x one for all.
    assert 0.5 * other.kept_bytes < one.kept_bytes < 1.5 * other.kept_bytes


def test_a_lone_client_gets_the_same_bits_whether_or_not_passes_are_joined():
    answers = []
    for most in (1, 64):
        engine, (token,) = served(1, sessions_per_pass=most)
        for step in range(3):
            answer = forward(engine, token, 0, step)()
            answers.append((answer, backward(engine, token, 0, step)()))
    for one, other in zip(answers[:3], answers[3:], strict=True):
        assert all(map(torch.equal, one, other))


verbs = st.sampled_from([forward, forward, backward, backward, None])


@pytest.fixture(scope="module")
def met():
    """Two engines, one that joins what meets and one that is called in turn."""
    return served(3), served(3)


@settings(max_examples=15)
@given(st.lists(st.lists(verbs, min_size=3, max_size=3), max_size=7))
def test_whatever_calls_meet_in_a_pass_each_session_trains_as_in_a_straight_run(
    met, rounds
):
    """Repeated, reordered and missing calls of three sessions, joined or not."""
    (engine, known), (apart, _) = met
    specs = [engine._table._sessions[token].spec for token in known]
    tokens, theirs = ([e.open(spec) for spec in specs] for e in (engine, apart))
    steps, began = [0, 0, 0], [False] * 3
    for calls in rounds:
        wanted = {}
        for k, verb in enumerate(calls):
            if verb is backward and not began[k]:
                verb = None
            if verb is not None:
                wanted[k] = verb
        got = together(
            engine._passes,
            {k: verb(engine, tokens[k], k, steps[k]) for k, verb in wanted.items()},
        )
        for k, verb in wanted.items():
            expected = verb(apart, theirs[k], k, steps[k])()
            torch.testing.assert_close(got[k], expected, atol=1e-4, rtol=1e-3)
            again = verb(engine, tokens[k], k, steps[k])()
            assert torch.equal(again, got[k])
            began[k] = verb is forward
            steps[k] += verb is backward
    for made, ours in ((engine, tokens), (apart, theirs)):
        for token in ours:
            made.close(token)


def test_sessions_that_wait_together_are_not_all_let_in_over_the_limit_of_bytes():
    engine, tokens = served(3, kept_bytes=1)
    forward(engine, tokens[0], 0, 0)()  # now it is known what a pass keeps
    backward(engine, tokens[0], 0, 0)()
    calls = {k: forward(engine, t, k, 1) for k, t in enumerate(tokens)}
    got = together(engine._passes, calls)
    assert [isinstance(answer, TrunkBusy) for answer in got.values()].count(True) == 2
    assert engine.stats().passes == 1
