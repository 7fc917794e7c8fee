from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from atlas_flwr.errors import RoundError
from atlas_flwr.strategies import Atlas
from atlas_flwr.testing import local_grid
from tests.matrix_clients import KEYS, client_app, initial, trained


def start(strategy, app=None, nodes=6, rounds=1, intercept=None, arrays=None):
    with local_grid(app or client_app(), nodes, intercept=intercept) as grid:
        result = strategy.start(grid, arrays or initial(), num_rounds=rounds)
        return result, grid


def product(arrays: ArrayRecord) -> np.ndarray:
    A, B = (arrays[key].numpy().astype(np.float64) for key in KEYS[:2])
    return B @ A


def expected(clients, tasks=2, examples=lambda c: 10 + c):
    """The cluster's product, dense and in float64."""
    weights = np.array([examples(c) for c in clients], dtype=np.float64)
    products = [product(trained(initial(), c, c % tasks)) for c in clients]
    return sum(w * p for w, p in zip(weights / weights.sum(), products, strict=True))


def node(client):
    return 1_000 + 7 * client


def test_fedavgs_arguments_are_taken_by_position_as_it_takes_them():
    names = FedAvg.__init__.__code__.co_varnames[
        1 : FedAvg.__init__.__code__.co_argcount
    ]
    code = Atlas.__init__.__code__
    assert code.co_varnames[1 : code.co_argcount] == names


def test_plain_clients_are_clustered_by_their_first_updates():
    strategy = Atlas()
    start(strategy)
    labels = strategy.clusters
    groups = (
        {labels[str(node(c))] for c in (0, 2, 4)},
        {labels[str(node(c))] for c in (1, 3, 5)},
    )
    assert len(groups[0]) == len(groups[1]) == 1
    assert groups[0] != groups[1]


def test_a_clusters_product_is_the_weighted_sum_of_its_members_products():
    strategy = Atlas()
    start(strategy)
    for members in ((0, 2, 4), (1, 3, 5)):
        label = str(strategy.clusters[str(node(members[0]))])
        got = product(strategy.cluster_arrays()[label])
        np.testing.assert_allclose(got, expected(members), rtol=1e-4, atol=1e-5)


def test_dense_arrays_are_averaged_within_the_cluster():
    strategy = Atlas()
    start(strategy)
    label = str(strategy.clusters[str(node(0))])
    got = strategy.cluster_arrays()[label][KEYS[2]].numpy()
    weights = np.array([10.0, 12.0, 14.0]) / 36
    arrays = [trained(initial(), c, 0)[KEYS[2]].numpy() for c in (0, 2, 4)]
    np.testing.assert_allclose(
        got, sum(w * a for w, a in zip(weights, arrays, strict=True)), rtol=1e-5
    )


def test_clients_get_their_own_clusters_adapters_at_the_rank_they_began_with():
    strategy = Atlas()
    _, grid = start(strategy, rounds=2)
    second = [m for m in grid.sent if m.metadata.message_type == MessageType.TRAIN][6:]
    by_node = {m.metadata.dst_node_id: m.content["arrays"] for m in second}
    assert by_node[node(0)][KEYS[0]].numpy().shape == (2, 5)
    same = product(by_node[node(0)]), product(by_node[node(2)])
    np.testing.assert_array_equal(*same)
    assert np.abs(product(by_node[node(0)]) - product(by_node[node(1)])).max() > 0.1


def test_the_results_arrays_have_the_clients_keys_shapes_and_types():
    result, _ = start(Atlas())
    for key, array in initial().items():
        assert result.arrays[key].numpy().shape == array.numpy().shape
        assert result.arrays[key].numpy().dtype == array.numpy().dtype


def test_it_samples_as_many_as_fedavg_and_the_same_ones_for_a_seed():
    def sampled(strategy):
        _, grid = start(strategy, nodes=10, rounds=3)
        kinds = [(m.metadata.message_type, m.metadata.dst_node_id) for m in grid.sent]
        return [n for kind, n in kinds if kind == MessageType.TRAIN]

    settings = {"fraction_train": 0.45, "min_train_nodes": 3}
    assert len(sampled(Atlas(**settings))) == len(sampled(FedAvg(**settings))) == 12
    assert sampled(Atlas(**settings)) == sampled(Atlas(**settings))
    assert sampled(Atlas(**settings, seed=1)) != sampled(Atlas(**settings, seed=2))


def test_nothing_is_trained_or_evaluated_at_fraction_zero():
    _, grid = start(Atlas(fraction_train=0.0, fraction_evaluate=0.0))
    assert not grid.sent


@pytest.mark.parametrize("fate", ["drop", "battery empty"])
def test_a_client_that_fails_or_vanishes_is_left_out(fate):
    def intercept(message):
        kind = message.metadata.message_type
        lost = message.metadata.dst_node_id == node(2) and kind == MessageType.TRAIN
        return fate if lost else "deliver"

    strategy = Atlas(num_clusters=2)
    start(strategy, intercept=intercept)
    assert str(node(2)) not in strategy.clusters
    label = str(strategy.clusters[str(node(0))])
    got = product(strategy.cluster_arrays()[label])
    np.testing.assert_allclose(got, expected((0, 4)), rtol=1e-4, atol=1e-5)


def test_a_client_that_appears_late_joins_the_nearest_cluster():
    def intercept(message):
        kind, round_ = message.metadata.message_type, message.content["config"]
        late = message.metadata.dst_node_id == node(5) and kind == MessageType.TRAIN
        return "drop" if late and round_["server-round"] == 1 else "deliver"

    strategy = Atlas()
    start(strategy, rounds=2, intercept=intercept)
    assert strategy.clusters[str(node(5))] == strategy.clusters[str(node(1))]


def test_a_round_without_replies_changes_nothing():
    def first_is_lost(message):
        config = message.content["config"]
        return "drop" if config["server-round"] == 1 else "deliver"

    one, _ = start(Atlas(), rounds=1)
    two, _ = start(Atlas(), rounds=2, intercept=first_is_lost)
    assert list(two.train_metrics_clientapp) == [2]
    for key, array in one.arrays.items():
        np.testing.assert_array_equal(array.numpy(), two.arrays[key].numpy())


@pytest.mark.parametrize(
    ("lost", "said"), [("drop", "nobody replied"), ("out of paper", "out of paper")]
)
def test_a_run_in_which_nobody_trained_is_no_success(lost, said):
    with pytest.raises(RoundError, match=f"nothing was learned.*{said}"):
        start(Atlas(), rounds=2, intercept=lambda message: lost)


def test_the_result_is_of_all_clusters_whoever_trained_last():
    def second_task_is_away(message):
        client = (message.metadata.dst_node_id - 1_000) // 7
        late = message.content["config"]["server-round"] == 2
        return "drop" if late and client % 2 else "deliver"

    strategy = Atlas(num_clusters=2)
    result, _ = start(strategy, rounds=2, intercept=second_task_is_away)
    key = KEYS[2]  # a plain array, of which a mean is exact
    weights = dict.fromkeys(strategy.clusters.values(), 0.0)
    for client, cluster in strategy.clusters.items():
        weights[cluster] += 10 + (int(client) - 1_000) // 7
    held = {c: a[key].numpy() for c, a in strategy.cluster_arrays().items()}
    wanted = sum(w * held[str(c)] for c, w in weights.items()) / sum(weights.values())
    np.testing.assert_allclose(result.arrays[key].numpy(), wanted, rtol=1e-5)


def reply_with(change):
    """Client 1 answers with changed arrays, the others as they should."""
    app = client_app()
    honest = app._registered_funcs["train.default"]

    def train(message, context):
        reply = honest(message, context)
        if context.node_config["partition-id"] == 1:
            arrays = {k: a.numpy() for k, a in reply.content["arrays"].items()}
            change(arrays)
            record = ArrayRecord({k: Array(v) for k, v in arrays.items()})
            metrics = MetricRecord({"num-examples": 11})
            content = RecordDict({"arrays": record, "metrics": metrics})
            return Message(content, reply_to=message)
        return reply

    app._registered_funcs["train.default"] = train
    return app


def lower_rank(arrays):
    arrays[KEYS[0]], arrays[KEYS[1]] = arrays[KEYS[0]][:1], arrays[KEYS[1]][:, :1]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lower_rank, "rank 1"),
        (lambda a: a.update({KEYS[0]: a[KEYS[0]][:1]}), "(1, 5)"),
        (lambda a: a.update({KEYS[0]: a[KEYS[0]][:, :3]}), "must"),
        (lambda a: a.pop(KEYS[1]), "without lora_B"),
        (lambda a: a.pop(KEYS[2]), "missing"),
        (lambda a: a.update({"x": np.zeros(2, np.float32)}), "'x'"),
        (lambda a: a.update({KEYS[2]: np.full(3, np.nan, np.float32)}), "NaN"),
        (lambda a: a.update({KEYS[2]: np.zeros(1, np.float32)}), "(1,)"),
    ],
)
def test_factors_that_do_not_fit_are_refused_by_name_never_broadcast(
    change, told, caplog
):
    strategy = Atlas()
    start(strategy, app=reply_with(change))
    refusals = [r.getMessage() for r in caplog.records if "refused" in r.getMessage()]
    assert len(refusals) == 1
    assert told in refusals[0]
    assert f"client {node(1)}" in refusals[0]
    label = str(strategy.clusters[str(node(3))])
    got = product(strategy.cluster_arrays()[label])
    np.testing.assert_allclose(got, expected((3, 5)), rtol=1e-4, atol=1e-5)


def test_flowers_own_aggregation_does_broadcast_which_is_why_ours_checks():
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

    def record(rank):
        content = {"arrays": initial(rank), "m": MetricRecord({"num-examples": 1})}
        return RecordDict(content)

    silent = aggregate_arrayrecords([record(8), record(1)], "num-examples")
    assert silent[KEYS[0]].numpy().shape == (8, 5)


def trajectory(rounds=2, **settings):
    strategy = Atlas(**settings)
    _, grid = start(strategy, rounds=rounds)
    sent = [m for m in grid.sent if m.metadata.message_type == MessageType.TRAIN]
    return [product(m.content["arrays"]) for m in sent]


@pytest.mark.parametrize(
    "off",
    [
        {"clustering": "none"},
        {"num_clusters": 3},
        {"aggregation": "mean"},
        {"aggregation": "none"},
        {"max_rank": 1},
    ],
    ids=str,
)
def test_switching_a_phase_off_changes_the_trajectory(off):
    on, without = trajectory(), trajectory(**off)
    assert max(np.abs(a - b).max() for a, b in zip(on, without, strict=True)) > 1e-5


def test_with_no_aggregation_everyone_goes_on_alone():
    products = trajectory(aggregation="none")
    for client in range(6):
        alone = product(trained(initial(), client, client % 2))
        np.testing.assert_allclose(products[6 + client], alone, rtol=1e-4, atol=1e-5)


def test_a_resumed_strategy_continues_to_the_same_numbers():
    unbroken = trajectory(rounds=3)
    first = Atlas()
    result, _ = start(first, rounds=2)
    second = Atlas()
    second.restore(*first.state())
    with local_grid(client_app(), 6) as grid:
        from flwr.app import ConfigRecord

        messages = second.configure_train(3, result.arrays, ConfigRecord(), grid)
        for message, before in zip(messages, unbroken[12:], strict=True):
            np.testing.assert_array_equal(product(message.content["arrays"]), before)


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({"clustering": "dbscan"}, "kmeans"),
        ({"aggregation": "median"}, "truncate"),
        ({"fingerprints": "pca"}, "updates"),
    ],
)
def test_words_that_mean_nothing_are_refused_with_those_that_do(settings, allowed):
    with pytest.raises(ValueError, match=allowed):
        Atlas(**settings)


@pytest.mark.parametrize("aggregation", ["truncate", "none"])
def test_reclustering_keeps_what_members_have_learned(aggregation):
    kept = trajectory(rounds=3, aggregation=aggregation, recluster_every=0)
    again = trajectory(rounds=3, aggregation=aggregation, recluster_every=2)
    for a, b in zip(kept, again, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
