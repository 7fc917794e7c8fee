"""What Flower's users do to a FedAvg, done to an Atlas: it means the same."""

from __future__ import annotations

import re

import numpy as np
import pytest
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
)

from atlas_flwr.errors import RoundError
from atlas_flwr.strategies import Atlas, Local
from tests.strategies.test_drop_in import (
    ALONE,
    PAIR,
    answering,
    moved,
    record,
    second_round,
    started,
)

START = {"w": np.ones(3, np.float32), "double": np.arange(4.0)}


def same_as_flowers(ours, theirs, rounds=3):
    """Run both; what they send and what comes out must be the same."""
    (got, sent), (expected, wanted) = (
        started(strategy, answering(moved), START, rounds, nodes=5)
        for strategy in (ours, theirs)
    )
    for key, value in second_round(wanted).items():
        np.testing.assert_allclose(second_round(sent)[key], value, rtol=1e-5)
        result = got.arrays[key].numpy(), expected.arrays[key].numpy()
        np.testing.assert_allclose(*result, rtol=1e-5)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (FedAdagrad, {}),
        (FedAdam, {}),
        (FedAvgM, {"server_learning_rate": 0.5, "server_momentum": 0.9}),
        (FedMedian, {}),
        (FedProx, {"proximal_mu": 0.1}),
        (FedTrimmedAvg, {}),
        (FedYogi, {}),
    ],
)
def test_flowers_methods_go_over_atlas_as_over_fedavg(method, settings):
    class Over(method, Atlas):
        def __init__(self):
            Atlas.__init__(self, **ALONE)
            own = vars(method(fraction_evaluate=0.0, **settings))
            self.__dict__ |= {k: v for k, v in own.items() if k not in self.__dict__}

    same_as_flowers(Over(), method(fraction_evaluate=0.0, **settings))


class OwnSum:
    """A subclass that adds up replies by itself, and asks nobody's aggregate_train."""

    def aggregate_train(self, server_round, replies):
        updates = [m.content["arrays"] for m in replies]
        means = {k: np.mean([u[k].numpy() for u in updates], 0) for k in updates[0]}
        return record({k: v + 100 for k, v in means.items()}), None


class Rejecting:
    """A subclass that throws a round away."""

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        return (None if server_round == 2 else arrays), metrics


@pytest.mark.parametrize("idiom", [OwnSum, Rejecting])
@pytest.mark.parametrize("rounds", [1, 4])
def test_whatever_aggregate_train_returns_is_what_clients_get(idiom, rounds):
    ours = type("Ours", (idiom, Atlas), {})(**ALONE)
    theirs = type("Theirs", (idiom, FedAvg), {})(fraction_evaluate=0.0)
    same_as_flowers(ours, theirs, rounds)


def test_keys_of_records_may_be_set_when_the_object_is_there():
    strategy = Atlas(**ALONE)
    strategy.arrayrecord_key, strategy.configrecord_key = "model", "settings"
    strategy.weighted_by_key = "texts"
    app = ClientApp()

    @app.train()
    def train(message, context):
        number = int(context.node_config["partition-id"])
        assert {*message.content} == {"model", "settings"}
        told = MetricRecord({"num-examples": 1, "texts": 1 + 10 * number})
        arrays = record({"w": np.full(3, float(number))})
        return Message(RecordDict({"a": arrays, "m": told}), reply_to=message)

    result, _ = started(strategy, app, {"w": np.zeros(3)})
    np.testing.assert_allclose(result.arrays["w"].numpy(), (11 + 2 * 21) / 33)


# --- one object, started more than once ----------------------------------------------


def apart(sent, number):
    """Train for one task of two."""
    sign = 1 if number % 2 else -1
    return {k: v + np.float32(sign * (1 + number / 10)) for k, v in sent.items()}


def test_another_start_is_as_that_of_a_new_object():
    settings = {"num_clusters": 2, "lora_alpha": 2.0, "fraction_evaluate": 0.0}
    again, new = Atlas(**settings), Atlas(**settings)
    started(again, answering(apart, {0: {"lora-alpha": 8.0}}), PAIR, rounds=2, nodes=4)
    runs = [started(s, answering(apart), PAIR, 2, nodes=4) for s in (again, new)]
    assert again.clusters == new.clusters
    assert again.exchange.alphas == {}
    for key, value in second_round(runs[1][1]).items():
        np.testing.assert_array_equal(second_round(runs[0][1])[key], value)


@pytest.mark.parametrize("fails", [True, False])
@pytest.mark.parametrize("kind", [Atlas, Local])
def test_it_begins_with_its_own_arrays_even_if_the_first_one_failed(kind, fails):
    def broken(sent, number):
        if fails:
            raise ValueError("out of memory")
        return moved(sent, number)

    strategy = kind(fraction_evaluate=0.0)
    try:
        started(strategy, answering(broken), PAIR)
    except RoundError:
        assert fails
    other = {key: value + 3 for key, value in PAIR.items()}
    _, grid = started(strategy, answering(moved), other)
    for key, value in second_round(grid).items():
        np.testing.assert_array_equal(value, other[key])


# --- few clients a round -------------------------------------------------------------


def sent_in(grid):
    """Messages' arrays ``w`` by round."""
    rounds: dict[int, list] = {}
    for message in grid.sent:
        number = int(message.content["config"]["server-round"])
        rounds.setdefault(number, []).append(message.content["arrays"]["w"].numpy())
    return [rounds[number] for number in sorted(rounds)]


@pytest.mark.parametrize("one", [{"num_clusters": 1}, {"max_clusters": 1}])
def test_in_one_cluster_everybody_goes_on_from_what_all_have_learned(one):
    strategy = Atlas(**one, fraction_train=0.2, fraction_evaluate=0.0)

    def step(sent, number):
        return {"w": sent["w"] + 1}

    _, grid = started(strategy, answering(step), {"w": np.zeros(2)}, 4, nodes=10)
    for number, arrays in enumerate(sent_in(grid)):
        np.testing.assert_array_equal(arrays, np.full((2, 2), number))


def test_who_comes_late_adds_to_its_cluster_and_undoes_nothing():
    took_part: dict[int, set] = {0: set(), 1: set()}
    app = ClientApp()

    @app.train()
    def train(message, context):
        task = int(context.node_config["partition-id"]) % 2
        took_part[task].add(int(message.content["config"]["server-round"]))
        step = np.zeros(4)
        step[task] = 1
        arrays = record({"w": message.content["arrays"]["w"].numpy() + step})
        told = MetricRecord({"num-examples": 3})
        return Message(RecordDict({"a": arrays, "m": told}), reply_to=message)

    strategy = Atlas(
        num_clusters=2,
        fraction_train=0.3,
        min_train_nodes=1,
        fraction_evaluate=0.0,
    )
    started(strategy, app, {"w": np.zeros(4)}, rounds=4, nodes=10)
    assert all(1 in rounds for rounds in took_part.values())  # so that they part
    clusters = strategy.cluster_arrays()
    for number, client in enumerate(range(1000, 1070, 7)):
        if str(client) in strategy.clusters:
            learned = clusters[str(strategy.clusters[str(client)])]["w"].numpy()
            assert learned[number % 2] == pytest.approx(len(took_part[number % 2]))
            assert not learned[1 - number % 2]


def test_a_restored_object_goes_on_from_what_it_had_learned():
    for kind in (lambda: Atlas(**ALONE), lambda: Local(fraction_evaluate=0.0)):
        strategy, again = kind(), kind()
        result, _ = started(strategy, answering(moved), PAIR)
        again.restore(*strategy.state())
        arrays = {k: a.numpy() for k, a in result.arrays.items()} or PAIR
        _, grid = started(again, answering(moved), arrays)
        assert second_round(grid)["q.lora_B.weight"].any()


def test_who_changed_nothing_makes_no_group():
    strategy = Atlas(num_clusters=2, fraction_evaluate=0.0)

    def but_one(sent, number):
        return sent if number == 0 else apart(sent, number)

    result, _ = started(strategy, answering(but_one), PAIR, nodes=5)
    assert strategy.cluster_arrays().keys() == {"0", "1"}
    expected, _ = started(FedAvg(fraction_evaluate=0.0), answering(but_one), PAIR)
    assert result.arrays.keys() == expected.arrays.keys()


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
def test_who_changed_no_factor_but_something_else_has_a_sketch(dtype):
    step = dtype(1j if dtype is np.complex64 else 1)

    def its_classifier(sent, number):
        moved = (-1) ** number * step
        return {k: v if "lora" in k else v + moved for k, v in sent.items()}

    strategy = Atlas(num_clusters=2, fraction_evaluate=0.0)
    values = {**PAIR, "classifier.weight": np.zeros(8, dtype)}
    started(strategy, answering(its_classifier), values, nodes=4)
    found = strategy.clusters
    assert found["1000"] == found["1014"] != found["1007"] == found["1021"]


# --- evaluations that are unlike -----------------------------------------------------


@pytest.mark.parametrize(
    ("odd", "told"),
    [
        ({"num-examples": [1, 2]}, r"'num-examples' is \[1, 2\]"),
        ({"num-examples": float("nan")}, "'num-examples' is nan"),
        ({"num-examples": -1}, "'num-examples' is -1"),
        ({"accuracy": [1.0, 0.0]}, "'accuracy' of client 1007 has another form"),
        ({"accuracy": float("nan")}, "'accuracy' of client 1007 is not finite"),
        ({"of its own": 1.0}, ""),
    ],
)
def test_an_evaluation_that_is_unlike_the_others_ends_no_round(odd, told, caplog):
    metrics = {i: {"accuracy": 0.5} for i in range(3)}
    metrics[1] |= odd
    app = answering(moved)
    evaluating = answering(moved, metrics)._registered_funcs["evaluate.default"]
    app._registered_funcs["evaluate.default"] = evaluating
    result, _ = started(Atlas(clustering="none"), app, PAIR)
    assert result.evaluate_metrics_clientapp[1]["accuracy"] == 0.5
    assert re.search(told, caplog.text)


@pytest.mark.parametrize("alpha", [[1.0, 2.0], -1.0, 0.0, float("inf")])
def test_an_alpha_that_is_none_is_refused_by_name(alpha, caplog):
    app = answering(moved, {1: {"lora-alpha": alpha}})
    result, _ = started(Atlas(**ALONE), app, PAIR)
    assert "client 1007 (node 1007): its metric 'lora-alpha' is" in caplog.text
    assert result.arrays["q.lora_B.weight"].numpy().any()


@pytest.mark.parametrize("answer", [{}, {"arrays": record({"another": [1.0]})}])
def test_a_fingerprint_that_is_none_is_refused_by_name(answer, caplog):
    app = answering(moved)

    @app.query("fingerprint")
    def fingerprint(message, context):
        number = int(context.node_config["partition-id"])
        sketch = record({"sketch": np.eye(4, 8) + number % 2})
        content = RecordDict(answer if number == 1 else {"arrays": sketch})
        return Message(content, reply_to=message)

    strategy = Atlas(fingerprints="gradients", num_clusters=2, fraction_evaluate=0.0)
    started(strategy, app, PAIR, nodes=4)
    assert "node 1007 has no fingerprint: its reply needs one array" in caplog.text
    assert strategy.clusters.keys() == {"1000", "1014", "1021"}


def test_a_round_that_draws_a_newcomer_without_a_sketch_alone_ends_no_run(caplog):
    app = answering(moved)

    @app.query("fingerprint")
    def fingerprint(message, context):
        number = int(context.node_config["partition-id"])
        if number == 1:
            raise ValueError("no texts")
        sketch = record({"sketch": np.eye(4, 8) + number % 2})
        return Message(RecordDict({"arrays": sketch}), reply_to=message)

    strategy = Atlas(
        fingerprints="gradients",
        num_clusters=2,
        fraction_train=0.25,
        min_train_nodes=1,
        fraction_evaluate=0.0,
    )
    result, _ = started(strategy, app, PAIR, 8, nodes=4)
    told = re.findall(r"round (\d): none of 1 clients has a sketch", caplog.text)
    assert 1 <= len(told) <= 7
    trained = result.train_metrics_clientapp.keys()
    assert trained == {*range(1, 9)} - {int(number) for number in told}


def test_evaluations_that_nobody_can_weigh_are_an_error_that_says_so():
    app = answering(moved)

    @app.evaluate("other")
    def evaluate(message, context):
        return Message(RecordDict({"m": MetricRecord({"n": 1})}), reply_to=message)

    functions = app._registered_funcs
    functions["evaluate.default"] = functions.pop("evaluate.other")
    with pytest.raises(RoundError, match=r"none of 3 replies.*lacks 'num-examples'"):
        started(Atlas(clustering="none"), app, PAIR)
