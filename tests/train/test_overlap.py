# SPDX-License-Identifier: Apache-2.0
"""Batches in flight together learn the bits of one after the other."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_flwr.config import load_config
from atlas_flwr.errors import AtlasError, ConfigError, TrunkLost
from atlas_flwr.lora import AdapterState, Scaling
from atlas_flwr.split import SplitPlan, partition
from atlas_flwr.train.loop import train
from atlas_flwr.train.model import adapted_split
from atlas_flwr.trunk import FrameService, Limits, SessionSpec, TrunkEngine
from atlas_flwr.trunk.hosts.chain import links_of
from atlas_flwr.trunk.transports.local import LoopbackTrunk
from atlas_flwr.trunk.transports.requests import Verb
from atlas_flwr.trunk.turns import Turns
from atlas_flwr.types import OptimizerSpec
from atlas_flwr.wire import codec_named
from tests.families import build
from tests.train.batches import ragged_chats
from tests.trunk.engine.test_parity import adapters

SPEC = OptimizerSpec(lr=0.02, accumulate=4)
SCALING = Scaling(6.0)
KINDS = {"u-shaped": SplitPlan(1, 1), "vanilla": SplitPlan(2, None)}


@dataclass(kw_only=True)
class Slow(LoopbackTrunk):
    """A link on which messages overtake one another.

    Its first waits until as many are away as there may be, however slow a thread is.
    """

    seed: int
    together: int = 1
    fails_at: int = -1
    waiting: set[int] = field(default_factory=set)
    most: int = 0
    calls: int = 0
    arrived: threading.Condition = field(default_factory=threading.Condition)

    def exchange(self, request):
        self.calls += 1
        drawn = random.Random(f"{self.seed} {request.verb} {request.step}")
        with self.arrived:
            self.waiting.add(threading.get_ident())
            self.most = max(self.most, len(self.waiting))
            self.arrived.notify_all()
            self.arrived.wait_for(lambda: self.most >= self.together, timeout=30)
        time.sleep(drawn.random() * 0.02)
        if request.step == self.fails_at and request.verb is not Verb.FORWARD:
            raise TrunkLost("as asked")
        answer = super().exchange(request)
        time.sleep(drawn.random() * 0.02)
        self.waiting.discard(threading.get_ident())
        return answer


def learned(plan, in_flight, batches, seed=0, **rest):
    """Train; return all adapters, the loss, and the link."""
    torch.manual_seed(7)
    model = build("llama")
    state, parts = adapters(model, range(5)), partition(model, plan)
    there = adapters(model, plan.trunk_range(5)).factors.keys()
    both = [
        AdapterState({n: f for n, f in state.factors.items() if (n in there) == far})
        for far in (False, True)
    ]
    engine = TrunkEngine(parts.trunk, limits=Limits(passes_per_session=4))
    token = engine.open(SessionSpec(plan, both[1], SPEC))
    link = Slow(
        token=token,
        codec=codec_named("raw"),
        service=FrameService(engine),
        spares_padding=True,
        seed=seed,
        **rest,
    )
    with adapted_split(parts.head, parts.tail, link, both[0], SCALING) as client:
        done = train(client.model, batches, SPEC, in_flight=in_flight)
        mine = client.state().factors
    factors = {**mine, **engine.adapters(token).factors}
    return {n: (f.A, f.B) for n, f in factors.items()}, done, link


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("in_flight", [2, 4])
def test_gradients_have_the_bits_of_one_batch_after_the_other(kind, in_flight):
    torch.manual_seed(0)
    batches = [ragged_chats(rows=1 + n % 3, length=12 + n) for n in range(9)]
    plan = KINDS[kind]
    expected, alone, _ = learned(plan, 1, batches)
    for seed in (1, 2):
        found, done, link = learned(plan, in_flight, batches, seed, together=in_flight)
        assert done == alone
        assert link.most == in_flight
        for name, (A, B) in expected.items():
            assert torch.equal(found[name][0], A), name
            assert torch.equal(found[name][1], B), name


def test_a_call_that_fails_ends_all_batches_with_its_own_error():
    batches = [ragged_chats(rows=1, length=12) for _ in range(8)]
    with pytest.raises(TrunkLost, match="as asked"):
        learned(KINDS["u-shaped"], 3, batches, fails_at=5)
    assert not [t for t in threading.enumerate() if t.name.startswith("batch")]


def test_a_loss_that_is_not_finite_is_told_with_its_step():
    batches = [ragged_chats(rows=1, length=12) for _ in range(4)]
    model = torch.nn.Linear(1, 1)

    def objective(step):
        from atlas_flwr.train.step import StepLoss

        value = model.weight.sum() * (float("nan") if step.index == 2 else 1.0)
        return StepLoss(value)

    with pytest.raises(AtlasError, match="local step 3"):
        train(model, batches, replace(SPEC), objective=objective, in_flight=4)


def test_links_are_found_wherever_they_stand_and_left_as_they_were():
    plan = KINDS["u-shaped"]
    _, _, link = learned(plan, 2, [ragged_chats(rows=1, length=12)] * 4)
    assert links_of(link) == [link]
    with link.away():  # as before: no turns to give
        pass


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 4), st.lists(st.integers(0, 3), min_size=1, max_size=7))
def test_turns_come_in_order_between_calls_and_never_two_at_once(in_flight, calls):
    turns, order, holders = Turns(in_flight), [], []

    def run(number):
        with turns.batch(number):
            for call in range(calls[number] + 1):
                holders.append(number)
                order.append((call, number))
                assert holders == [number]
                holders.remove(number)
                if call < calls[number]:
                    with turns.away():
                        time.sleep(0.001 * ((number * 7 + call * 3) % 4))

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(order) == sum(calls) + len(calls)
    for call in range(4):
        numbers = [number for at, number in order if at == call]
        assert numbers == sorted(numbers)


WRONG = [
    ({"in-flight": 4}, "accumulate=1 makes one of so many"),
    ({"in-flight": 2, "accumulate": 2, "split": "none"}, "no trunk to wait for"),
    ({"in-flight": 2, "accumulate": 2, "device": "cuda"}, "have one thread"),
    ({"in-flight": 2, "accumulate": 2, "devices": "1GiB"}, "counts one batch"),
    ({"in-flight": 2, "accumulate": 2, "record-wire": True}, "one batch after"),
]


@pytest.mark.parametrize(("keys", "message"), WRONG, ids=lambda value: str(value))
def test_what_cannot_overlap_is_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        load_config(keys)
