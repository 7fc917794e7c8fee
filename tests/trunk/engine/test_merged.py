# SPDX-License-Identifier: Apache-2.0
"""Batches of several sessions merged into one step, against stacked data."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_flwr.errors import AdapterError, SessionError, TrunkError
from atlas_flwr.lora import Scaling, attach, extract, load
from atlas_flwr.split import SplitPlan, part_info, partition
from atlas_flwr.trunk import LocalTrunk, SessionSpec, TrunkEngine
from atlas_flwr.types import OptimizerSpec, TrunkCall
from tests.families import build
from tests.trunk.engine.test_parity import adapters

PLAN = SplitPlan(head=1, tail=1)
ADAMW = OptimizerSpec(lr=0.02, weight_decay=0.1)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build("llama")


@pytest.fixture(scope="module")
def state(model):
    return adapters(model, range(1, model.config.num_hidden_layers - 1))


@pytest.fixture(scope="module")
def engine(model):
    return TrunkEngine(partition(model, PLAN).trunk)


@pytest.fixture
def shared(engine, state):
    """Open some sessions of one adapter, and close them after the test."""
    tokens = []

    def make(count, merge, optimizer=ADAMW):
        for _ in range(count):
            spec = SessionSpec(PLAN, state, optimizer, "all", merge=merge)
            tokens.append(engine.open(spec))
        return list(tokens)

    yield make
    for token in tokens:
        engine.close(token)


def drawn(client, step):
    """A client's smashed data, and the gradient of its mean loss by the answer."""
    generator = torch.Generator().manual_seed(100 * client + step)
    return torch.randn(2, 2, 5, 32, generator=generator).unbind()


def trained(engine, token):
    return [t for f in engine.adapters(token).factors.values() for t in (f.A, f.B)]


def peek(engine, token):
    """What is trained, without the last step that reading it out would take."""
    with engine._table.using(token) as session:
        return [t.detach().clone() for t in session.parameters]


def turn(engine, token, client, step, number=None):
    number = step if number is None else number
    hidden, grad = drawn(client, step)
    engine.forward(token, TrunkCall(hidden, step=number))
    return engine.backward(token, number, grad)


class Stacked:
    """The oracle: PEFT's layers, torch's AdamW, one pass over concatenated batches."""

    def __init__(self, model, state, optimizer=ADAMW):
        part = partition(model, PLAN).trunk
        self.info = part_info(part)
        local = {self.info.local_name(n): f for n, f in state.factors.items()}
        attach(part, dict.fromkeys(local, 3), Scaling(6.0))
        load(part, local)
        self.part, self.trunk = part, LocalTrunk(part)
        self.adamw = torch.optim.AdamW(
            [p for p in part.parameters() if p.requires_grad],
            lr=optimizer.lr,
            weight_decay=optimizer.weight_decay,
        )
        self.steps = 0

    def step(self, *drawn):
        """The mean over all rows of what are means over each client's rows."""
        hidden, grads = (torch.cat(tensors) for tensors in zip(*drawn, strict=True))
        self.trunk.forward(TrunkCall(hidden, step=self.steps))
        back = self.trunk.backward(self.steps, grads / len(drawn))
        self.adamw.step()
        self.adamw.zero_grad()
        self.steps += 1
        return [len(drawn) * part for part in back.chunk(len(drawn))]

    def trained(self, state):
        found = {self.info.global_name(n): f for n, f in extract(self.part).items()}
        return [t for n in state.factors for t in (found[n].A, found[n].B)]


def close(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("clients", [2, 3])
@pytest.mark.parametrize("recompute", [False, True])
def test_merged_batches_are_one_batch_of_stacked_data(
    model, state, engine, shared, clients, recompute
):
    engine.recompute = recompute
    tokens, oracle = shared(clients, merge=clients), Stacked(model, state)
    for step in range(5):
        # Everybody's activations are with the trunk before anybody's gradient is.
        for k, token in enumerate(tokens):
            engine.forward(token, TrunkCall(drawn(k, step)[0], step=step))
        backs = [
            engine.backward(token, step, drawn(k, step)[1])
            for k, token in enumerate(tokens)
        ]
        close(backs, oracle.step(*(drawn(k, step) for k in range(clients))))
    close(trained(engine, tokens[0]), oracle.trained(state))
    engine.recompute = False


def test_who_brings_the_batches_does_not_matter(model, state, engine, shared):
    (a, b), oracle = shared(2, merge=2), Stacked(model, state)
    for step in (0, 1):  # the one works while the other waits for its turn
        turn(engine, a, 0, step)
    turn(engine, b, 1, 0)
    turn(engine, a, 0, 2)
    oracle.step(drawn(0, 0), drawn(0, 1))
    oracle.step(drawn(1, 0), drawn(0, 2))
    close(trained(engine, b), oracle.trained(state))


def test_an_overtaken_pass_gives_its_gradient_at_the_adapters_of_its_own_step(
    model, state, engine, shared
):
    (a, b, c), oracle = shared(3, merge=2), Stacked(model, state)
    engine.forward(c, TrunkCall(drawn(2, 0)[0], step=0))
    for k, token in enumerate((a, b)):
        turn(engine, token, k, 0)
    late = engine.backward(c, 0, drawn(2, 0)[1])  # after the step of the others
    turn(engine, a, 0, 1)
    oracle.step(drawn(0, 0), drawn(1, 0))
    backs = oracle.step(drawn(2, 0), drawn(0, 1))
    close([late], backs[:1])
    close(trained(engine, a), oracle.trained(state))


def test_a_client_with_two_passes_open_loses_none_whoever_brings_the_step(
    engine, shared
):
    a, b = shared(2, merge=2)
    for first in (True, False):
        base = 0 if first else 10
        for number in (base, base + 1):
            engine.forward(a, TrunkCall(drawn(0, number)[0], step=number))
        if first:  # then a's own first backward is the second of the two
            turn(engine, b, 1, 0)
        for number in (base, base + 1):
            engine.backward(a, number, drawn(0, number)[1])
    assert engine.stats().passes == 0


def test_nothing_moves_before_enough_gradients_came(state, engine, shared):
    tokens = shared(3, merge=3)
    before = peek(engine, tokens[0])
    for k in (0, 1):
        turn(engine, tokens[k], k, 0)
        assert all(map(torch.equal, peek(engine, tokens[0]), before))
    turn(engine, tokens[2], 2, 0)
    assert not all(map(torch.equal, peek(engine, tokens[0]), before))


def test_what_is_left_when_read_out_is_a_last_step_on_its_mean(
    model, state, engine, shared
):
    tokens, oracle = shared(3, merge=3), Stacked(model, state)
    for k, token in enumerate(tokens):
        turn(engine, token, k, 0)
    for k in (0, 1):
        turn(engine, tokens[k], k, 1)
    oracle.step(*(drawn(k, 0) for k in range(3)))
    oracle.step(*(drawn(k, 1) for k in range(2)))
    first = trained(engine, tokens[2])
    close(first, oracle.trained(state))
    for token in tokens:  # once: reading again, or through another, changes nothing
        assert all(map(torch.equal, trained(engine, token), first))


def test_a_session_that_closes_leaves_its_gradient_to_the_others(
    model, state, engine, shared
):
    (a, b), oracle = shared(2, merge=2), Stacked(model, state)
    turn(engine, a, 0, 0)
    engine.close(a)
    turn(engine, b, 1, 0)
    oracle.step(drawn(0, 0), drawn(1, 0))
    close(trained(engine, b), oracle.trained(state))


def test_merging_counts_batches_that_are_accumulated_themselves(
    model, state, engine, shared
):
    optimizer = OptimizerSpec(lr=0.02, weight_decay=0.1, accumulate=2)
    (a, b), oracle = shared(2, 2, optimizer), Stacked(model, state)
    for k, token in enumerate((a, b)):
        for number in (0, 1):
            turn(engine, token, k, number)
    turn(engine, a, 0, 2)
    turn(engine, a, 0, 3)
    # Gradients of accumulated passes are summed: each is a share of its batch's mean.
    halves = [(h, 2 * g) for k in (0, 1) for h, g in (drawn(k, 0), drawn(k, 1))]
    oracle.step(*halves)
    oracle.step(*((h, 2 * g) for h, g in (drawn(0, 2), drawn(0, 3))))
    close(trained(engine, b), oracle.trained(state))


def test_merging_one_batch_is_what_it_was(state, engine, shared):
    (a, b), adamw = shared(2, merge=1), OptimizerSpec(lr=0.02, weight_decay=0.1)
    alone = engine.open(SessionSpec(PLAN, state, adamw))
    for step in range(3):
        for k, token in enumerate((a, b)):
            turn(engine, token, k, step)
            turn(engine, alone, k, step, number=2 * step + k)
    assert all(map(torch.equal, trained(engine, b), trained(engine, alone)))
    for step in (5, 6):
        engine.forward(a, TrunkCall(drawn(0, step)[0], step=step))
    engine.backward(a, 5, drawn(0, 5)[1])
    with pytest.raises(SessionError, match="accumulate"):
        engine.backward(a, 6, drawn(0, 6)[1])
    engine.close(alone)


calls = st.tuples(
    st.sampled_from(["forward", "backward", "backward"]),
    st.integers(0, 1),
    st.integers(0, 3),
)


@settings(max_examples=40)
@given(st.lists(calls, max_size=20), st.booleans())
def test_lost_and_repeated_calls_count_once(engine, state, sequence, recompute):
    """Gradients of completed steps, in their order, decide alone; to the bit."""
    engine.recompute = recompute
    spec = SessionSpec(PLAN, state, ADAMW, "all", merge=2)
    tokens, begun, done, got = [engine.open(spec) for _ in range(2)], set(), [], {}
    for kind, client, step in sequence:
        hidden, grad = drawn(client, step)
        try:
            if kind == "forward":
                engine.forward(tokens[client], TrunkCall(hidden, step=step))
                begun.add((client, step))
            else:
                back = engine.backward(tokens[client], step, grad)
                assert (client, step) in begun
                if (client, step) in got:
                    assert torch.equal(back, got[client, step])
                else:
                    done.append((client, step))
                got[client, step] = back
        except SessionError:
            continue
    found = trained(engine, tokens[0])
    for token in tokens:
        engine.close(token)
    # One session that accumulates halves; what is left over is its own two halves.
    halves = OptimizerSpec(lr=0.02, weight_decay=0.1, accumulate=2)
    alone = engine.open(SessionSpec(PLAN, state, halves))
    in_pairs = done + done[-1:] * (len(done) % 2)
    for number, (client, step) in enumerate(in_pairs):
        hidden, grad = drawn(client, step)
        engine.forward(alone, TrunkCall(hidden, step=number))
        engine.backward(alone, number, grad / 2)
    assert all(map(torch.equal, found, trained(engine, alone)))
    engine.close(alone)
    engine.recompute = False


def test_sessions_that_merge_unlike_numbers_cannot_share(state, engine, shared):
    shared(1, merge=2)
    with pytest.raises(AdapterError, match="same ranks and merge"):
        engine.open(SessionSpec(PLAN, state, ADAMW, "all", merge=3))


@pytest.mark.parametrize(("name", "merge"), [("all", 0), ("", 2)])
def test_an_impossible_merge_is_refused(state, name, merge):
    with pytest.raises(TrunkError, match="share adapters"):
        SessionSpec(PLAN, state, ADAMW, name, merge=merge)
