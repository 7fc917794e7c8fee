# SPDX-License-Identifier: Apache-2.0
"""The log of steps: no step is done twice, whatever calls come in whatever order."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_flwr.errors import SessionError
from atlas_flwr.trunk.engine.steps import Load, Pass, StepLog
from atlas_flwr.types import LossReply, TrunkCall

steps, inputs = st.integers(0, 4), st.integers(0, 1)
ops = st.one_of(
    st.tuples(st.just("forward"), steps, inputs),
    st.tuples(st.just("backward"), steps, inputs),
    st.tuples(st.just("whole"), steps, inputs),
    st.tuples(st.just("drop"), steps, inputs),
)


def call(step: int, inputs: int = 0) -> TrunkCall:
    return TrunkCall(torch.full((1, 1, 1), float(inputs)), step=step)


def done(log: StepLog, step: int, inputs: int = 0) -> Pass:
    log.make_room(step)
    log.begin(step, Pass(call(step, inputs)))
    found = log.take(step)
    found.grad = torch.zeros(())
    log.complete(step, found)
    return found


@settings(max_examples=400)
@given(st.lists(ops, max_size=40), st.integers(1, 3), st.integers(1, 3))
def test_no_step_is_ever_completed_twice(sequence, max_open, remembered):
    log, completed = StepLog(max_open, remembered), []

    def forward(step, inputs):
        if log.find(step, call(step, inputs)) is None:
            log.make_room(step)
            log.begin(step, Pass(call(step, inputs), nbytes=3))

    def backward(step):
        found = log.take(step)
        if found.grad is not None:
            assert completed[int(found.grad)] == step
            return
        found.grad = torch.tensor(float(len(completed)))
        completed.append(step)
        log.complete(step, found)

    for kind, step, inputs in sequence:
        with suppress(SessionError):
            if kind in ("forward", "whole"):
                forward(step, inputs)
            if kind in ("backward", "whole"):
                backward(step)
            if kind == "drop":
                log.drop_open()
        assert log.load.passes <= max_open
        assert log.load.nbytes == 3 * log.load.passes
    assert len(completed) == len(set(completed))


def test_a_forgotten_step_is_refused_though_a_lower_one_is_remembered():
    log = StepLog(max_open=2, remembered=2)
    for step in (10, 3, 12):
        done(log, step)
    with pytest.raises(SessionError, match="completed before"):
        log.find(10, call(10))


def test_the_last_answers_are_found_again():
    log = StepLog(max_open=1, remembered=2)
    made = [done(log, step) for step in range(4)]
    assert log.find(3, call(3)) is made[3]
    assert log.take(2) is made[2]
    with pytest.raises(SessionError, match="run the step again"):
        log.take(1)


def test_other_inputs_replace_an_open_step_and_are_refused_on_a_complete_one():
    log = StepLog(max_open=2)
    log.begin(0, Pass(call(0, inputs=0)))
    assert log.find(0, call(0, inputs=1)) is None
    done(log, 0, inputs=1)
    with pytest.raises(SessionError, match="with other inputs"):
        log.find(0, call(0, inputs=0))


def test_a_repeated_step_of_a_run_that_diverged_is_found_again():
    log, nan = StepLog(max_open=2), torch.full((1, 2, 1), torch.nan)
    log.begin(0, Pass(TrunkCall(nan, step=0)))
    found = log.take(0)
    found.given, found.grad = nan, nan
    log.complete(0, found)
    assert log.find(0, TrunkCall(nan.clone(), step=0)) is found
    assert log.take(0, nan.clone()) is found


def test_masks_and_positions_are_inputs_too():
    log = StepLog(max_open=2)
    hidden, mask = torch.zeros(1, 2, 1), torch.ones(1, 2)
    log.begin(0, Pass(TrunkCall(hidden, mask, step=0)))
    assert log.find(0, TrunkCall(hidden, mask.clone(), step=0)) is not None
    assert log.find(0, TrunkCall(hidden, 1 - mask, step=0)) is None
    assert log.find(0, TrunkCall(hidden, None, step=0)) is None


def test_a_completed_pass_keeps_no_activations():
    log = StepLog(max_open=2)
    log.begin(0, Pass(call(0), output=torch.ones(3), nbytes=12))
    assert log.load == Load(1, 12)
    found = log.take(0)
    found.grad = torch.zeros(3)
    log.complete(0, found)
    assert log.load == Load()
    assert found.output is None


@pytest.mark.parametrize("most", [1, 2, 3, 4, 7])
def test_as_many_steps_are_open_as_may_be_and_the_oldest_is_dropped(most):
    log = StepLog(most)
    for step in range(most + 1):
        log.make_room(step)
        log.begin(step, Pass(call(step)))
        assert log.load.passes == min(step + 1, most)
    with pytest.raises(SessionError, match="not open"):
        log.take(0)
    assert log.take(1).call.step == 1


def test_what_a_vanilla_step_answered_counts_as_remembered():
    log, found = StepLog(max_open=2), Pass(call(0), labels=torch.zeros(1, 1))
    logits, grad = torch.zeros(1, 1, 50), torch.zeros(1, 1, 8)
    found.reply = LossReply(torch.zeros(()), logits, grad)
    log.complete(0, found)
    assert log.remembered_bytes == 4 * (1 + 1 + 1 + 50 + 8)
