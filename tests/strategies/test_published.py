"""Published methods against loops of them written by hand, in dense float64."""

from __future__ import annotations

import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from atlas_flwr.strategies import (
    FlexLora,
    Flora,
    HetLora,
    Mira,
    OracleFedAvg,
    Roster,
    SplitLora,
)
from atlas_flwr.strategies.mixing import Mixing
from atlas_flwr.strategies.roster import Assigned, Profile
from atlas_flwr.testing import local_grid
from tests.strategies.conftest import M, N

RANKS, EXAMPLES = (1, 3, 4), (10, 30, 20)
CLIENTS, ROUNDS, ALPHA = len(RANKS), 3, 4.0
A_KEY, B_KEY = "model.q.lora_A.weight", "model.q.lora_B.weight"
FOLDED = "model.q.folded_A.weight", "model.q.folded_B.weight"


def moves(client, number, rank):
    """What a client's training adds to its factors in a round."""
    rng = np.random.default_rng(100 * client + number)
    return 0.3 * rng.normal(size=(rank, N)), 0.3 * rng.normal(size=(M, rank))


def plain_app(seen) -> ClientApp:
    app = ClientApp()

    @app.query("describe")
    def describe(message: Message, context) -> Message:
        index = int(context.node_config["partition-id"])
        profile = Profile(str(index), None, "odd" if index % 2 else "even")
        content = RecordDict({"profile": profile.to_record()})
        return Message(content, reply_to=message)

    @app.query("fingerprint")
    def fingerprint(message: Message, context) -> Message:
        index = int(context.node_config["partition-id"])
        sketch = Array(np.eye(CLIENTS, dtype=np.float32)[index] + 0.1)
        content = RecordDict({"fingerprint": ArrayRecord({"sketch": sketch})})
        return Message(content, reply_to=message)

    @app.train()
    def train(message: Message, context) -> Message:
        client = int(context.node_config["partition-id"])
        number = int(message.content["config"]["server-round"])
        got = {k: a.numpy().astype(float) for k, a in message.content["arrays"].items()}
        seen[number, client] = got
        dA, dB = moves(client, number, got[A_KEY].shape[0])
        new = {A_KEY: got[A_KEY] + dA, B_KEY: got[B_KEY] + dB}
        arrays = ArrayRecord({k: Array(v.astype(np.float32)) for k, v in new.items()})
        metrics = MetricRecord({"num-examples": EXAMPLES[client]})
        content = RecordDict({"arrays": arrays, "metrics": metrics})
        return Message(content, reply_to=message)

    return app


def initial(rank=4):
    A = np.random.default_rng(0).normal(size=(rank, N)).astype(np.float32)
    B = np.zeros((M, rank), np.float32)
    return ArrayRecord({A_KEY: Array(A), B_KEY: Array(B)}), A.astype(float)


def play(strategy, rounds=ROUNDS):
    """Run it; return what every client was sent in every round."""
    seen: dict[tuple[int, int], dict[str, np.ndarray]] = {}
    with local_grid(plain_app(seen), CLIENTS) as grid:
        strategy.start(grid, initial()[0], num_rounds=rounds)
    return seen


def by_rank(profile, importance):
    return Assigned(RANKS[int(profile.client)])


def settings(**more):
    ranked = {"assign": by_rank, "lora_alpha": ALPHA, "roster": Roster()}
    return {**ranked, "fraction_evaluate": 0.0, **more}


def live(sent):
    return ALPHA / sent[A_KEY].shape[0] * sent[B_KEY] @ sent[A_KEY]


def folded(sent):
    return sent[FOLDED[1]] @ sent[FOLDED[0]] if FOLDED[0] in sent else np.zeros((M, N))


def p():
    return np.array(EXAMPLES) / sum(EXAMPLES)


def learned(sent, client, number):
    dA, dB = moves(client, number, sent[A_KEY].shape[0])
    scale = ALPHA / sent[A_KEY].shape[0]
    return scale * (sent[B_KEY] + dB) @ (sent[A_KEY] + dA)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_flora_adds_the_stacked_product_to_the_weights_and_begins_anew():
    strategy = Flora(**settings())
    seen, W = play(strategy), np.zeros((M, N))
    for number in range(1, ROUNDS + 1):
        for client, rank in enumerate(RANKS):
            sent = seen[number, client]
            close(folded(sent), W)
            assert sent[A_KEY].shape == (rank, N)
            assert not sent[B_KEY].any()
        W = W + sum(w * learned(seen[number, k], k, number) for k, w in enumerate(p()))
    close(strategy.cluster_states()["0"].factors["model.q"].delta().numpy(), W)


def test_flexlora_cuts_the_dense_sum_by_svd():
    seen = play(FlexLora(**settings()))
    for number in range(1, ROUNDS):
        W = sum(w * learned(seen[number, k], k, number) for k, w in enumerate(p()))
        U, S, Vt = np.linalg.svd(W)
        for client, rank in enumerate(RANKS):
            sent = seen[number + 1, client]
            close(live(sent), U[:, :rank] * S[:rank] @ Vt[:rank])
            assert FOLDED[0] not in sent


def test_hetlora_pads_weighs_by_norm_averages_and_slices():
    seen, (_, A) = play(HetLora(**settings())), initial()
    B = np.zeros((M, 4))
    scale = ALPHA / 4  # the products' scale is carried by B
    for number in range(1, ROUNDS + 1):
        padded_A, padded_B, norms = [], [], []
        for client, rank in enumerate(RANKS):
            sent = seen[number, client]
            close(sent[A_KEY], A[:rank])
            close(ALPHA / rank * sent[B_KEY], scale * B[:, :rank])
            dA, dB = moves(client, number, rank)
            newA, newB = sent[A_KEY] + dA, sent[B_KEY] + dB
            norms.append(np.linalg.norm(ALPHA / rank * newB @ newA))
            padded_A.append(np.pad(newA, ((0, 4 - rank), (0, 0))))
            padded_B.append(np.pad(newB, ((0, 0), (0, 4 - rank))))
        weights = np.array(norms) / sum(norms)
        A = np.tensordot(weights, padded_A, 1)
        B = np.tensordot(weights, padded_B, 1)
        scale = float(weights @ (ALPHA / np.array(RANKS)))


DECAY = 0.6
# Of every round and client: whether the last directions shrink in training.
SHRINK = {(2, 1), (2, 2), (3, 2), (4, 1)}


def shrunken(sent, client, number):
    """Train and prune as HetLoRA's clients do; return the factors that are kept."""
    rank = sent[A_KEY].shape[0]
    k = max(1, int(DECAY * rank))
    dA, dB = moves(client, number, rank)
    A, B = sent[A_KEY] + dA, sent[B_KEY] + dB
    if (number, client) in SHRINK:
        A[k:], B[:, k:] = 0.1 * sent[A_KEY][k:], 0.1 * sent[B_KEY][:, k:]
    norms = [
        np.linalg.norm(b[:, k:]) * np.linalg.norm(a[k:])
        for a, b in ((sent[A_KEY], sent[B_KEY]), (A, B))
    ]
    if norms[1] < norms[0]:
        # The scale alpha / r grows with the pruning: B takes up the difference.
        A, B = A[:k], B[:, :k] * k / rank
    return A, B


def pruning_app(seen) -> ClientApp:
    app, told = plain_app(seen), ClientApp()

    @told.query("describe")
    def describe(message: Message, context) -> Message:
        return app(message, context)

    @told.query("fingerprint")
    def fingerprint(message: Message, context) -> Message:
        return app(message, context)

    @told.train()
    def train(message: Message, context) -> Message:
        reply = app(message, context)
        client = int(context.node_config["partition-id"])
        number = int(message.content["config"]["server-round"])
        pair = shrunken(seen[number, client], client, number)
        reply.content["arrays"] = ArrayRecord(
            {
                key: Array(value.astype(np.float32))
                for key, value in zip((A_KEY, B_KEY), pair, strict=True)
            }
        )
        return reply

    return told


def play_pruning(strategy, rounds, arrays=None):
    seen: dict[tuple[int, int], dict[str, np.ndarray]] = {}
    with local_grid(pruning_app(seen), CLIENTS) as grid:
        strategy.start(grid, arrays or initial()[0], num_rounds=rounds)
    return seen


def test_hetloras_clients_prune_their_ranks_for_good():
    seen = play_pruning(HetLora(**settings(rank_decay=DECAY)), rounds=5)
    (_, A), ranks = initial(), list(RANKS)
    B, scale = np.zeros((M, 4)), ALPHA / 4
    history = []
    for number in range(1, 6):
        history.append(tuple(ranks))
        kept = []
        for client, rank in enumerate(ranks):
            sent = seen[number, client]
            assert sent[A_KEY].shape == (rank, N)
            close(sent[A_KEY], A[:rank])
            close(ALPHA / rank * sent[B_KEY], scale * B[:, :rank])
            kept.append(shrunken(sent, client, number))
        ranks = [len(a) for a, _ in kept]
        widest = max(ranks)
        norms = [
            np.linalg.norm(ALPHA / r * b @ a)
            for (a, b), r in zip(kept, ranks, strict=True)
        ]
        weights = np.array(norms) / sum(norms)
        A, B = np.zeros((widest, N)), np.zeros((M, widest))
        for weight, (a, b), r in zip(weights, kept, ranks, strict=True):
            A[:r] += weight * a
            B[:, :r] += weight * b
        scale = float(weights @ (ALPHA / np.array(ranks)))
    assert history == [(1, 3, 4), (1, 3, 4), (1, 1, 2), (1, 1, 1), (1, 1, 1)]


def test_what_clients_have_pruned_outlives_a_resumption():
    straight = play_pruning(HetLora(**settings(rank_decay=DECAY)), rounds=3)
    first = HetLora(**settings(rank_decay=DECAY))
    play_pruning(first, rounds=2)
    arrays, values = first.state()
    again = HetLora(**settings(rank_decay=DECAY))
    again.restore(arrays, json.loads(json.dumps(values)))
    # A new start counts rounds from 1: only the ranks that are sent are compared.
    sent = play_pruning(again, rounds=1)
    for client in range(CLIENTS):
        assert np.array_equal(sent[1, client][A_KEY], straight[3, client][A_KEY])
        assert np.array_equal(sent[1, client][B_KEY], straight[3, client][B_KEY])


def test_a_rank_that_no_pruning_leaves_is_refused():
    # Its client prunes 4 directions to 2: the server knows of 3 alone.
    seen = play_pruning(HetLora(**settings(rank_decay=0.9)), rounds=3)
    assert [seen[3, k][A_KEY].shape[0] for k in range(CLIENTS)] == list(RANKS)


def test_a_client_of_a_strategy_without_pruning_must_keep_its_rank():
    seen = play_pruning(HetLora(**settings()), rounds=3)
    assert [seen[3, k][A_KEY].shape[0] for k in range(CLIENTS)] == list(RANKS)


@pytest.mark.parametrize("decay", [0.0, 1.1])
def test_an_impossible_decay_is_refused(decay):
    with pytest.raises(ValueError, match="above 0, at most 1"):
        HetLora(rank_decay=decay)


def test_sketches_of_updates_do_not_go_with_pruning():
    with pytest.raises(ValueError, match="factors of one rank"):
        HetLora(fingerprints="updates", rank_decay=0.5)


@pytest.mark.parametrize("interval", [1, 2])
def test_splitlora_averages_the_factors_every_interval_and_not_between(interval):
    same = {"assign": lambda profile, importance: Assigned(3)}
    seen = play(SplitLora(**settings(interval=interval, **same)), rounds=4)
    own = {k: (initial()[1][:3], np.zeros((M, 3))) for k in range(CLIENTS)}
    for number in range(1, 5):
        for client in range(CLIENTS):
            sent, (A, B) = seen[number, client], own[client]
            close(sent[B_KEY] @ sent[A_KEY], B @ A)
            dA, dB = moves(client, number, 3)
            own[client] = sent[A_KEY] + dA, sent[B_KEY] + dB
        if number % interval == 0:
            A = sum(w * own[k][0] for k, w in enumerate(p()))
            B = sum(w * own[k][1] for k, w in enumerate(p()))
            own = dict.fromkeys(range(CLIENTS), (A, B))


def similarity(graph, k, j):
    return graph.get((str(k), str(j)), graph.get((str(j), str(k)), 0.0))


def test_mira_moves_every_client_towards_its_neighbours():
    graph = {("0", "1"): 1.0, ("0", "2"): 0.5, ("1", "2"): 0.0}
    eta = 0.6 / 1.5  # strength over the largest degree
    seen = play(Mira(**settings(mixing=Mixing(0.6, graph=graph))))
    for number in range(1, ROUNDS):
        moved = [
            learned(seen[number, k], k, number) + folded(seen[number, k])
            for k in range(CLIENTS)
        ]
        for k in range(CLIENTS):
            near = {j: similarity(graph, k, j) for j in range(CLIENTS)}
            wanted = moved[k] - eta * sum(
                a * (moved[k] - moved[j]) for j, a in near.items()
            )
            close(live(seen[number + 1, k]) + folded(seen[number + 1, k]), wanted)


def test_mira_takes_its_graph_from_fingerprints_and_without_strength_is_local():
    seen = play(Mira(**settings(mixing=Mixing(0.0))), rounds=2)
    for k in range(CLIENTS):
        own = learned(seen[1, k], k, 1)
        close(live(seen[2, k]) + folded(seen[2, k]), own)
    # Sketches are equally far apart: everyone gets as much of each of the others.
    seen = play(Mira(**settings(mixing=Mixing(0.5))), rounds=2)
    moved = [learned(seen[1, k], k, 1) for k in range(CLIENTS)]
    others = moved[1] + moved[2]
    close(live(seen[2, 0]) + folded(seen[2, 0]), 0.5 * moved[0] + 0.25 * others)


def test_the_oracle_averages_among_those_of_one_true_task():
    same = {"assign": lambda profile, importance: Assigned(3)}
    strategy = OracleFedAvg(**settings(**same))
    seen = play(strategy, rounds=2)
    assert strategy.clusters == {"0": 0, "1": 1, "2": 0}
    first = [tuple(seen[1, k][key] for key in (A_KEY, B_KEY)) for k in range(CLIENTS)]
    after = [
        tuple(x + d for x, d in zip(first[k], moves(k, 1, 3), strict=True))
        for k in range(CLIENTS)
    ]
    weights = {0: 10 / 30, 2: 20 / 30}
    A = sum(w * after[k][0] for k, w in weights.items())
    close(seen[2, 0][A_KEY], A)
    close(seen[2, 1][A_KEY], after[1][0])


def test_an_impossible_interval_is_refused():
    with pytest.raises(ValueError, match="at least 1 round"):
        SplitLora(interval=0)


def test_clients_of_unlike_alphas_are_added_by_their_products_and_get_their_own_scale():
    alphas = (1.0, 4.0, 16.0)
    seen: dict[tuple[int, int], dict[str, np.ndarray]] = {}
    app, told = plain_app(seen), ClientApp()

    @told.train()
    def train(message: Message, context) -> Message:
        reply = app(message, context)
        client = int(context.node_config["partition-id"])
        reply.content["metrics"]["lora-alpha"] = alphas[client]
        return reply

    strategy = FlexLora(**settings(roster=None))
    strategy.census.assignments.rule = lambda profile, importance: Assigned(3)
    with local_grid(told, CLIENTS) as grid:
        strategy.start(grid, initial()[0], num_rounds=2)

    def product(sent, client, d=(0.0, 0.0)):
        return alphas[client] / 3 * (sent[B_KEY] + d[1]) @ (sent[A_KEY] + d[0])

    first = [product(seen[1, k], k, moves(k, 1, 3)) for k in range(CLIENTS)]
    U, S, Vt = np.linalg.svd(sum(w * x for w, x in zip(p(), first, strict=True)))
    for k in range(CLIENTS):
        close(product(seen[2, k], k), U[:, :3] * S[:3] @ Vt[:3])
