# SPDX-License-Identifier: Apache-2.0
"""An engine under a bad network equals an engine under a perfect one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_flwr.errors import SessionError, TrunkError
from atlas_flwr.lora import AdapterState, Scaling, initial_factors, linear_names
from atlas_flwr.split import SplitPlan, partition
from atlas_flwr.trunk import Limits, SessionSpec, TrunkEngine
from atlas_flwr.types import OptimizerSpec, TrunkCall
from tests.families import build

PLAN = SplitPlan(2, 2)
calls = st.tuples(
    st.sampled_from(["forward", "forward", "backward", "backward"]),
    st.integers(0, 4),
    st.integers(0, 1),
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build("llama")


@pytest.fixture(scope="module")
def engine(model):
    return TrunkEngine(partition(model, PLAN).trunk, limits=Limits(passes=10**6))


@pytest.fixture(scope="module")
def state(model):
    names = [n for n in linear_names(model) if ".layers.2." in n]
    shapes = {n: tuple(model.get_submodule(n).weight.shape) for n in names}
    made = {
        n: initial_factors(n, s, 2, scaling=Scaling(4.0), seed=0)
        for n, s in shapes.items()
    }
    for factors in made.values():
        factors.B.normal_(std=0.1)  # or A would have no gradient
    return AdapterState(made)


def hidden(step, variant):
    generator = torch.Generator().manual_seed(2 * step + variant)
    return torch.randn(2, 3, 32, generator=generator)


def grad(step):
    generator = torch.Generator().manual_seed(1000 + step)
    return torch.randn(2, 3, 32, generator=generator)


def trained(engine, token):
    return [t for f in engine.adapters(token).factors.values() for t in (f.A, f.B)]


def straight(engine, state, optimizer, done):
    """Run steps one after the other, numbered upwards, each call once."""
    token = engine.open(SessionSpec(PLAN, state, optimizer))
    answers = {}
    for number, (step, variant) in enumerate(done):
        answer = engine.forward(token, TrunkCall(hidden(step, variant), step=number))
        answers[step] = (answer, engine.backward(token, number, grad(step)))
    return trained(engine, token), answers


@settings(max_examples=60)
@given(st.lists(calls, max_size=16), st.integers(1, 2), st.booleans())
def test_lost_repeated_and_reordered_calls_train_as_a_straight_run(
    engine, state, sequence, accumulate, recompute
):
    """What was completed, in the order in which it was, decides alone."""
    engine.recompute = recompute
    optimizer = OptimizerSpec(lr=0.05, accumulate=accumulate)
    token = engine.open(SessionSpec(PLAN, state, optimizer))
    begun, done, got = {}, [], {}
    for kind, step, variant in sequence:
        try:
            if kind == "forward":
                call = TrunkCall(hidden(step, variant), step=step)
                answer = engine.forward(token, call)
                assert step not in got or torch.equal(answer, got[step][0])
                if step not in got:
                    begun[step] = (variant, answer)
            else:
                back = engine.backward(token, step, grad(step))
                if step in got:
                    assert torch.equal(back, got[step][1])
                else:
                    done.append((step, begun[step][0]))
                    got[step] = (begun[step][1], back)
        except SessionError:
            continue
    expected, answers = straight(engine, state, optimizer, done)
    assert all(map(torch.equal, trained(engine, token), expected))
    assert set(got) == set(answers)
    for step, pair in answers.items():
        assert all(map(torch.equal, got[step], pair))


def test_a_step_that_fails_halfway_leaves_no_trace(engine, state):
    token = engine.open(SessionSpec(PLAN, state, OptimizerSpec(lr=0.05)))
    before = trained(engine, token)
    call = TrunkCall(hidden(0, 0), step=0)
    for bad, message in ((grad(0)[:1], "shape"), (grad(0) * torch.nan, "NaN")):
        engine.forward(token, call)
        with pytest.raises(TrunkError, match=message):
            engine.backward(token, 0, bad)
    assert all(map(torch.equal, trained(engine, token), before))
    engine.forward(token, call)
    engine.backward(token, 0, grad(0))
    expected, _ = straight(engine, state, OptimizerSpec(lr=0.05), [(0, 0)])
    assert all(map(torch.equal, trained(engine, token), expected))


def test_passes_that_the_optimiser_made_stale_are_refused_with_the_remedy(
    engine, state
):
    token = engine.open(SessionSpec(PLAN, state, OptimizerSpec(lr=0.05)))
    for step in (0, 1):
        engine.forward(token, TrunkCall(hidden(step, 0), step=step))
    engine.backward(token, 0, grad(0))
    with pytest.raises(SessionError, match="accumulate"):
        engine.backward(token, 1, grad(1))


def test_a_completed_step_is_not_taken_again_with_another_gradient(engine, state):
    token = engine.open(SessionSpec(PLAN, state, OptimizerSpec(lr=0.05)))
    engine.forward(token, TrunkCall(hidden(0, 0), step=0))
    given = grad(0)
    back = engine.backward(token, 0, given)
    after = trained(engine, token)
    others = (-given, given[:1], given.double())
    assert torch.equal(engine.backward(token, 0, others[2]), back)  # the same numbers
    for other in others[:2]:
        with pytest.raises(SessionError, match="with another gradient"):
            engine.backward(token, 0, other)
    given.neg_()  # what the caller does with its own tensor changes nothing
    with pytest.raises(SessionError, match="with another gradient"):
        engine.backward(token, 0, given)
    assert torch.equal(engine.backward(token, 0, grad(0)), back)
    assert all(map(torch.equal, trained(engine, token), after))


@pytest.fixture
def vanilla(model, state):
    plan = SplitPlan(2, None)
    engine = TrunkEngine(partition(model, plan).trunk)
    token = engine.open(SessionSpec(plan, state, OptimizerSpec(lr=0.05)))
    return engine, token


def test_a_completed_loss_is_not_given_again_for_other_labels(vanilla):
    engine, token = vanilla
    call = TrunkCall(hidden(0, 0), step=0)
    labels = torch.arange(6).view(2, 3)
    first = engine.loss(token, call, labels)
    after = trained(engine, token)
    for other, keep in ((labels + 1, 0), (labels, 2), (labels[:, :2], 0)):
        with pytest.raises(SessionError, match="completed before"):
            engine.loss(token, call, other, keep)
    labels += 1  # what the caller does with its own tensor changes nothing
    with pytest.raises(SessionError, match="completed before"):
        engine.loss(token, call, labels)
    again = engine.loss(token, call, labels - 1)
    assert torch.equal(again.grad, first.grad)
    assert all(map(torch.equal, trained(engine, token), after))


@pytest.mark.parametrize("in_flight", [2, 3])
def test_losses_that_were_in_flight_together_are_all_given_again(
    model, state, in_flight
):
    plan, optimizer = SplitPlan(2, None), OptimizerSpec(lr=0.05, accumulate=in_flight)
    limits = Limits(passes_per_session=in_flight)
    engine = TrunkEngine(partition(model, plan).trunk, limits=limits)
    token, labels = engine.open(SessionSpec(plan, state, optimizer)), torch.ones(2, 3)
    given = [TrunkCall(hidden(step, 0), step=step) for step in range(in_flight)]
    first = [engine.loss(token, call, labels.long()) for call in given]
    again = [engine.loss(token, call, labels.long()) for call in given]
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.grad, other.grad)
    assert engine.stats().steps == in_flight


@pytest.mark.parametrize("step", [0, 1, None])
def test_a_session_without_a_tail_has_no_forward_and_backward(vanilla, step):
    engine, token = vanilla
    engine.loss(token, TrunkCall(hidden(0, 0), step=0), torch.zeros(2, 3).long())
    with pytest.raises(SessionError, match=r"loss\(\) is the whole"):
        engine.forward(token, TrunkCall(hidden(0, 0), step=step))
    with pytest.raises(SessionError, match=r"loss\(\) is the whole"):
        engine.backward(token, step or 0, grad(0))
