"""SecureGrid and secure_mod together: the same means, and nothing else to be seen."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from flwr.app import Array, ArrayRecord, ConfigRecord, MessageType
from flwr.serverapp.strategy import (
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    Krum,
)
from scipy.stats import kstest

from atlas_flwr.client_apps.secure import secure_mod
from atlas_flwr.errors import AtlasError, DataError
from atlas_flwr.grids.delegation import DelegatingGrid
from atlas_flwr.grids.secure import SecureGrid
from atlas_flwr.protocol.sums import SECURE
from atlas_flwr.strategies import (
    Atlas,
    Centralized,
    FlexLora,
    Flora,
    HetLora,
    Local,
    OracleFedAvg,
    Resumable,
    SplitLora,
)
from atlas_flwr.testing import local_grid
from tests.matrix_clients import KEYS, client_app, initial

NODES = [1_000 + 7 * client for client in range(4)]
STRATEGIES = {
    "fedavg": FedAvg,
    "fedprox": lambda: FedProx(proximal_mu=0.1),
    "fedadam": FedAdam,
    "fedavgm": lambda: FedAvgM(server_learning_rate=0.5, server_momentum=0.9),
    "splitlora": SplitLora,
}


class Watched(DelegatingGrid):
    """Keeps what came back from the clients, and may change what goes there."""

    def __init__(self, grid, change=lambda message: None):
        super().__init__(grid)
        self.change = change
        self.replies = []

    def send_and_receive(self, messages, *, timeout=None):
        out = list(messages)
        for message in out:
            self.change(message)
        found = list(self.grid.send_and_receive(out, timeout=timeout))
        self.replies += found
        return found

    def records(self, key):
        good = [reply for reply in self.replies if reply.has_content()]
        return [r.content[key] for r in good if key in r.content]

    def masked(self):
        found = [r for r in self.records(SECURE) if isinstance(r, ArrayRecord)]
        return [record["masked"].numpy() for record in found]


def played(make=FedAvg, rounds=1, intercept=None, mods=(), change=None, secure=True):
    """Play some rounds; return the result and the grid that saw all."""
    mods = [secure_mod, *mods] if secure else [*mods]
    strategy = make()
    with local_grid(client_app(mods=mods), 4, intercept=intercept) as grid:
        watched = Watched(grid, change or (lambda message: None))
        around = SecureGrid(watched, strategy) if secure else watched
        result = strategy.start(around, initial(), num_rounds=rounds)
    return result, watched


def values(result):
    return {key: array.numpy() for key, array in result.arrays.items()}


def is_second_step(message):
    return "public-keys" in message.content.config_records.get(SECURE, {})


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_learns_the_same_with_masks_as_without(name):
    plain, _ = played(STRATEGIES[name], rounds=4, secure=False)
    masked, _ = played(STRATEGIES[name], rounds=4)
    expected, found = values(plain), values(masked)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert np.abs(value - initial()[key].numpy()).max() > 0.1
        assert found[key].dtype == value.dtype
        np.testing.assert_allclose(found[key], value, rtol=2e-5, atol=2e-6)
    for kind in ("train_metrics_clientapp", "evaluate_metrics_clientapp"):
        before, after = getattr(plain, kind), getattr(masked, kind)
        assert before.keys() == after.keys() == {1, 2, 3, 4}
        for server_round, metrics in before.items():
            assert dict(after[server_round]) == pytest.approx(dict(metrics), rel=1e-5)


def test_sums_do_not_depend_on_the_keys():
    """The masks cancel to the last bit, so a run can be repeated."""
    first, second = (values(played(FedAdam, rounds=3)[0]) for _ in range(2))
    for key, value in first.items():
        assert np.array_equal(value, second[key])


def test_one_client_alone_sends_uniform_noise(monkeypatch):
    """What the server gets of zeros. Who draws which key depends on who is first."""
    rng = np.random.default_rng(5)
    seeded = X25519PrivateKey.from_private_bytes
    monkeypatch.setattr(X25519PrivateKey, "generate", lambda: seeded(rng.bytes(32)))
    zeros = ArrayRecord({"w": Array(np.zeros((200, 100), np.float32))})

    def nothing_learned(message, context, call_next):
        reply = call_next(message, context)
        if message.metadata.message_type == MessageType.TRAIN:
            reply.content["arrays"] = zeros
        return reply

    strategy = FedAvg(fraction_evaluate=0.0)
    app = client_app(mods=[secure_mod, nothing_learned])
    with local_grid(app, 4) as grid:
        watched = Watched(grid)
        result = strategy.start(SecureGrid(watched, strategy), zeros, num_rounds=1)
    seen = watched.masked()
    assert len(seen) == 4
    for words in (*seen, seen[0] + seen[1], seen[0] + seen[1] + seen[2]):
        assert kstest(words / 2**64, "uniform").pvalue > 1e-6
        low = (words & np.uint64(0xFFFF)) / 2**16
        assert kstest(low, "uniform").pvalue > 1e-6
    assert not result.arrays["w"].numpy().any()


def test_nothing_but_keys_and_masked_words_leaves_a_client():
    _, watched = played(lambda: FedAvg(fraction_evaluate=0.0), rounds=2)
    assert all(set(reply.content) == {SECURE} for reply in watched.replies)
    told = [r for r in watched.records(SECURE) if isinstance(r, ConfigRecord)]
    assert {key for record in told for key in record} == {"public-key", "metrics"}
    public = [record["public-key"] for record in told]
    assert len(set(public)) == len(public) == 8  # fresh in each round


def test_a_client_sends_as_many_bytes_as_the_documentation_says():
    _, watched = played(lambda: FedAvg(fraction_evaluate=0.0))
    numbers = sum(array.numpy().size for array in initial().values())
    metrics = 1  # the loss, beside the weight
    assert [w.nbytes for w in watched.masked()] == [8 * (numbers + 2 * metrics + 3)] * 4
    told = [r for r in watched.records(SECURE) if isinstance(r, ConfigRecord)]
    assert {len(record["public-key"]) for record in told} == {32}


def test_the_same_update_is_masked_anew_in_each_round():
    def same(message, context, call_next):
        reply = call_next(message, context)
        if message.metadata.message_type == MessageType.TRAIN:
            reply.content["arrays"] = initial()
        return reply

    _, watched = played(lambda: FedAvg(fraction_evaluate=0.0), 2, mods=[same])
    first, second = np.array(watched.masked()).reshape(2, 4, -1)
    assert not (first == second).any()


@pytest.mark.parametrize("verdict", ["drop", "out of memory"])
def test_a_client_that_fails_in_training_is_left_out(verdict):
    def lose(message):
        train = message.metadata.message_type == MessageType.TRAIN
        return verdict if train and message.metadata.dst_node_id == NODES[2] else ""

    def verdict_of(message):
        return lose(message) or "deliver"

    plain, _ = played(intercept=verdict_of, secure=False)
    masked, _ = played(intercept=verdict_of)
    for key, value in values(plain).items():
        np.testing.assert_allclose(values(masked)[key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("verdict", ["drop", "gone"])
def test_a_client_lost_between_key_and_update_spoils_that_round_alone(verdict, caplog):
    lost = []

    def intercept(message):
        odd = is_second_step(message) and message.metadata.dst_node_id == NODES[1]
        if odd and not lost:
            lost.append(message)
            return verdict
        return "deliver"

    caplog.set_level("INFO", logger="flwr")
    once, _ = played(rounds=1, intercept=intercept)
    assert values(once) == {}  # nothing was aggregated
    assert "1 of 4 clients gave a key and no masked update" in caplog.text
    assert "noise" in caplog.text
    assert f"node {NODES[1]}: " in caplog.text
    assert "Received 0 results and 4 failures" in caplog.text
    lost.clear()
    twice, _ = played(rounds=2, intercept=intercept)
    right, _ = played(rounds=1, secure=False)
    for key, value in values(right).items():
        np.testing.assert_allclose(values(twice)[key], value, rtol=1e-5, atol=1e-6)


def bad(what):
    """Let client 3 bring something that cannot be summed."""

    def mod(message, context, call_next):
        reply = call_next(message, context)
        if context.node_config["partition-id"] != 3:
            return reply
        if message.metadata.message_type != MessageType.TRAIN:
            return reply
        arrays = reply.content["arrays"]
        value = arrays[KEYS[0]].numpy().copy()
        value[0, 0] = {"NaN": math.nan, "range": 1e9}.get(what, 0.0)
        arrays[KEYS[0]] = Array(value.T.copy() if what == "shape" else value)
        return reply

    return mod


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("NaN", "NaN or infinity, which would spoil the whole sum"),
        ("range", "too large to be summed over 4 clients.*fraction_bits=27 would do"),
        ("shape", r"sent \(2, 5\), came back \(5, 2\)"),
    ],
)
def test_what_cannot_be_summed_is_told_by_its_client_and_left_out(what, told, caplog):
    caplog.set_level("INFO", logger="flwr")
    found, _ = played(mods=[bad(what)])
    assert re.search(f"node {NODES[3]}: DataError.*{told}", caplog.text)

    def without(message):
        train = message.metadata.message_type == MessageType.TRAIN
        return "x" if train and message.metadata.dst_node_id == NODES[3] else "deliver"

    plain, _ = played(intercept=without, secure=False)
    for key, value in values(plain).items():
        np.testing.assert_allclose(values(found)[key], value, rtol=1e-5, atol=1e-6)


def test_a_single_client_is_not_summed(caplog):
    def intercept(message):
        return "deliver" if message.metadata.dst_node_id == NODES[0] else "gone"

    caplog.set_level("INFO", logger="flwr")
    found, watched = played(intercept=intercept)
    assert values(found) == {}
    assert watched.masked() == []
    assert "no more than 1 of the clients trained" in caplog.text
    assert "Received error in reply from node 1007: gone" in caplog.text


def test_a_client_masks_an_update_once():
    """A second sum of the same update, over another group, would be a difference."""
    with local_grid(client_app(mods=[secure_mod]), 4) as grid:
        strategy = FedAvg(fraction_evaluate=0.0)
        strategy.start(SecureGrid(grid, strategy), initial(), num_rounds=1)
        again = [message for message in grid.sent if is_second_step(message)]
        replies = list(grid.send_and_receive(again))
    assert len(replies) == 4
    assert all("masked once" in reply.error.reason for reply in replies)


def other_key(nodes, keys):
    return nodes, [bytes(31) + b"\x07", *keys[1:]]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (lambda nodes, keys: (nodes[:1], keys[:1]), "a group of 1 clients"),
        (lambda nodes, keys: (nodes[1:], keys[1:]), "this client among them"),
        (lambda nodes, keys: (nodes + nodes, keys + keys), "each named once"),
        (other_key, "the key that it sent"),
    ],
)
def test_a_group_that_is_none_is_refused_by_the_client(changed, told, caplog):
    def change(message):
        if is_second_step(message) and message.metadata.dst_node_id == NODES[0]:
            record = message.content[SECURE]
            pairs = sorted(zip(record["nodes"], record["public-keys"], strict=True))
            nodes, keys = changed(*map(list, zip(*pairs, strict=True)))
            message.content[SECURE] = ConfigRecord(
                {"nodes": nodes, "public-keys": keys}
            )

    caplog.set_level("INFO", logger="flwr")
    played(change=change)
    assert told in caplog.text


def test_clients_that_are_told_of_unlike_groups_send_noise_that_is_noticed(caplog):
    def change(message):
        if is_second_step(message) and message.metadata.dst_node_id == NODES[0]:
            record = message.content[SECURE]
            keep = [i for i, n in enumerate(record["nodes"]) if n != str(NODES[3])]
            picked = {key: [record[key][i] for i in keep] for key in record}
            message.content[SECURE] = ConfigRecord(picked)

    caplog.set_level("INFO", logger="flwr")
    found, _ = played(change=change)
    assert "did not mask for the same group" in caplog.text
    assert values(found) == {}


def test_a_client_sends_nothing_in_plain(caplog):
    strategy = FedAvg(fraction_evaluate=0.0)
    caplog.set_level("INFO", logger="flwr")
    with local_grid(client_app(mods=[secure_mod]), 2) as grid:
        result = strategy.start(grid, initial(), num_rounds=1)
    assert "SecureGrid(grid, strategy)" in caplog.text
    assert values(result) == {}


def test_clients_that_do_not_mask_end_the_run():
    strategy = FedAvg(fraction_evaluate=0.0)
    with (
        local_grid(client_app(), 2) as grid,
        pytest.raises(AtlasError, match=r"in plain.*mods=\[secure_mod\]"),
    ):
        strategy.start(SecureGrid(grid, strategy), initial(), num_rounds=1)


def test_unlike_metrics_are_told(caplog):
    def one_more(message, context, call_next):
        reply = call_next(message, context)
        if context.node_config["partition-id"] == 2:
            reply.content["metrics"]["extra"] = 1.0
        return reply

    caplog.set_level("INFO", logger="flwr")
    played(lambda: FedAvg(fraction_evaluate=0.0), mods=[one_more])
    assert "all must have the same" in caplog.text


def test_unlike_arrays_are_refused():
    class Unlike(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            messages = super().configure_train(server_round, arrays, config, grid)
            for message in list(messages)[1:]:
                record = message.content.copy()
                record["arrays"] = initial(rank=3)
                message.content = record
            return messages

    with pytest.raises(AtlasError, match=r"sent other arrays.*at one rank"):
        played(Unlike)


@pytest.mark.parametrize(
    ("strategy", "told"),
    [
        (Atlas(), "Atlas cannot be given sums alone.* SecureAtlas takes"),
        (Flora(), "Flora .* stacks the clients' factors"),
        (FlexLora(), r"FlexLora .* products B A"),
        (HetLora(), "HetLora .* norm of its product"),
        (OracleFedAvg(), "OracleFedAvg cannot"),
        (Local(), "Local .* adapters of its own"),
        (Centralized(), "Centralized .* one client"),
        (SplitLora(interval=2), "SplitLora .* between aggregations"),
        (FedMedian(), "FedMedian .* not known to be a weighted mean.*averages=True"),
        (Krum(), "Krum .* not known"),
    ],
)
def test_strategies_that_need_single_replies_are_refused_by_name(strategy, told):
    with pytest.raises(AtlasError, match=told):
        SecureGrid(None, strategy)
    around = Resumable(strategy, on_round_end=lambda number, arrays: None)
    with pytest.raises(AtlasError, match=told):
        SecureGrid(None, around)


def test_ones_word_is_taken_for_a_strategy_of_ones_own_but_not_for_atlas():
    class Mine(FedAvg):
        def aggregate_train(self, server_round, replies):
            return super().aggregate_train(server_round, replies)

    with pytest.raises(AtlasError, match="averages=True"):
        SecureGrid(None, Mine())
    SecureGrid(None, Mine(), averages=True)
    with pytest.raises(AtlasError, match="each cluster"):
        SecureGrid(None, Atlas(), averages=True)


def test_impossible_bits_are_refused():
    with pytest.raises(DataError, match="1 to 52"):
        SecureGrid(None, FedAvg(), fraction_bits=64)
