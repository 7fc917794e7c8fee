from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.budget import Architecture, allocate, assign, client_memory
from atlas_flwr.errors import BudgetError

LLAMA = Architecture(
    num_layers=12,
    hidden=64,
    widest=256,
    vocabulary=1000,
    embedding_params=64_000,
    output_params=0,
    tied=True,
    block_params=60_000,
    adapted={"q": (64, 64), "up": (256, 64), "down": (64, 256)},
)
RANKS = (1, 2, 4, 8, 32)
STEP = {"batch": 4, "length": 16}


def total(head, rank, tail=1):
    found = client_memory(LLAMA, head=head, tail=tail, rank=rank, **STEP)
    return found.total


def chosen(memory, tail=1):
    return assign(LLAMA, memory, ranks=RANKS, max_head=5, tail=tail, **STEP)


TAILS = st.sampled_from([1, 2, None])
BUDGETS = st.integers(total(1, 1, 2), 2 * total(5, 32, 2))


@given(BUDGETS, TAILS)
def test_the_choice_is_that_of_trying_everything(memory, tail):
    fitting = [
        (rank, head)
        for rank in RANKS
        for head in range(1, 6)
        if total(head, rank, tail) <= memory
    ]
    found = chosen(memory, tail)
    assert (found.rank, found.head) == max(fitting)
    assert found.estimate.total <= memory


@given(BUDGETS, BUDGETS)
def test_more_memory_never_gives_a_smaller_rank_or_at_the_same_a_shallower_head(a, b):
    less, more = (chosen(memory) for memory in sorted((a, b)))
    assert (less.rank, less.head) <= (more.rank, more.head)


@given(st.integers(0, total(1, 1) - 1))
def test_a_device_too_small_is_told_the_smallest_budget_that_works(memory):
    with pytest.raises(BudgetError) as caught:
        chosen(memory)
    told = re.search(r"takes ([\d.]+) MiB", str(caught.value))
    assert told is not None
    assert float(told[1]) == pytest.approx(total(1, 1) / 2**20, abs=0.051)


def test_without_a_budget_everything_is_afforded():
    assert (chosen(None).rank, chosen(None).head) == (32, 5)


def test_a_model_of_few_blocks_bounds_the_head():
    small = Architecture(**{**vars(LLAMA), "num_layers": 4})
    assert assign(small, None, ranks=(2,), max_head=9, tail=1, **STEP).head == 2


def test_a_fixed_head_is_kept():
    found = assign(LLAMA, None, ranks=(2,), max_head=1, fixed_head=3, **STEP)
    assert found.head == 3


@given(st.integers(1, 5), st.sampled_from(RANKS))
def test_every_part_of_the_estimate_grows_with_what_causes_it(head, rank):
    def at(**changes):
        given = {"head": head, "tail": 1, "rank": rank, **STEP, **changes}
        return client_memory(LLAMA, **given)

    assert at(head=head + 1).weights - at().weights == 4 * LLAMA.block_params
    assert at(rank=2 * rank).adapters > at().adapters
    assert at(batch=8).activations == 2 * at().activations
    assert at(length=32).activations == 2 * at().activations
    assert at(logits_to_keep=4).logits == 2 * at().logits
    assert at(tail=None).logits == 0


@pytest.mark.parametrize(("blocks", "tail", "least"), [(2, 1, 3), (1, None, 2)])
@pytest.mark.parametrize("memory", [None, 1 << 30])
def test_a_model_of_too_few_blocks_is_told_how_many_it_needs(
    blocks, tail, least, memory
):
    small = replace(LLAMA, num_layers=blocks)
    told = rf"{blocks} blocks cannot be cut.*at least {least}"
    with pytest.raises(BudgetError, match=told):
        assign(small, memory, ranks=RANKS, max_head=5, tail=tail, **STEP)
    with pytest.raises(BudgetError, match=told):
        allocate(
            [],
            {},
            memory,
            lambda head, ranks: client_memory(
                small, head=head, tail=tail, ranks=0, **STEP
            ),
            choices=RANKS,
            heads=range(1, 1),
            tail=tail,
            num_layers=blocks,
        )
