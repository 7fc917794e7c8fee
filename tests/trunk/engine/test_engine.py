from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_flwr.errors import (
    AdapterError,
    PlanError,
    SessionError,
    TrunkBusy,
    TrunkError,
)
from atlas_flwr.lora import (
    AdapterState,
    Scaling,
    attach,
    extract,
    initial_factors,
    linear_names,
    load,
)
from atlas_flwr.split import SplitPlan, part_info, partition
from atlas_flwr.trunk import EngineTrunk, Limits, LocalTrunk, SessionSpec, TrunkEngine
from atlas_flwr.types import OptimizerSpec, TrunkCall
from tests.families import build

PLAN = SplitPlan(1, 1)
OPTIMIZER = OptimizerSpec(lr=0.05)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build("llama")


def adapters(model, rank=2, seed=0, blocks=range(1, 4)):
    made = {}
    for name in linear_names(model):
        if int(name.split(".")[2]) in blocks:
            m, n = model.get_submodule(name).weight.shape
            made[name] = initial_factors(
                name, (m, n), rank, scaling=Scaling(4.0), seed=seed
            )
    return AdapterState(made)


def engine(model, **settings):
    return TrunkEngine(partition(model, PLAN).trunk, **settings)


def opened(made, model, seed=0, **settings):
    spec = SessionSpec(PLAN, adapters(model, seed=seed), OPTIMIZER, **settings)
    return EngineTrunk(made, made.open(spec))


def call(step, seed=0):
    generator = torch.Generator().manual_seed(seed if step is None else step)
    return TrunkCall(torch.randn(2, 5, 32, generator=generator), step=step)


def gradient(step):
    generator = torch.Generator().manual_seed(1000 + step)
    return torch.randn(2, 5, 32, generator=generator)


def run(trunk, steps):
    return [
        (trunk.forward(call(s)), trunk.backward(s, gradient(s))) for s in range(steps)
    ]


def same(one, other):
    return all(
        torch.equal(a, b)
        for x, y in zip(one, other, strict=True)
        for a, b in zip(x, y, strict=True)
    )


def test_a_session_trains_as_peft_and_adamw_do(model):
    made = opened(engine(model), model)
    part = partition(model, PLAN).trunk
    info = part_info(part)
    state = {info.local_name(n): f for n, f in adapters(model).factors.items()}
    attach(part, dict.fromkeys(state, 2), Scaling(4.0))
    load(part, state)
    reference = LocalTrunk(part)
    trained = [p for p in part.parameters() if p.requires_grad]
    adamw = torch.optim.AdamW(trained, lr=0.05, weight_decay=0.0)
    for step in range(4):
        torch.testing.assert_close(
            made.forward(call(step)), reference.forward(call(step))
        )
        torch.testing.assert_close(
            made.backward(step, gradient(step)),
            reference.backward(step, gradient(step)),
        )
        adamw.step()
        adamw.zero_grad()
    got = made.engine.adapters(made.token).factors
    for local, expected in extract(part).items():
        torch.testing.assert_close(got[info.global_name(local)].A, expected.A)
        torch.testing.assert_close(got[info.global_name(local)].B, expected.B)


@settings(max_examples=25)
@given(st.lists(st.sampled_from(["forward", "backward"]), max_size=6), st.data())
def test_repeated_calls_change_nothing(model, noise, data):
    straight = run(opened(engine(model), model), 4)
    made = opened(engine(model), model)
    got = []
    for step in range(4):
        answer = made.forward(call(step))
        for _ in range(data.draw(st.integers(0, 2))):
            assert torch.equal(made.forward(call(step)), answer)
        back = made.backward(step, gradient(step))
        for kind in noise:
            if kind == "backward":
                assert torch.equal(made.backward(step, gradient(step)), back)
            else:
                assert torch.equal(made.forward(call(step)), answer)
        got.append((answer, back))
    assert same(got, straight)
    assert made.engine.stats().steps == 4


def test_recomputing_gives_the_same_numbers(model):
    kept = run(opened(engine(model), model), 3)
    again = run(opened(engine(model, recompute=True), model), 3)
    assert same(kept, again)


def test_two_clients_at_once_that_share_no_pass_equal_two_in_turn_to_the_bit(model):
    made = engine(model, limits=Limits(sessions_per_pass=1, passes_at_once=2))
    one, two = opened(made, model, 1), opened(made, model, 2)
    results = {}

    def work(name, trunk):
        results[name] = run(trunk, 6)

    threads = [
        threading.Thread(target=work, args=a) for a in (("one", one), ("two", two))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, seed in (("one", 1), ("two", 2)):
        assert same(results[name], run(opened(engine(model), model, seed), 6))


def test_a_client_that_dies_in_a_step_leaves_the_others_as_they_were(model):
    made = engine(model)
    dying, living = opened(made, model, 1), opened(made, model, 2)
    living.forward(call(0))
    dying.forward(call(0))
    made.close(dying.token)
    living.backward(0, gradient(0))
    rest = [
        (living.forward(call(s)), living.backward(s, gradient(s))) for s in range(1, 3)
    ]
    assert same(rest, run(opened(engine(model), model, 2), 3)[1:])


def test_a_client_that_starts_its_step_over_is_served(model):
    made = opened(engine(model), model)
    made.forward(TrunkCall(torch.zeros(2, 5, 32), step=0))
    assert same(run(made, 2), run(opened(engine(model), model), 2))


def test_a_completed_step_is_not_taken_again_with_other_data(model):
    made = opened(engine(model), model)
    run(made, 1)
    with pytest.raises(SessionError, match="completed before"):
        made.forward(TrunkCall(torch.zeros(2, 5, 32), step=0))


def test_a_backward_without_its_forward_is_an_error(model):
    with pytest.raises(SessionError, match="run the step again"):
        opened(engine(model), model).backward(0, gradient(0))


def test_evaluation_leaves_no_trace(model):
    made = opened(engine(model), model)
    answer = made.forward(call(None))
    assert torch.equal(made.forward(call(None)), answer)
    assert made.engine.stats().passes == 0


def test_a_session_without_adapters_passes_gradients_and_trains_nothing(model):
    made = engine(model)
    trunk = EngineTrunk(made, made.open(SessionSpec(PLAN)))
    first = trunk.forward(call(None, seed=9))
    trunk.forward(call(0))
    assert trunk.backward(0, gradient(0)).abs().sum() > 0
    assert torch.equal(trunk.forward(call(None, seed=9)), first)
    assert not made.adapters(trunk.token).factors


def test_gradients_are_summed_over_accumulated_passes(model):
    made = engine(model)
    spec = SessionSpec(PLAN, adapters(model), OptimizerSpec(lr=0.05, accumulate=2))
    trunk = EngineTrunk(made, made.open(spec))
    before = made.adapters(trunk.token).factors
    name = next(iter(before))
    run(trunk, 1)
    assert torch.equal(made.adapters(trunk.token).factors[name].B, before[name].B)
    trunk.forward(call(1))
    trunk.backward(1, gradient(1))
    assert not torch.equal(made.adapters(trunk.token).factors[name].B, before[name].B)


def test_too_many_sessions_push_back_until_idle_ones_are_evicted(model):
    now = [0.0]
    limits = Limits(sessions=2, idle_seconds=10)
    made = engine(model, limits=limits, clock=lambda: now[0])
    first = opened(made, model)
    opened(made, model)
    with pytest.raises(TrunkBusy, match=r"2 sessions.*fraction-train"):
        opened(made, model)
    now[0] = 11
    opened(made, model)
    with pytest.raises(SessionError, match="evicted"):
        first.forward(call(0))


def test_too_many_kept_passes_push_back(model):
    made = engine(model, limits=Limits(passes=1))
    one, two = opened(made, model), opened(made, model)
    one.forward(call(0))
    with pytest.raises(TrunkBusy, match="try again"):
        two.forward(call(0))
    one.backward(0, gradient(0))
    two.forward(call(0))


def test_a_client_that_only_goes_forward_keeps_its_last_passes(model):
    made = opened(engine(model), model)
    for step in range(5):
        made.forward(call(step))
    assert made.engine.stats().passes == 2
    made.backward(4, gradient(4))
    with pytest.raises(SessionError):
        made.backward(0, gradient(0))


def test_slices_differ_between_clients(model):
    made = engine(model)
    plan = SplitPlan(2, 2)
    spec = SessionSpec(plan, adapters(model, blocks=range(2, 3)), OPTIMIZER)
    trunk = EngineTrunk(made, made.open(spec))
    alone = LocalTrunk(partition(model, plan).trunk)
    torch.testing.assert_close(trunk.forward(call(None)), alone.forward(call(None)))


def test_what_the_trunk_has_not_is_refused_by_name(model):
    made = engine(model)
    with pytest.raises(AdapterError, match=r"layers\.1\."):
        made.open(SessionSpec(SplitPlan(2, 1), adapters(model)))
    with pytest.raises(PlanError):
        made.open(SessionSpec(SplitPlan(4, 1)))
    narrow = TrunkEngine(partition(model, SplitPlan(2, 1)).trunk)
    with pytest.raises(PlanError, match="blocks"):
        narrow.open(SessionSpec(PLAN))


@pytest.mark.parametrize(
    ("hidden", "mask", "positions", "said"),
    [
        ((0, 4), None, None, "of no text"),
        ((2, 0), (2, 0), None, "of no text"),
        ((2, 4), (3, 4), None, r"attention_mask of shape \(3, 4\)"),
        ((2, 4), (2, 5), None, r"attention_mask of shape \(2, 5\)"),
        ((2, 4), (2, 4), (3, 4), r"position_ids of shape \(3, 4\)"),
    ],
)
def test_what_is_not_of_a_calls_texts_is_refused(model, hidden, mask, positions, said):
    made = engine(model)
    given = [s and torch.ones(s, dtype=torch.long) for s in (mask, positions)]
    call = TrunkCall(torch.randn(*hidden, 32), *given)
    with pytest.raises(TrunkError, match=said):
        made.forward(made.open(SessionSpec(PLAN)), call)


def test_a_vanilla_session_steps_once_in_its_one_round_trip(model):
    made = TrunkEngine(partition(model, SplitPlan(1, None)).trunk)
    blocks = range(1, 5)
    spec = SessionSpec(SplitPlan(1, None), adapters(model, blocks=blocks), OPTIMIZER)
    trunk = EngineTrunk(made, made.open(spec))
    labels = torch.randint(0, 61, (2, 5))
    first = trunk.loss(call(0), labels)
    again = trunk.loss(call(0), labels)
    assert torch.equal(first.grad, again.grad)
    assert made.stats().steps == 1
    assert float(trunk.loss(call(None, 0), labels).loss) < float(first.loss)
