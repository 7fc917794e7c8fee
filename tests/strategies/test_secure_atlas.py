"""SecureAtlas learns what Atlas learns, and its server sees sums alone."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MessageType

from atlas_flwr.client_apps.secure import secure_mod
from atlas_flwr.errors import AtlasError, RoundError
from atlas_flwr.grids.delegation import DelegatingGrid
from atlas_flwr.grids.secure import SecureGrid
from atlas_flwr.protocol.sums import SECURE
from atlas_flwr.strategies import Atlas, SecureAtlas
from atlas_flwr.testing import local_grid
from tests.matrix_clients import KEYS, client_app

NODES = [1_000 + 7 * client for client in range(8)]
MINE = {"clustering": "none", "fraction_evaluate": 0.0}


def large(rank: int = 2) -> ArrayRecord:
    """Arrays whose sketches are smaller than their product."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(rank, 70)), np.zeros((60, rank)), np.zeros((3,))
    arrays = (Array(value.astype(np.float32)) for value in values)
    return ArrayRecord(dict(zip(KEYS, arrays, strict=True)))


def in_clusters(kind, sizes):
    """A strategy whose first clients are one cluster, the next another."""
    bounds = np.cumsum(sizes)

    class Clustered(kind):
        def _group(self, client):
            place = NODES.index(int(client))
            return str(int(np.searchsorted(bounds, place, side="right")))

    return Clustered(**MINE)


class Watched(DelegatingGrid):
    """Keeps what came back from the clients, and may change what goes there."""

    def __init__(self, grid, change=lambda message: None):
        super().__init__(grid)
        self.change, self.replies = change, []

    def send_and_receive(self, messages, *, timeout=None):
        out = list(messages)
        for message in out:
            self.change(message)
        found = list(self.grid.send_and_receive(out, timeout=timeout))
        self.replies += found
        return found


def played(strategy, nodes, rounds=1, intercept=None, mods=(), change=None):
    secure = isinstance(strategy, SecureAtlas)
    app = client_app(mods=[secure_mod, *mods] if secure else [])
    with local_grid(app, nodes, intercept=intercept) as grid:
        watched = Watched(grid, change or (lambda message: None))
        around = SecureGrid(watched, strategy) if secure else watched
        result = strategy.start(around, large(), num_rounds=rounds)
    return result, watched


def products(strategy):
    return {
        group: {name: f.delta().double() for name, f in state.factors.items()}
        for group, state in strategy.adapters.groups.items()
    }


def check_same(one, other, tolerance=2e-6):
    expected, found = products(one), products(other)
    assert expected.keys() == found.keys()
    for group, layers in expected.items():
        for name, product in layers.items():
            error = (found[group][name] - product).norm() / product.norm()
            assert float(error) < tolerance, (group, name)
        dense = one.adapters.groups[group].dense
        for key, value in dense.items():
            again = other.adapters.groups[group].dense[key]
            np.testing.assert_allclose(again, value, rtol=1e-5, atol=1e-6)


def test_each_cluster_learns_what_it_learns_without_secure_sums():
    plain, secure = (in_clusters(kind, (3, 4)) for kind in (Atlas, SecureAtlas))
    expected, _ = played(plain, 7, rounds=3)
    found, watched = played(secure, 7, rounds=3)
    assert [*products(secure)] == ["0", "1"]
    check_same(plain, secure)
    losses = (r.train_metrics_clientapp[3]["loss"] for r in (expected, found))
    assert next(losses) == pytest.approx(next(losses))
    assert all(set(reply.content) == {SECURE} for reply in watched.replies)
    # Weights are hidden: members of a cluster count the same where it is split anew.
    assert secure.adapters._members.by_group["0"] == pytest.approx(
        dict.fromkeys(map(str, NODES[:3]), (10 + 11 + 12) / 3)
    )


@pytest.mark.parametrize("least", [3, 4])
def test_a_sum_counts_as_so_many_updates_as_it_is_of(least):
    given = {"min_cluster_size": least, "min_available_nodes": 4}
    strategy = SecureAtlas(**MINE, **given)
    gone = NODES[3]
    played(
        strategy,
        4,
        intercept=lambda m: "gone" if m.metadata.dst_node_id == gone else "deliver",
    )
    assert bool(products(strategy)) == (least == 3)


def test_masked_words_are_those_of_sketches():
    _, watched = played(in_clusters(SecureAtlas, (3,)), 3)
    records = [r.content.array_records.get(SECURE) for r in watched.replies]
    words = [r["masked"].numpy().size for r in records if r is not None]
    s, t = 3 * 2 + 4, 3 * 2 + 8
    assert words == [1 + 2 * (1 + 1) + 60 * s + t * 70 + 3] * 3


def test_clients_of_small_clusters_are_not_asked_to_train(caplog):
    caplog.set_level("INFO", logger="flwr")
    strategy = in_clusters(SecureAtlas, (2, 3))
    _, watched = played(strategy, 5, rounds=2)
    assert [*products(strategy)] == ["1"]
    assert {r.metadata.src_node_id for r in watched.replies} == set(NODES[2:5])
    assert caplog.text.count("without training: clusters 0 (of 2)") == 1


def test_clusters_that_are_all_small_end_the_run_with_a_way_out():
    with pytest.raises(RoundError, match=r"0 \(of 2\), 1 \(of 2\); set min-cluster"):
        played(in_clusters(SecureAtlas, (2, 2)), 4)


def test_a_client_that_fails_in_training_is_left_out_of_its_clusters_sum():
    def lose(message):
        train = message.metadata.message_type == MessageType.TRAIN
        return "gone" if train and message.metadata.dst_node_id == NODES[1] else ""

    def verdict(message):
        return lose(message) or "deliver"

    plain, secure = (in_clusters(kind, (4, 3)) for kind in (Atlas, SecureAtlas))
    played(plain, 7, intercept=verdict)
    played(secure, 7, intercept=verdict)
    check_same(plain, secure)


@pytest.mark.parametrize("step", ["training", "masked update"])
def test_a_cluster_whose_sum_fails_holds_up_no_other(step, caplog):
    caplog.set_level("INFO", logger="flwr")

    def verdict(message):
        second = "public-keys" in message.content.config_records.get(SECURE, {})
        mine = message.metadata.dst_node_id == NODES[0]
        return "gone" if mine and second == (step != "training") else "deliver"

    plain, secure = (in_clusters(kind, (3, 3)) for kind in (Atlas, SecureAtlas))
    played(secure, 6, intercept=verdict)
    played(plain, 6)
    plain.adapters.groups.pop("0")
    check_same(plain, secure)
    told = "no more than 2 of the clients" if step == "training" else "is noise"
    assert "secure sum: cluster 0: no mean of this round" in caplog.text
    assert told in caplog.text


def test_a_client_sends_no_sketch_into_a_sum_of_two():
    def fewer(message):
        record = message.content.config_records.get(SECURE, {})
        if "public-keys" in record:
            me = record["nodes"].index(str(message.metadata.dst_node_id))
            keep = {me, (me + 1) % 3}
            cut = {k: [v for i, v in enumerate(record[k]) if i in keep] for k in record}
            message.content[SECURE] = ConfigRecord(cut)

    with pytest.raises(RoundError, match="a group of 2 clients; it must be of 3 to 3"):
        played(in_clusters(SecureAtlas, (3,)), 3, change=fewer)


def own_alpha(message, context, call_next):
    reply = call_next(message, context)
    if "metrics" in reply.content:
        reply.content["metrics"]["lora-alpha"] = 3.0
    return reply


def higher_rank(message, context, call_next):
    reply = call_next(message, context)
    if "arrays" in reply.content:
        reply.content["arrays"] = large(rank=3)
    return reply


@pytest.mark.parametrize(
    ("mod", "told"),
    [
        (own_alpha, "its LoRA alpha .* its own"),
        (higher_rank, "rank 3; it was sent at rank 2"),
    ],
)
def test_what_cannot_be_sketched_is_told_by_its_client(mod, told):
    with pytest.raises(RoundError, match=told):
        played(in_clusters(SecureAtlas, (3,)), 3, mods=[mod])


def test_updates_in_plain_end_the_run():
    strategy = SecureAtlas(**MINE)
    with (
        local_grid(client_app(), 3) as grid,
        pytest.raises(AtlasError, match=r"in plain: start .* SecureGrid"),
    ):
        strategy.start(grid, large(), num_rounds=1)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"aggregation": "mean", "clustering": "none"}, "allowed: both, fold, trunc"),
        ({}, "fingerprints='updates': a secure sum shows no client's update"),
    ],
)
def test_what_needs_single_updates_is_refused(given, told):
    with pytest.raises(ValueError, match=told):
        SecureAtlas(**given)
