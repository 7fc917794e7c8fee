"""What all groups have learned together, whoever went from one to another."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord

from atlas_flwr.aggregation import AGGREGATIONS, Contribution
from atlas_flwr.aggregation.groups import ClusterAdapters
from atlas_flwr.errors import AdapterError
from atlas_flwr.lora import AdapterState, LoraFactors, Scaling
from atlas_flwr.protocol.layout import write_state

M, N, RANK, NAME = 6, 5, 2, "layers.0.q"
SCALING = Scaling(4.0)
A = torch.randn(RANK, N, generator=torch.Generator().manual_seed(0))
INITIAL = AdapterState({NAME: LoraFactors(A, torch.zeros(M, RANK), SCALING(RANK))})


def begun(rule="truncate"):
    adapters = ClusterAdapters(AGGREGATIONS[rule](), SCALING, 1)
    adapters.begin(write_state(INITIAL))
    return adapters


def reply(adapters, group, client, weight=1.0, number=1):
    """Return what a client sends back: along one direction, the same for all."""
    sent = adapters.start(group, None, number).factors[NAME]
    B = sent.B.clone()
    B[:, 0] += 1.0 + ord(client) % 7
    state = AdapterState({NAME: LoraFactors(sent.A, B, sent.scale)})
    return Contribution(client, weight, state)


def product(state):
    return state.factors[NAME].delta().double()


def assert_together(adapters, shares):
    """Compare what all have learned together with the groups' products by shares."""
    groups = adapters.groups
    wanted = sum(share * product(groups[g]) for g, share in shares.items())
    torch.testing.assert_close(product(adapters.overall), wanted, rtol=1e-4, atol=1e-5)


def test_a_new_group_of_those_who_have_yet_to_train_ends_no_run():
    adapters = begun()
    adapters.aggregate({"0": [reply(adapters, "0", "a")]})
    adapters.regroup({"a": 0, "b": 0}, {"a": 0, "b": 1})
    assert {*adapters.groups} == {"0", "1"}
    adapters.aggregate({"0": [reply(adapters, "0", "a", number=2)]})
    assert_together(adapters, {"0": 1.0})
    adapters.aggregate({"1": [reply(adapters, "1", "b", weight=3.0, number=3)]})
    assert_together(adapters, {"0": 0.25, "1": 0.75})


def test_who_trains_in_another_group_counts_once_in_all_groups_together():
    adapters = begun()
    parts = [reply(adapters, "all", "a"), reply(adapters, "all", "b", weight=3.0)]
    adapters.aggregate({"all": parts})
    adapters.aggregate({"a": [reply(adapters, "all", "a", number=2)]})
    assert_together(adapters, {"a": 0.25, "all": 0.75})
    adapters.aggregate({"b": [reply(adapters, "all", "b", weight=3.0, number=3)]})
    assert_together(adapters, {"a": 0.25, "b": 0.75})


def test_all_groups_together_are_those_that_were_mixed():
    adapters = begun()
    parts = {"0": [reply(adapters, "0", "a")], "1": [reply(adapters, "1", "b", 9.0)]}
    adapters.aggregate(parts)
    adapters.mix(["0", "1"], np.array([[0.5, 0.5], [0.5, 0.5]]))
    assert_together(adapters, {"0": 0.1, "1": 0.9})


@pytest.mark.parametrize("rule", [*AGGREGATIONS])
def test_a_client_without_examples_ends_no_run_and_changes_nothing(rule, caplog):
    adapters, alone = begun(rule), begun(rule)
    known = reply(adapters, "0", "a")
    more = {**INITIAL.factors, "layers.1.q": INITIAL.factors[NAME]}
    idle = Contribution("b", 0.0, AdapterState(more))
    adapters.aggregate({"0": [known, idle], "1": [reply(adapters, "1", "c", 0.0)]})
    alone.aggregate({"0": [known]})
    assert {*adapters.groups} == {"0"}
    assert torch.equal(product(adapters.groups["0"]), product(alone.groups["0"]))
    assert "group 1: none of its 1 members has an example" in caplog.text
    with pytest.raises(AdapterError, match="at least one client with examples"):
        adapters.aggregate({"0": [idle]})


def changed(adapters):
    """Return what all have learned, as a wrapper that adds noise hands it back."""
    record = adapters.returned()
    return ArrayRecord({k: Array(a.numpy() + np.float32(1)) for k, a in record.items()})


def test_a_resumed_run_keeps_the_size_of_a_where_a_wrapper_changes_arrays():
    adapters = begun()
    for number in (1, 2):
        adapters.aggregate({"0": [reply(adapters, "0", "a", number=number)]})
        arrays = changed(adapters)
        if number == 1:
            adapters.begin(arrays)
    resumed = ClusterAdapters(AGGREGATIONS["truncate"](), SCALING, 1)
    kept, values = adapters.state()
    resumed.restore(kept, json.loads(json.dumps(values)))
    sent = []
    for each in (adapters, resumed):
        each.begin(arrays)
        sent.append(each.start("0", 1, 3).factors[NAME])
    assert torch.equal(sent[0].A, sent[1].A)
    assert float(sent[0].A.norm()) > 1.1  # else nothing kept it from the first size


@pytest.mark.parametrize("rule", [*AGGREGATIONS])
def test_clusters_that_are_found_again_go_on_from_what_they_held(rule):
    adapters, labels = begun(rule), {"a": 0, "b": 1}
    parts = {str(g): [reply(adapters, str(g), c)] for c, g in labels.items()}
    adapters.aggregate(parts)
    before = [adapters.start(group, None, 2) for group in parts]
    adapters.regroup(labels, labels)
    after = [adapters.start(group, None, 2) for group in parts]
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one.factors[NAME].A, other.factors[NAME].A)
        assert torch.equal(one.factors[NAME].B, other.factors[NAME].B)


def test_a_mean_of_factors_stays_one_where_clusters_are_joined():
    adapters = begun("mean")
    parts = {"0": [reply(adapters, "0", "a")], "1": [reply(adapters, "1", "b")]}
    adapters.aggregate(parts)
    one, other = (adapters.start(g, None, 2).factors[NAME] for g in parts)
    adapters.regroup({"a": 0, "b": 1}, {"a": 0, "b": 0})
    found = adapters.start("0", None, 2).factors[NAME]
    torch.testing.assert_close(found.A, (one.A + other.A) / 2)
    torch.testing.assert_close(found.B, (one.B + other.B) / 2)


def test_a_mean_of_factors_takes_changed_arrays_as_they_are():
    """Who is late is added to them: in another basis its change would be another."""
    adapters = begun("mean")
    adapters.aggregate({"0": [reply(adapters, "0", "a")]})
    old = adapters.start("0", None, 2)
    adapters.begin(changed(adapters))
    sent = adapters.start("0", None, 2)
    still = Contribution("a", 1.0, AdapterState(sent.factors), sent)
    late = Contribution("b", 5.0, AdapterState(old.factors), old, late=True)
    adapters.aggregate({"0": [still, late]})
    found = adapters.start("0", None, 3)
    torch.testing.assert_close(product(found), product(sent), rtol=1e-4, atol=1e-4)


def test_means_of_factors_are_mixed_as_they_are():
    """Who is late is added to them: in another basis its change would be another."""
    adapters = begun("mean")
    parts = {"0": [reply(adapters, "0", "a")], "1": [reply(adapters, "1", "b")]}
    adapters.aggregate(parts)
    one, other = (adapters.start(g, None, 2) for g in parts)
    adapters.mix(["0", "1"], np.array([[0.75, 0.25], [0.25, 0.75]]))
    sent = adapters.start("0", None, 2)
    for side in "AB":
        mine, theirs = (getattr(s.factors[NAME], side) for s in (one, other))
        found = getattr(sent.factors[NAME], side)
        torch.testing.assert_close(found, 0.75 * mine + 0.25 * theirs)
    still = Contribution("a", 1.0, AdapterState(sent.factors), sent)
    late = Contribution("c", 5.0, AdapterState(one.factors), one, late=True)
    adapters.aggregate({"0": [still, late]})
    found = adapters.start("0", None, 3)
    torch.testing.assert_close(product(found), product(sent), rtol=1e-4, atol=1e-4)
