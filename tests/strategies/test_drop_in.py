"""Atlas where FedAvg was: what FedAvg takes it takes, and what it cannot it refuses."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
)

from atlas_flwr.aggregation.metrics import averaged_metrics
from atlas_flwr.errors import AdapterError, RoundError
from atlas_flwr.strategies import (
    Atlas,
    FlexLora,
    Flora,
    HetLora,
    HSplitLora,
    Local,
    Mira,
    OracleFedAvg,
    SplitLora,
)
from atlas_flwr.testing import local_grid
from tests.matrix_clients import initial

ALONE = {"clustering": "none", "fraction_evaluate": 0.0}
PAIR = {
    "q.lora_A.weight": np.ones((2, 3), np.float32),
    "q.lora_B.weight": np.zeros((4, 2), np.float32),
}
BESIDE = {
    "counter": np.array(5),
    "empty": np.zeros((0, 3), np.float32),
    "numbers": np.array([2**40 + 1, 3]),
    "flags": np.array([True, False]),
    "half": np.array([0.5, 1.5], np.float16),
    "double": np.array([1.0 + 1e-12, 2.0]),
    "mask": np.array([[0.0, -np.inf]], np.float32),
    "scalar": np.array(1.5, np.float32),
}


def record(values):
    return ArrayRecord({key: Array(np.asarray(value)) for key, value in values.items()})


def answering(change, metrics=None, mods=None):
    """Make an app whose client i answers with ``change(arrays, i)``."""
    app = ClientApp(mods=mods)

    @app.train()
    def train(message, context):
        number = int(context.node_config["partition-id"])
        sent = {k: a.numpy() for k, a in message.content["arrays"].items()}
        told = {"num-examples": number + 1, **((metrics or {}).get(number, {}))}
        content = {"arrays": record(change(sent, number)), "m": MetricRecord(told)}
        return Message(RecordDict(content), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        number = int(context.node_config["partition-id"])
        told = {"num-examples": 1, **((metrics or {}).get(number, {}))}
        content = RecordDict({"m": MetricRecord(told)})
        return Message(content, reply_to=message)

    return app


def started(strategy, app, values, rounds=1, nodes=3, inner=None):
    with local_grid(app, nodes) as grid:
        result = strategy.start(grid, record(values), num_rounds=rounds)
    return result, grid


def moved(sent, number):
    out = {}
    for key, value in sent.items():
        step = number + 1 if value.dtype.kind in "iu" else 0.25 * (number + 1)
        out[key] = value if value.dtype == bool else (value + step).astype(value.dtype)
    return out


@pytest.mark.parametrize("key", BESIDE)
@pytest.mark.parametrize("rounds", [1, 2])
def test_an_array_beside_lora_comes_out_as_from_fedavg(key, rounds):
    values = {**PAIR, key: BESIDE[key]}
    ours, _ = started(Atlas(**ALONE), answering(moved), values, rounds)
    theirs, _ = started(
        FedAvg(fraction_evaluate=0.0), answering(moved), {key: BESIDE[key]}, rounds
    )
    got, expected = ours.arrays[key].numpy(), theirs.arrays[key].numpy()
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=2e-3 if key == "half" else 1e-6)


def test_arrays_come_back_in_their_order():
    keys = ["z.weight", *PAIR, "a.bias"]
    values = {"z.weight": np.ones(2), **PAIR, "a.bias": np.ones(1)}
    result, grid = started(Atlas(**ALONE), answering(moved), values, rounds=2)
    assert list(result.arrays) == keys
    assert all(list(m.content["arrays"]) == keys for m in grid.sent)


def test_infinity_where_there_was_none_is_refused(caplog):
    def one_diverges(sent, number):
        broken = {"scalar": np.array(np.inf, np.float32)} if number == 1 else {}
        return {**moved(sent, number), **broken}

    values = {**PAIR, "scalar": BESIDE["scalar"]}
    result, _ = started(Atlas(**ALONE), answering(one_diverges), values)
    assert "client 1007 (node 1007): array 'scalar' has NaN or infinity" in caplog.text
    assert np.isfinite(result.arrays["scalar"].numpy())


def test_a_metric_is_averaged_over_those_who_sent_it():
    told = {0: {"loss": 1.0}, 2: {"loss": 2.0}}
    result, _ = started(Atlas(**ALONE), answering(moved, told), PAIR)
    assert result.train_metrics_clientapp[1]["loss"] == pytest.approx((1 + 3 * 2) / 4)


def test_a_metric_that_is_not_finite_is_named_and_left_out(caplog):
    told = {0: {"loss": 1.0}, 1: {"loss": float("nan")}, 2: {"loss": 1.0}}
    result, _ = started(Atlas(**ALONE), answering(moved, told), PAIR)
    assert result.train_metrics_clientapp[1]["loss"] == pytest.approx(1)
    assert "'loss' of client 1007 is not finite" in caplog.text


def test_lists_are_averaged_where_they_are_as_long_as_the_first():
    def reply(**told):
        return RecordDict({"m": MetricRecord({"n": 1, **told})})

    found = averaged_metrics([reply(x=[1.0, 3.0]), reply(x=[3.0, 5.0])], "n")
    assert found["x"] == [2.0, 4.0]
    found = averaged_metrics([reply(x=[1.0, 3.0]), reply(x=[3.0])], "n")
    assert found["x"] == [1.0, 3.0]


def test_a_metric_has_the_form_that_most_clients_send_it_in(caplog):
    told = {0: {"loss": [9.0, 9.0]}, 1: {"loss": 1.0}, 2: {"loss": 2.0}}
    result, _ = started(Atlas(**ALONE), answering(moved, told), PAIR)
    assert result.train_metrics_clientapp[1]["loss"] == pytest.approx((2 + 6) / 5)
    assert "'loss' of client 1000 has another form than others'" in caplog.text


def test_evaluations_without_examples_have_no_mean():
    told = {i: {"num-examples": 0, "accuracy": 1.0} for i in range(3)}
    strategy = Atlas(clustering="none")
    app = answering(moved, {})
    app_evaluating = answering(moved, told)
    with local_grid(app, 3) as grid, local_grid(app_evaluating, 3) as other:
        strategy.start(grid, record(PAIR), num_rounds=1)
        messages = strategy.configure_evaluate(
            1, strategy.adapters.returned(), grid.sent[0].content["config"], other
        )
        replies = other.send_and_receive(messages)
        assert not strategy.aggregate_evaluate(1, replies)


# --- arrays that somebody changed on their way ---------------------------------------


class Momentum:
    """What a subclass may do to the arrays that aggregate_train returns."""

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        changed = {key: array.numpy() + 7 for key, array in arrays.items()}
        return record(changed), metrics


class OursWithMomentum(Momentum, Atlas):
    pass


class TheirsWithMomentum(Momentum, FedAvg):
    pass


def second_round(grid):
    last = grid.sent[-1].content["arrays"]
    return {key: array.numpy() for key, array in last.items()}


def test_arrays_that_a_subclass_changes_are_those_that_clients_get():
    ours, theirs = (
        started(kind, answering(moved), PAIR, rounds=2)[1]
        for kind in (OursWithMomentum(**ALONE), TheirsWithMomentum(fraction_evaluate=0))
    )
    got, expected = second_round(ours), second_round(theirs)
    product = got["q.lora_B.weight"] @ got["q.lora_A.weight"]
    assert product.max() > 100  # 7 * 7 * 2 and more
    assert got.keys() == expected.keys()


@pytest.mark.parametrize("added", [0, 7])
def test_so_are_those_that_are_changed_before_a_run_goes_on(added):
    before, again = Atlas(**ALONE), Atlas(**ALONE)
    result, _ = started(before, answering(moved), PAIR)
    again.restore(*before.state())
    given = {key: array.numpy() + added for key, array in result.arrays.items()}
    _, grid = started(again, answering(moved), given)
    got = grid.sent[-1].content["arrays"]
    for key, value in given.items():
        np.testing.assert_allclose(got[key].numpy(), value, atol=1e-6)


def test_a_resumed_run_hands_out_changed_arrays_to_the_bit_as_the_whole_run_does():
    """Updates are clipped against them, and other factors of the same are far away."""
    whole, before, again = (OursWithMomentum(**ALONE) for _ in range(3))
    _, unbroken = started(whole, answering(moved), PAIR, rounds=2)
    result, _ = started(before, answering(moved), PAIR)
    arrays, values = before.state()
    again.restore(arrays, json.loads(json.dumps(values)))
    given = {key: array.numpy() for key, array in result.arrays.items()}
    _, grid = started(again, answering(moved), given)
    got, expected = second_round(grid), second_round(unbroken)
    for key, value in expected.items():
        np.testing.assert_array_equal(got[key], value)


def test_a_run_with_clusters_does_not_go_on_with_changed_arrays():
    def apart(sent, number):
        return {k: v + (-1) ** number for k, v in sent.items()}

    before, again = (Atlas(num_clusters=2, fraction_evaluate=0.0) for _ in range(2))
    result, _ = started(before, answering(apart), PAIR, nodes=4)
    again.restore(*before.state())
    given = {key: array.numpy() + 7 for key, array in result.arrays.items()}
    with pytest.raises(AdapterError, match="2 clusters have adapters of their own"):
        started(again, answering(apart), given, nodes=4)


def test_with_clusters_such_changes_are_refused_at_once():
    def apart(sent, number):
        sign = 1 if number % 2 else -1
        return {k: v + sign * np.ones_like(v) for k, v in sent.items()}

    with pytest.raises(AdapterError, match="2 clusters have adapters of their own"):
        started(
            OursWithMomentum(num_clusters=2, fraction_evaluate=0.0),
            answering(apart),
            PAIR,
            rounds=2,
            nodes=4,
        )


class InPlace(Atlas):
    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        for key, array in list(arrays.items()):
            arrays[key] = Array(array.numpy() * 100)
        return arrays, metrics


def test_so_are_arrays_that_are_changed_in_place():
    strategy = InPlace(**ALONE)
    _, grid = started(strategy, answering(moved), PAIR, rounds=2)
    once, _ = started(Atlas(**ALONE), answering(moved), PAIR)
    for key, value in second_round(grid).items():
        np.testing.assert_array_equal(value, 100 * once.arrays[key].numpy())
    apart = answering(lambda sent, i: {k: v + (-1) ** i for k, v in sent.items()})
    with pytest.raises(AdapterError, match="clusters have adapters of their own"):
        started(InPlace(num_clusters=2), apart, PAIR, rounds=2, nodes=4)


@pytest.mark.parametrize("aggregation", ["truncate", "mean"])
def test_noise_on_the_factors_adds_up_over_rounds_as_with_fedavg(aggregation):
    rng = np.random.default_rng(0)
    values = {
        "q.lora_A.weight": (rng.normal(size=(2, 32)) / 10).astype(np.float32),
        "q.lora_B.weight": np.zeros((32, 2), np.float32),
    }
    grown = []
    for inner in (
        Atlas(**ALONE, aggregation=aggregation),
        FedAvg(fraction_evaluate=0.0),
    ):
        np.random.seed(0)
        noisy = DifferentialPrivacyServerSideFixedClipping(
            inner, noise_multiplier=1.0, clipping_norm=0.5, num_sampled_clients=3
        )
        _, grid = started(noisy, answering(moved), values, rounds=10)
        last = second_round(grid)
        grown.append(np.linalg.norm(last["q.lora_B.weight"] @ last["q.lora_A.weight"]))
    ours, theirs = grown
    assert theirs / 2 < ours < theirs * 2
    if aggregation == "mean":
        assert ours == pytest.approx(theirs, rel=1e-4)


FIXED = {"noise_multiplier": 1e3, "clipping_norm": 0.5, "num_sampled_clients": 3}
ADAPTIVE = {
    "noise_multiplier": 10,
    "initial_clipping_norm": 50.0,
    "clipped_count_stddev": 20.0,
    "num_sampled_clients": 3,
}
WRAPPERS = {
    DifferentialPrivacyServerSideFixedClipping: FIXED,
    DifferentialPrivacyClientSideFixedClipping: FIXED,
    DifferentialPrivacyServerSideAdaptiveClipping: ADAPTIVE,
    DifferentialPrivacyClientSideAdaptiveClipping: ADAPTIVE,
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_noise_of_flowers_privacy_wrappers_reaches_the_clients(wrapper):
    told = {i: {"norm_bit": 1} for i in range(3)}
    sizes = []
    for inner in (Atlas(**ALONE), FedAvg(fraction_evaluate=0.0)):
        np.random.seed(0)
        app = answering(moved, told)
        _, grid = started(wrapper(inner, **WRAPPERS[wrapper]), app, PAIR, rounds=2)
        sizes.append(max(np.abs(v).max() for v in second_round(grid).values()))
    ours, theirs = sizes
    assert theirs > 10
    assert theirs / 10 < ours < theirs * 10


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(
    ("inner", "why"),
    [
        (Atlas(), "arrays of its own"),
        (Atlas(clustering="none", aggregation="none"), "arrays of its own"),
        (Flora(), "folded into the frozen weights"),
        (Mira(aggregation="truncate"), "arrays of its own"),
        (OracleFedAvg(), "arrays of its own"),
        (SplitLora(interval=2), "arrays of its own"),
        (Local(), "arrays of its own"),
    ],
)
def test_these_wrappers_round_clusters_are_refused_before_any_message(
    wrapper, inner, why
):
    with local_grid(answering(moved), 3) as grid:
        with pytest.raises(AdapterError, match=f"{wrapper.__name__} cannot.*{why}"):
            wrapper(inner, **WRAPPERS[wrapper]).start(grid, record(PAIR))
        assert grid.sent == []


def test_they_go_round_one_cluster():
    inner = Atlas(num_clusters=1, fraction_evaluate=0.0)
    wrapper = DifferentialPrivacyServerSideFixedClipping(inner, **FIXED)
    _, grid = started(wrapper, answering(moved), PAIR, rounds=2)
    assert max(np.abs(v).max() for v in second_round(grid).values()) > 10


def test_another_start_of_the_same_object_begins_with_its_own_arrays():
    strategy = Atlas(**ALONE)
    started(strategy, answering(moved), PAIR)
    other = {key: value + 3 for key, value in PAIR.items()}
    _, grid = started(strategy, answering(moved), other)
    for key, value in second_round(grid).items():
        np.testing.assert_array_equal(value, other[key])


# --- replies and adapters that do not fit ---------------------------------------------


def test_two_adapters_of_one_layer_are_added_up_apart():
    values = {
        f"q.lora_{factor}.{name}.weight": PAIR[f"q.lora_{factor}.weight"]
        for name in ("default", "other")
        for factor in "AB"
    }

    def only_other(sent, number):
        return {k: v + (1 if "other" in k else 0) for k, v in sent.items()}

    result, _ = started(Atlas(**ALONE), answering(only_other), values)
    assert list(result.arrays) == list(values)
    assert not result.arrays["q.lora_B.default.weight"].numpy().any()
    assert result.arrays["q.lora_B.other.weight"].numpy().any()


def test_a_second_adapter_in_a_reply_is_refused_by_name(caplog):
    def twice(sent, number):
        again = {k.replace(".weight", ".other.weight"): v + 9 for k, v in sent.items()}
        return {**moved(sent, number), **(again if number == 1 else {})}

    result, _ = started(Atlas(**ALONE), answering(twice), PAIR)
    assert (
        "client 1007 (node 1007): array 'q.lora_A.other.weight' is a second lora_A"
        in (caplog.text)
    )
    assert list(result.arrays) == list(PAIR)


def test_a_reply_of_two_array_records_is_refused_as_by_fedavg():
    app = ClientApp()

    @app.train()
    def train(message, context):
        content = RecordDict({"control": record(PAIR), "arrays": record(PAIR)})
        content["m"] = MetricRecord({"num-examples": 1})
        return Message(content, reply_to=message)

    with pytest.raises(RoundError, match=r"it has .'control', 'arrays'."):
        started(Atlas(**ALONE), app, PAIR)


def test_replies_that_nobody_can_weigh_are_an_error_that_says_so():
    app = ClientApp()

    @app.train()
    def train(message, context):
        content = RecordDict({"arrays": record(PAIR)})
        content["m"] = MetricRecord({"num_examples": 1})
        return Message(content, reply_to=message)

    with pytest.raises(RoundError, match=r"lacks 'num-examples'.*has num_examples"):
        started(Atlas(**ALONE), app, PAIR)


def test_a_refused_reply_leaves_no_alpha_behind():
    strategy = Atlas(**ALONE, lora_alpha=4.0)

    def one_is_broken(sent, number):
        return {
            k: v[:, :1] if number == 1 else v for k, v in moved(sent, number).items()
        }

    told = {1: {"lora-alpha": 99.0}, 2: {"lora-alpha": 8.0}}
    started(strategy, answering(one_is_broken, told), PAIR)
    assert strategy.exchange.alphas == {"1014": 8.0}


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("layers.0.mlp.experts.lora_A.weight", "experts as one parameter"),
        ("layers.0.mlp.experts.base_layer.lora_A.weight", "experts as one parameter"),
        ("layers.0.mlp.input_linear.lora_A.weight", "experts as one parameter"),
        ("self_attention.experts.output_linear.lora_A.weight", "experts as one"),
        ("q.hada_w1_a", "LoHa"),
        ("q.lokr_w1", "LoKr"),
        ("q.lora_magnitude_vector.weight", "DoRA"),
    ],
)
def test_adapters_whose_sum_is_not_exact_are_refused(key, said):
    values = {key: np.ones((2, 2), np.float32)}
    values[key.replace("lora_A", "lora_B")] = np.ones((2, 2), np.float32)
    with pytest.raises(AdapterError, match=said):
        started(Atlas(**ALONE), answering(moved), values)


def test_a_client_that_changed_nothing_waits_for_its_cluster(caplog):
    def but_one(sent, number):
        return sent if number == 1 else moved(sent, number)

    strategy = Atlas(num_clusters=1)
    with caplog.at_level(logging.WARNING):
        started(strategy, answering(but_one), PAIR, nodes=4)
    assert "client 1007 changed nothing" in caplog.text
    assert strategy.clusters.keys() == {"1000", "1014", "1021"}


def test_apps_without_lora_are_clustered_by_what_they_train():
    def apart(sent, number):
        sign = 1 if number % 2 else -1
        return {k: v + sign * np.ones_like(v) for k, v in sent.items()}

    strategy = Atlas(num_clusters=2)
    values = {"ia3_l": np.ones(8, np.float32), "counter": np.array(1)}
    started(strategy, answering(apart), values, nodes=4, rounds=2)
    found = strategy.clusters
    assert found["1000"] == found["1014"] != found["1007"] == found["1021"]


@pytest.mark.parametrize(
    ("method", "argument"),
    [
        (Flora, {"clustering": "kmeans"}),
        (Flora, {"aggregation": "mean"}),
        (FlexLora, {"aggregation": "fold"}),
        (HetLora, {"clustering": "spectral"}),
        (HSplitLora, {"importance": False}),
        (Mira, {"clustering": "kmeans"}),
        (OracleFedAvg, {"clustering": "kmeans"}),
        (SplitLora, {"aggregation": "fold"}),
    ],
)
def test_an_argument_that_a_method_fixes_is_refused(method, argument):
    (name,) = argument
    with pytest.raises(TypeError, match=f"it is {method.__name__} by {name}="):
        method(**argument)


def test_with_few_clients_a_round_the_clusters_are_made_anew_as_more_are_known():
    def of_task(sent, number):
        task = np.random.default_rng(number % 4)
        return {
            k: v + task.normal(size=v.shape).astype(v.dtype) for k, v in sent.items()
        }

    told = []
    strategy = Atlas(
        fraction_train=0.2, num_clusters=4, fraction_evaluate=0.0, on_event=told.append
    )
    started(strategy, answering(of_task), dict(initial_values()), rounds=20, nodes=20)
    known = strategy.clusters
    assert len(known) > 15
    assert len(set(known.values())) == 4
    for client, cluster in known.items():
        task = (int(client) - 1000) // 7 % 4
        same = [c for c in known if (int(c) - 1000) // 7 % 4 == task]
        assert {known[c] for c in same} == {cluster}
    assert told[-1].clusters == known


def initial_values():
    return {key: array.numpy() for key, array in initial().items()}


def test_a_mean_of_factors_is_fedavgs_however_often_clusters_are_made_anew():
    values = {**PAIR, "head": np.zeros(3, np.float32)}
    again = {"num_clusters": 1, "recluster_every": 1, "fraction_evaluate": 0.0}
    strategy = Atlas(aggregation="mean", **again)
    ours, _ = started(strategy, answering(moved), values, rounds=3)
    theirs, _ = started(FedAvg(fraction_evaluate=0.0), answering(moved), values, 3)
    for key in values:
        got, expected = ours.arrays[key].numpy(), theirs.arrays[key].numpy()
        np.testing.assert_allclose(got, expected, rtol=1e-5, err_msg=key)


def test_whole_numbers_alone_are_learned_and_sketched():
    values = {"n": np.array([1, 5])}
    strategy = Atlas(num_clusters=1, fraction_evaluate=0.0)
    ours, _ = started(strategy, answering(moved), values, rounds=3)
    theirs, _ = started(FedAvg(fraction_evaluate=0.0), answering(moved), values, 3)
    np.testing.assert_allclose(ours.arrays["n"].numpy(), theirs.arrays["n"].numpy())


def test_complex_arrays_are_averaged_as_they_are():
    values = {**PAIR, "c": np.array([1 + 2j, 3 - 1j], np.complex64)}
    ours, theirs = (
        started(strategy, answering(moved), values)[0].arrays["c"].numpy()
        for strategy in (Atlas(**ALONE), FedAvg(fraction_evaluate=0.0))
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert ours.dtype == theirs.dtype


def test_that_veras_mean_is_only_near_is_said(caplog):
    values = {"q.vera_lambda_b": np.ones(4, np.float32)}
    started(Atlas(**ALONE), answering(moved), values)
    assert "VeRA is averaged number by number: near, not exact" in caplog.text


@pytest.mark.parametrize("aggregation", ["truncate", "mean"])
def test_who_says_late_that_its_alpha_is_its_own_pulls_nobody(aggregation):
    """What it was sent first was for the common alpha, and it has learned nothing."""

    def number_of(message):
        return int(message.content["config"]["server-round"])

    def intercept(message):
        absent = message.metadata.dst_node_id == 1_007 and number_of(message) == 1
        return "not there yet" if absent else "deliver"

    learned = []
    for rounds in (1, 2):
        trained = []

        def first_alone(sent, number, trained=trained):
            trained.append(number)
            return moved(sent, number) if len(trained) == 1 else sent

        strategy = Atlas(**ALONE, lora_alpha=4.0, aggregation=aggregation)
        app = answering(first_alone, {1: {"lora-alpha": 8.0}})
        with local_grid(app, 2, intercept=intercept) as grid:
            strategy.start(grid, record(PAIR), num_rounds=rounds)
        learned.append(strategy.cluster_states()["0"].factors["q"].delta())
    assert learned[0].any()
    np.testing.assert_allclose(learned[1], learned[0], rtol=1e-4, atol=1e-5)
