"""Rounds that stay as small as the first ones, against dense sums in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_flwr.aggregation import AGGREGATIONS, Contribution, Start
from atlas_flwr.aggregation.groups import ClusterAdapters
from atlas_flwr.aggregation.sums import weighted_sum
from atlas_flwr.lora import AdapterState, LoraFactors, Scaling
from atlas_flwr.protocol.layout import write_state
from atlas_flwr.remedies.base import UNCHANGED
from atlas_flwr.remedies.moving_average import KeptShare

M, N, NAME = 24, 20, "layers.0.q"
SCALING = Scaling(4.0)
A = torch.randn(4, N, generator=torch.Generator().manual_seed(0))
INITIAL = AdapterState({NAME: LoraFactors(A, torch.zeros(M, 4), SCALING(4))})


def dense(factors):
    return factors.scale * (factors.B.double() @ factors.A.double())


def whole(state):
    """Return all that a state holds of the layer: handed out, folded, kept."""
    parts = [part[NAME] for part in (state.factors, state.folded) if NAME in part]
    kept = state.rest[NAME].double() if NAME in state.rest else 0
    return sum(dense(part) for part in parts) + kept


def trained(state, seed):
    generator = torch.Generator().manual_seed(seed)
    found = state.factors[NAME]
    moved = [  # A by less than its rows' norms, or sums grow exponentially
        t + size * torch.randn(t.shape, generator=generator)
        for t, size in ((found.A, 0.03), (found.B, 0.3))
    ]
    return AdapterState({NAME: LoraFactors(*moved, found.scale)})


def played(rounds, rule, groups=("0",), hooks=UNCHANGED, adapters=None, first=1):
    """Play rounds of ranks by client; yield the adapters, and what they are densely."""
    if adapters is None:
        adapters = ClusterAdapters(rule, SCALING, 1, hooks)
        adapters.begin(write_state(INITIAL))
    oracle = {group: torch.zeros(M, N).double() for group in groups}
    for number, ranks in enumerate(rounds, start=first):
        members: dict[str, list[Contribution]] = {group: [] for group in groups}
        for client, rank in enumerate(ranks):
            group = groups[client % len(groups)]
            sent = adapters.start(group, rank, number)
            after = trained(sent, 100 * number + client)
            members[group].append(Contribution(str(client), 1.0 + client, after))
            share = 1.0 + client
            moved = whole(after) - dense(sent.factors[NAME])
            oracle[group] = oracle[group] + share * moved / sum(
                1.0 + c for c in range(len(ranks)) if groups[c % len(groups)] == group
            )
        adapters.aggregate({g: parts for g, parts in members.items() if parts})
        yield adapters, oracle


rounds = st.lists(
    st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=12
)


@given(rounds=rounds)
@settings(max_examples=40, deadline=None)
def test_the_sum_is_exact_and_no_round_hands_out_more_than_one_rounds_ranks(rounds):
    most = 0
    for index, (adapters, oracle) in enumerate(
        played(rounds, AGGREGATIONS["both"](flat=True))
    ):
        held = adapters.groups["0"]
        most = max(most, sum(rounds[index]))
        assert held.factors[NAME].rank <= most
        size = max(1.0, float(oracle["0"].norm()))
        assert (whole(held) - oracle["0"]).norm() <= 1e-5 * size


def test_fifty_rounds_send_the_bytes_of_the_third_and_lose_nothing():
    sizes = []
    both = AGGREGATIONS["both"](flat=True)
    for adapters, oracle in played([[2, 4, 3]] * 50, both):  # noqa: B007
        sent = adapters.start("0", 2, 1)
        sizes.append(sum(f.A.numel() + f.B.numel() for f in sent.folded.values()))
    assert sizes[49] == sizes[2]
    off = (whole(adapters.groups["0"]) - oracle["0"]).norm()
    assert off <= 1e-6 * oracle["0"].norm()
    growing = [
        a.start("0", 2, 1).folded[NAME].rank
        for a, _ in played([[2, 4, 3]] * 4, AGGREGATIONS["both"]())
    ]
    assert sizes[0] == growing[0] * (M + N) < growing[1] * (M + N)
    assert growing[-1] == min(M, N) - 2  # without, the layer's own rank is the end


@given(rank=st.integers(1, 4))
@settings(deadline=None)
def test_clients_of_all_ranks_compute_with_the_same_part_of_the_sum(rank):
    *_, (adapters, _) = played([[1, 2]] * 9, AGGREGATIONS["both"](flat=True))
    sent = adapters.start("0", rank, 10)
    torch.testing.assert_close(
        whole(sent), dense(adapters.groups["0"].factors[NAME]), atol=1e-5, rtol=1e-4
    )
    assert not sent.rest  # it stays with the server


def test_what_is_held_back_is_told_as_its_share_of_the_dense_sum():
    *_, (adapters, oracle) = played([[1, 2]] * 9, AGGREGATIONS["both"](flat=True))
    left = oracle["0"] - dense(adapters.groups["0"].factors[NAME])
    share = float(left.norm() / oracle["0"].norm())
    assert adapters.held_back == pytest.approx(share, rel=0.02)
    assert share > 0.02
    *_, (adapters, _) = played([[1, 2]] * 9, AGGREGATIONS["both"]())
    assert adapters.held_back == 0


def test_a_moving_average_is_that_of_the_dense_sums():
    both = AGGREGATIONS["both"](flat=True)
    former = None
    turns = enumerate(played([[2, 1]] * 6, both, hooks=KeptShare(0.5)), start=1)
    for number, (adapters, _) in turns:
        held = adapters.groups["0"]
        if former is not None:
            plain = ClusterAdapters(both, SCALING, 1)
            plain.begin(write_state(INITIAL))
            plain.groups = {"0": former}
            next(played([[2, 1]], both, adapters=plain, first=number))
            wanted = (whole(former) + whole(plain.groups["0"])) / 2
            torch.testing.assert_close(whole(held), wanted, atol=1e-5, rtol=1e-5)
        former = held
    assert former.rest


def test_groups_that_mix_keep_their_sums_and_their_size():
    both, matrix = AGGREGATIONS["both"](flat=True), np.array([[0.7, 0.3], [0.4, 0.6]])
    ranks = []
    for adapters, _ in played([[2, 3, 1, 2]] * 8, both, groups=("0", "1")):
        before = [whole(adapters.groups[g]) for g in "01"]
        adapters.mix(["0", "1"], matrix)
        for row, group in zip(matrix, "01", strict=True):
            wanted = sum(c * b for c, b in zip(row, before, strict=True))
            found = whole(adapters.groups[group])
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
        ranks.append(max(adapters.groups[g].factors[NAME].rank for g in "01"))
    assert ranks[-1] == ranks[3] <= 2 + 3 + 1 + 2


def test_new_groups_begin_with_the_mean_of_the_whole_sums():
    both = AGGREGATIONS["both"](flat=True)
    *_, (adapters, _) = played([[2, 3, 1, 2]] * 8, both, groups=("0", "1"))
    old = {g: whole(adapters.groups[g]) for g in "01"}
    assert all(adapters.groups[g].rest for g in "01")
    adapters.regroup({"a": 0, "b": 1, "c": 1}, {"a": 0, "b": 0, "c": 1})
    mean = (old["0"] + old["1"]) / 2
    for group, wanted in (("0", mean), ("1", old["1"])):
        torch.testing.assert_close(
            whole(adapters.groups[group]), wanted, atol=1e-5, rtol=1e-5
        )
    assert adapters.groups["0"].factors[NAME].rank <= 5
    assert not weighted_sum([Contribution("a", 1.0, INITIAL)]).rest


def test_a_checkpoint_keeps_what_is_held_back():
    both = AGGREGATIONS["both"](flat=True)
    *_, (unbroken, _) = played([[2, 3]] * 6, both)
    *_, (first, _) = played([[2, 3]] * 4, both)
    second = ClusterAdapters(both, SCALING, 1)
    second.begin(write_state(INITIAL))
    second.restore(*first.state())
    *_, (second, _) = played([[2, 3]] * 2, both, adapters=second, first=5)
    one, other = unbroken.groups["0"], second.groups["0"]
    assert torch.equal(one.rest[NAME], other.rest[NAME])
    assert torch.equal(one.factors[NAME].A, other.factors[NAME].A)


def test_a_round_that_adds_nothing_mixes_alike_after_a_resumption():
    """As one does in which too few of each group came back."""
    groups = tuple("0123")
    (adapters,) = (
        a for a, _ in played([[2] * 4], AGGREGATIONS["both"](None, True), groups)
    )
    path = np.diag([0.5] * 4) + 0.25 * (np.eye(4, k=1) + np.eye(4, k=-1))
    adapters.mix(groups, path)
    resumed = ClusterAdapters(AGGREGATIONS["both"](None, True), SCALING, 1)
    resumed.restore(*adapters.state())
    for each in (adapters, resumed):
        each.aggregate({})
        each.mix(groups, path)
    for group in groups:
        one, other = (each.groups[group].factors[NAME] for each in (adapters, resumed))
        assert torch.equal(one.A, other.A)


def test_a_cut_at_max_rank_still_loses_what_it_always_lost(caplog):
    cut = AGGREGATIONS["both"](2, flat=True)
    *_, (adapters, _) = played([[2, 3]] * 3, cut)
    assert adapters.groups["0"].factors[NAME].rank == 2
    assert not adapters.groups["0"].rest
    assert not cut.keeps_rest
    assert "is cut to 2, which loses" in caplog.text


def test_start_knows_nothing_of_the_rest_when_nobody_has_any():
    both = AGGREGATIONS["both"](flat=True)
    *_, (adapters, _) = played([[4]], both)
    at = Start(INITIAL, {NAME: 2}, SCALING)
    assert not both.start(adapters.groups["0"], at).rest
