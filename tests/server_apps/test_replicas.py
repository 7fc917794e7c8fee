# SPDX-License-Identifier: Apache-2.0
"""Replicas of a trunk leave a run the bits of one, whichever of them die."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from atlas_flwr.errors import TrunkError, TrunkLost
from atlas_flwr.server_apps import trunk as starting
from atlas_flwr.trunk import Endpoint
from atlas_flwr.trunk.transports.local import LoopbackTrunk
from tests.golden.record import digest
from tests.server_apps.test_peers import Mortal, told
from tests.server_apps.test_run import run, summary


def trained(folder, **changes):
    given = {"num_rounds": 2, "cut": "1/1", **changes}
    return run(folder, trunk="local", **given)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("one"))


class Fleet:
    """The replicas of a run: who began, who was called, and who dies at which call."""

    def __init__(self, monkeypatch):
        self.trunks, self.calls, self.deadly, self.last = {}, [], set(), 0
        start, exchange = starting._local_trunk, LoopbackTrunk.exchange

        @contextmanager
        def mortal(source, name):
            with start(source, name) as found:
                self.trunks[name] = Mortal(found.host)
                yield Endpoint(self.trunks[name], found.address)

        def counted(trunk, request):
            engine = trunk.service.engine
            name = next(n for n, m in self.trunks.items() if m.engine is engine)
            self.calls.append(name.rpartition("-")[2])
            mine = self.trunks[name]
            mine.dead |= len(self.calls) in self.deadly
            if len(self.calls) == self.last:
                for each in self.trunks.values():
                    each.dead = True
            if mine.dead:
                raise TrunkLost("it was killed")
            return exchange(trunk, request)

        monkeypatch.setattr(starting, "_local_trunk", mortal)
        monkeypatch.setattr(LoopbackTrunk, "exchange", counted)


@pytest.fixture
def fleet(monkeypatch):
    return Fleet(monkeypatch)


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_replicas_learn_the_bits_of_one_trunk_each_serving_some(
    tmp_path, one, fleet, count
):
    found = trained(tmp_path, trunk_replicas=count)
    assert digest(found.path) == digest(one.path)
    assert set(fleet.calls) == {str(k + 1) for k in range(count)}
    for key in ("bytes_up", "clusters", "ranks"):
        assert summary(found)[key] == summary(one)[key]


# Calls: 4 of the evaluation before, 32 of fingerprints, then 16 of training and 4 of
# evaluation a round: 76.
@pytest.mark.parametrize(
    ("deadly", "restarts", "begun"),
    [
        ({60}, 2, 3),
        pytest.param({60}, 0, 2, marks=pytest.mark.slow),
        pytest.param({3}, 2, 3, marks=pytest.mark.slow),
        pytest.param({20, 75}, 2, 4, marks=pytest.mark.slow),
    ],
)
def test_clients_of_a_replica_that_dies_begin_again_at_another_and_no_bit_changes(
    tmp_path, one, fleet, deadly, restarts, begun
):
    fleet.deadly = deadly
    found = trained(tmp_path, trunk_replicas=2, trunk_restarts=restarts)
    assert digest(found.path) == digest(one.path)
    assert len(fleet.trunks) == begun
    assert summary(found)["replicas_lost"] == len(deadly)
    assert not summary(found)["trunk_restarts"]
    moves = told(found, "replica-moved")
    assert all(len(set(event["seats"].values())) == 1 for event in moves)
    assert summary(found)["replica_moves"] == sum(len(e["seats"]) for e in moves) > 0


def test_only_the_clients_of_the_replica_that_died_repeat_anything(
    tmp_path, one, fleet
):
    fleet.deadly = {58}
    trained(tmp_path, trunk_replicas=2)
    dead = fleet.calls[57]
    in_vain = fleet.calls[56:].count(dead)
    assert 0 < in_vain <= 4
    assert len(fleet.calls) == 76 + in_vain


@pytest.mark.slow
def test_when_all_replicas_die_they_are_started_again_and_no_bit_changes(
    tmp_path, one, fleet
):
    fleet.last = 58
    found = trained(tmp_path, trunk_replicas=2)
    assert digest(found.path) == digest(one.path)
    assert len(fleet.trunks) == 4


@pytest.mark.slow
def test_a_replica_that_dies_with_what_clients_have_trained_costs_the_round(
    tmp_path, one, fleet, monkeypatch
):
    read = Mortal.__getattr__

    def dies_when_read(self, name):
        if name == "adapters" and len(fleet.calls) == 72:
            self.dead = True
        return read(self, name)

    monkeypatch.setattr(Mortal, "__getattr__", dies_when_read)
    found = trained(tmp_path, trunk_replicas=2)
    assert digest(found.path) == digest(one.path)
    assert summary(found)["trunk_restarts"] == 1
    assert summary(found)["replicas_lost"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["flora", "hetlora", "splitlora"])
def test_methods_without_clusters_use_all_replicas_to_the_bits_of_one(
    tmp_path, strategy, fleet
):
    near = trained(tmp_path / "near", strategy=strategy)
    fleet.calls.clear()
    far = trained(tmp_path / "far", strategy=strategy, trunk_replicas=2)
    assert digest(far.path) == digest(near.path)
    assert set(fleet.calls) == {"1", "2"}


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_replicas(tmp_path, one, fleet):
    first = trained(tmp_path, num_rounds=1, trunk_replicas=2)
    keys = {"resume": str(first.path), "num_rounds": 2, "trunk_replicas": 3}
    assert digest(trained(tmp_path, **keys).path) == digest(one.path)


def test_what_keeps_a_replica_from_starting_is_the_error(tmp_path, monkeypatch):
    @contextmanager
    def refused(source, name):
        raise TrunkError("no room")
        yield

    monkeypatch.setattr(starting, "_local_trunk", refused)
    with pytest.raises(TrunkError, match="no room") as caught:
        trained(tmp_path, trunk_replicas=2)
    assert not isinstance(caught.value, TrunkLost)
