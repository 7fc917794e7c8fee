from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.budget import (
    Architecture,
    Footprint,
    Repeated,
    TrunkSession,
    client_memory,
    packing_environment,
    trunk_memory,
)
from atlas_flwr.budget.allocator import JEMALLOC
from atlas_flwr.budget.footprint import Growth, StepSize
from atlas_flwr.errors import BudgetError

ADAPTED = {"q": (64, 64), "up": (256, 64), "down": (64, 256)}
SIZES = {
    "num_layers": 12,
    "hidden": 64,
    "widest": 256,
    "vocabulary": 1000,
    "embedding_params": 64_000,
    "output_params": 64,
    "tied": True,
    "block_params": 60_000,
    "adapted": ADAPTED,
}
# Of the shape that smollm2's is traced to, where one position's logits are a view.
TRACED = Footprint(
    block=Growth(token=4308.0, pair=4.0),
    forward=Growth(token=9410.0, pair=9.0),
    loss=Growth(fixed=8.0, row=-8000.0, token=8720.0, pair=8.0, logit=12_000.0),
    backward=Growth(fixed=8456.0, token=9948.0, pair=8.0),
    trunk=Growth(fixed=8448.0, token=1741.0),
    open=Growth(token=282.0),
    hidden=Growth(token=256.0),
)
MODELS = (Architecture(**SIZES), Architecture(**SIZES, footprint=TRACED))
CLIENT = {
    "head": st.integers(1, 5),
    "tail": st.integers(1, 5),
    "ranks": st.integers(0, 64),
    "batch": st.integers(1, 64),
    "length": st.integers(1, 512),
    "logits_to_keep": st.integers(2, 64),
    "dtype_bytes": st.integers(1, 8),
}
STEP = {"batch": 4, "length": 16}
model = st.sampled_from(MODELS)


@pytest.mark.parametrize("what", CLIENT)
@given(st.data())
def test_a_clients_peak_never_falls_when_an_argument_grows(what, data):
    found = {name: data.draw(values, name) for name, values in CLIENT.items()}
    other = data.draw(CLIENT[what], "other")
    chosen = data.draw(model)
    less, more = (
        client_memory(chosen, **{**found, what: value}).total
        for value in sorted((found[what], other))
    )
    assert less <= more


@given(model, st.integers(1, 5), st.integers(1, 5), st.integers(0, 64))
def test_a_vanilla_client_takes_no_more_than_one_with_a_tail(chosen, head, tail, rank):
    given = {"head": head, "ranks": rank, **STEP}
    vanilla = client_memory(chosen, tail=None, **given)
    assert vanilla.logits == 0
    assert vanilla.total < client_memory(chosen, tail=tail, **given).total


@given(
    model,
    st.dictionaries(
        st.tuples(st.sampled_from([0, 1, 11]), st.sampled_from([*ADAPTED])),
        st.integers(0, 8),
    ),
)
def test_the_adapters_are_the_sum_over_the_layers_that_have_one(chosen, ranks):
    found = client_memory(chosen, head=2, tail=1, ranks=ranks, **STEP)
    params = sum(rank * sum(ADAPTED[name]) for (_, name), rank in ranks.items())
    assert found.adapters == 16 * params
    none = client_memory(chosen, head=2, tail=1, ranks=0, **STEP)
    low = 4 * 4 * 16 * sum(ranks.values())
    assert found.activations - none.activations == pytest.approx(low, abs=1)


@given(model, st.integers(0, 80))
def test_the_ways_to_give_ranks_agree(chosen, rank):
    def at(**given):
        return client_memory(chosen, head=2, tail=1, **given, **STEP)

    names = dict.fromkeys(ADAPTED, rank)
    each = {(block, name): rank for block in range(12) for name in ADAPTED}
    assert at(ranks=rank) == at(rank=rank) == at(ranks=names) == at(ranks=each)


def test_a_rank_is_never_counted_beyond_a_layers_shorter_side():
    at = {
        rank: client_memory(MODELS[0], head=1, tail=1, ranks=rank, **STEP)
        for rank in (64, 65)
    }
    assert at[64] == at[65]


def test_a_clients_process_has_room_beside_its_tensors():
    found = client_memory(MODELS[0], head=1, tail=1, ranks=2, **STEP)
    tensors = found.weights + found.adapters + found.activations + found.logits
    assert found.total - tensors - found.workspace == 12 << 20
    assert trunk_memory(MODELS[0], sessions=[], **STEP).process == 0


def test_a_classifier_counts_value_gradient_and_two_moments():
    dense = Architecture(**{**SIZES, "output_params": 164, "dense_params": 100})
    plain = client_memory(MODELS[0], head=1, tail=1, ranks=2, **STEP)
    found = client_memory(dense, head=1, tail=1, ranks=2, **STEP)
    assert found.total - plain.total == 16 * 100


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "needs ranks="),
        ({"ranks": {"k": 4}}, "'k'; a block's adapted layers are q, up, down"),
        ({"ranks": {(0, "k"): 4}}, "'k'; a block's adapted layers are q, up, down"),
        ({"ranks": {"q": -1}}, "rank -1 for 'q'; allowed: 0"),
        ({"ranks": -1}, "rank -1"),
    ],
)
def test_ranks_that_mean_nothing_are_refused(given, told):
    with pytest.raises(BudgetError, match=told):
        client_memory(MODELS[0], head=1, tail=1, **given, **STEP)


# --- the trunk ---------------------------------------------------------------------

SESSION = st.builds(
    TrunkSession,
    st.integers(1, 4),
    st.sampled_from([1, 2, None]),
    st.integers(0, 32),
)
SESSIONS = st.lists(SESSION, min_size=1, max_size=5)


def trunk(chosen, sessions, **given):
    return trunk_memory(chosen, sessions=sessions, **{**STEP, **given})


@given(model, SESSIONS, SESSION, st.booleans(), st.integers(1, 4))
def test_a_session_more_takes_more_and_weights_are_shared(
    chosen, sessions, one, recompute, in_flight
):
    given = {"recompute": recompute, "in_flight": in_flight}
    before = trunk(chosen, sessions, **given)
    after = trunk(chosen, [*sessions, one], **given)
    assert before.total < after.total
    assert before.weights == after.weights == 4 * 10 * 60_000


@given(model, SESSIONS, st.integers(1, 5), st.integers(1, 5), st.booleans())
def test_steps_in_flight_take_more_up_to_the_number_of_sessions(
    chosen, sessions, a, b, recompute
):
    less, more = (
        trunk(chosen, sessions, in_flight=n, recompute=recompute).total
        for n in sorted((a, b))
    )
    assert less <= more
    most = trunk(chosen, sessions, in_flight=len(sessions), recompute=recompute)
    assert more <= most.total


@given(model, SESSIONS, st.integers(2, 5))
def test_recomputing_saves_what_waiting_steps_keep(chosen, sessions, in_flight):
    sessions = [*sessions, sessions[0]]
    kept = trunk(chosen, sessions, in_flight=in_flight)
    again = trunk(chosen, sessions, in_flight=in_flight, recompute=True)
    assert again.activations < kept.activations
    assert again.adapters == kept.adapters


@given(model, SESSIONS, st.integers(1, 64), st.integers(1, 256), st.booleans())
def test_a_larger_step_takes_more_of_a_trunk(chosen, sessions, batch, length, again):
    at = {"batch": batch, "length": length, "recompute": again}
    least = trunk(chosen, sessions, **at).total
    assert least < trunk(chosen, sessions, **{**at, "batch": batch + 1}).total
    assert least < trunk(chosen, sessions, **{**at, "length": length + 1}).total


def test_a_host_in_a_direct_chain_keeps_what_its_neighbours_brought_each_session():
    sessions, (batch, length) = [TrunkSession(1, 1, 4)] * 3, (2, 16)
    at = {"sessions": sessions, "batch": batch, "length": length}
    relayed = trunk_memory(MODELS[0], **at)
    direct = trunk_memory(MODELS[0], **at, handed=4)
    hidden = 4 * batch * length * MODELS[0].hidden
    assert direct.total - relayed.total == 3 * 4 * hidden


def test_a_trunk_that_ends_the_model_has_its_output():
    at = {"sessions": [], **STEP}
    inner = trunk_memory(MODELS[0], covers=(1, 1), **at).weights
    ending = trunk_memory(MODELS[0], covers=(1, None), **at).weights
    # One block more, the final norm, and the table that the LM head is tied to.
    assert ending - inner == 4 * (60_000 + 64 + 64 * 1000)


def test_no_step_in_flight_is_refused():
    with pytest.raises(BudgetError, match="in_flight=0"):
        trunk(MODELS[0], [], in_flight=0)


# --- growths and the allocator -----------------------------------------------------


@given(st.integers(1, 99), st.integers(1, 99), st.integers(0, 9))
def test_a_growth_is_its_polynomial(b, t, k):
    growth = Growth(fixed=1, row=10, token=100, pair=1000, logit=10_000)
    expected = 1 + 10 * b + 100 * b * t + 1000 * b * t * t + 10_000 * b * k
    assert growth.at(StepSize(b, t, k)) == expected


HOLES = """
import sys, torch
from atlas_flwr.budget import return_freed_memory
from atlas_flwr.train.memory import resident_bytes
if sys.argv[1] == "yes" and not return_freed_memory():
    print("unknown"); raise SystemExit
made = [torch.ones(1 << 18) for _ in range(100)]
full = resident_bytes()
kept = made[1::2]
del made
print((full - resident_bytes()) >> 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_holes_between_tensors_are_given_back():
    def freed(asked):
        # Otherwise glibc maps blocks of this size itself until one is freed.
        command = [sys.executable, "-c", HOLES, asked]
        env = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20)}
        found = subprocess.run(
            command, capture_output=True, text=True, check=True, env=env
        )
        return found.stdout.strip()

    if (with_it := freed("yes")) == "unknown":
        pytest.skip("not glibc")
    assert int(with_it) >= 45  # of 50 MiB
    assert int(freed("no")) <= 5


ALLOCATOR = "import ctypes; print(hasattr(ctypes.CDLL(None), 'mallctl'))"  # jemalloc's


def test_a_process_that_packs_has_another_allocator(monkeypatch):
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    asked = packing_environment()
    if not asked:
        pytest.skip("Ray has no jemalloc here")
    command = [sys.executable, "-c", ALLOCATOR]
    told = [
        subprocess.run(command, capture_output=True, text=True, check=True, env=env)
        for env in ({}, {**asked, "MALLOC_CONF": f"abort_conf:true,{JEMALLOC}"})
    ]
    assert [found.stdout.strip() for found in told] == ["False", "True"]


def test_an_allocator_of_the_users_own_stays(monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "libmine.so")
    assert packing_environment() == {}


@given(st.integers(1, 64), st.integers(0, 64), model, st.data())
def test_a_check_costs_what_crossed_and_grows_with_the_trunks_ranks(
    steps, rank, architecture, data
):
    """Beyond a step's peak it is the trunk's adapters, and one block's weights."""
    shape = {"head": 1, "tail": 1, "ranks": 4, **STEP}
    plain = client_memory(architecture, **shape)
    found = client_memory(architecture, **shape, repeated=Repeated(steps, rank))
    crossing = architecture.steps.hidden.at(StepSize(STEP["batch"], STEP["length"], 2))
    assert found.remembered == plain.remembered + 4 * steps * crossing
    more = Repeated(steps, rank + data.draw(st.integers(0, 8)))
    assert client_memory(architecture, **shape, repeated=more).check >= found.check
    step = plain.activations + plain.logits + plain.workspace
    trained = 10 * sum((m + n) * rank for m, n in ADAPTED.values())
    assert found.check + step >= 16 * trained + 4 * architecture.block_params
