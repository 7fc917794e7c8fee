"""Published methods against loops of them written by hand, in dense float64."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from atlas_flwr.aggregation.mixing import Mixing
from atlas_flwr.protocol.profile import Assigned, Profile
from atlas_flwr.strategies import (
    FlexLora,
    Flora,
    HetLora,
    HSplitLora,
    Mira,
    OracleFedAvg,
    Roster,
    SplitLora,
)
from atlas_flwr.testing import local_grid
from tests.matrix_clients import M, N

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


IMPORTANT = "model.q", "model.v"
SHAPES = {"model.q": (M, N), "model.v": (4 * M, 3 * N)}
# Sum of abs(W dL/dW). All but the first client see more in v, which costs more a rank.
SENSED = ({"q": 1.0, "v": 9.0}, {"q": 6.0, "v": 7.0}, {"q": 5.0, "v": 6.0})
BUDGETS = (2, 0), (3, 1), (4, 2)  # ranks of the more important layer, of the other


def two_layer_moves(client, number, layer, rank):
    rng = np.random.default_rng([client, number, IMPORTANT.index(layer)])
    m, n = SHAPES[layer]
    return 0.3 * rng.normal(size=(rank, n)), 0.3 * rng.normal(size=(m, rank))


def two_layer_app(seen) -> ClientApp:
    app, plain = ClientApp(), plain_app({})

    @app.query("describe")
    def describe(message: Message, context) -> Message:
        return plain(message, context)

    @app.query("fingerprint")
    def fingerprint(message: Message, context) -> Message:
        reply = plain(message, context)
        assert message.content["config"]["importance"]
        found = SENSED[int(context.node_config["partition-id"])]
        told = {f"model.{name}": value for name, value in found.items()}
        examples = EXAMPLES[int(context.node_config["partition-id"])]
        told["num-examples"] = float(examples)
        reply.content["importance"] = MetricRecord(told)
        return reply

    @app.train()
    def train(message: Message, context) -> Message:
        client = int(context.node_config["partition-id"])
        number = int(message.content["config"]["server-round"])
        got = {k: a.numpy().astype(float) for k, a in message.content["arrays"].items()}
        seen[number, client], new = got, {}
        for key in (k for k in got if "lora_A" in k):
            layer, pair = key.partition(".lora_")[0], key.replace("lora_A", "lora_B")
            dA, dB = two_layer_moves(client, number, layer, len(got[key]))
            new |= {key: got[key] + dA, pair: got[pair] + dB}
        arrays = ArrayRecord({k: Array(v.astype(np.float32)) for k, v in new.items()})
        metrics = MetricRecord({"num-examples": EXAMPLES[client]})
        content = RecordDict({"arrays": arrays, "metrics": metrics})
        return Message(content, reply_to=message)

    return app


def test_hsplitlora_ranks_by_importance_and_adds_each_layer_over_those_who_have_it():
    told, seen = [], {}

    def by_importance(profile, importance):
        told.append(importance)
        first, second = sorted(importance, key=importance.get, reverse=True)
        ranks = BUDGETS[int(profile.client)]
        return Assigned(dict(zip((first, second), ranks, strict=True)))

    start = {}
    for layer, (m, n) in SHAPES.items():
        rng = np.random.default_rng(IMPORTANT.index(layer))
        A, B = rng.normal(size=(4, n)), np.zeros((m, 4))
        for factor, value in (("A", A), ("B", B)):
            start[f"{layer}.lora_{factor}.weight"] = Array(value.astype(np.float32))
    strategy = HSplitLora(**settings(assign=by_importance))
    with local_grid(two_layer_app(seen), CLIENTS) as grid:
        strategy.start(grid, ArrayRecord(start), num_rounds=ROUNDS)

    # A rank of layer W takes d_in + d_out parameters.
    costs = {layer: sum(shape) for layer, shape in SHAPES.items()}
    wanted = dict.fromkeys(IMPORTANT, 0.0)
    for sensed, examples in zip(SENSED, EXAMPLES, strict=True):
        each = {w: sensed[w.removeprefix("model.")] / costs[w] for w in IMPORTANT}
        for layer in IMPORTANT:
            share = each[layer] / sum(each.values())
            wanted[layer] += share * examples / sum(EXAMPLES)
    assert len(told) == CLIENTS
    assert all(found == pytest.approx(wanted) for found in told)
    assert wanted["model.q"] > wanted["model.v"]  # by their cost, and the cluster's

    W = {layer: np.zeros(shape) for layer, shape in SHAPES.items()}
    for number in range(1, ROUNDS + 1):
        for place, layer in enumerate(IMPORTANT):
            ranks = [budget[place] for budget in BUDGETS]
            have = [k for k in range(CLIENTS) if ranks[k]]
            share = {k: EXAMPLES[k] / sum(EXAMPLES[j] for j in have) for k in have}
            added = np.zeros(SHAPES[layer])
            for client, rank in enumerate(ranks):
                sent = seen[number, client]
                names = (f"{layer}.folded_{factor}.weight" for factor in "BA")
                held = [sent[name] for name in names if name in sent]
                close(held[0] @ held[1] if held else np.zeros(SHAPES[layer]), W[layer])
                if not rank:
                    assert f"{layer}.lora_A.weight" not in sent
                    continue
                A, B = (sent[f"{layer}.lora_{factor}.weight"] for factor in "AB")
                assert A.shape[0] == rank
                assert not B.any()
                dA, dB = two_layer_moves(client, number, layer, rank)
                added += share[client] * ALPHA / rank * (B + dB) @ (A + dA)
            W[layer] = W[layer] + added
    held = strategy.cluster_states()["0"].factors
    for layer in IMPORTANT:
        close(held[layer].delta().numpy(), W[layer])
    second, third = (seen[number, 2]["model.q.lora_A.weight"] for number in (2, 3))
    assert not np.allclose(second, third)  # a fresh adapter each round


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


def test_a_resumed_oracle_knows_each_tasks_adapters_whoever_answers_first():
    def made(order):
        found = OracleFedAvg(roster=Roster(), lora_alpha=ALPHA)
        found.roster.profiles.update(
            {10 + k: Profile(str(k), None, "odd" if k % 2 else "even") for k in order}
        )
        found.adapters.begin(initial()[0])
        return found

    before, after = made((0, 1, 2)), made((1, 2, 0))
    numbers = dict(before.clusters)
    after.restore(*before.state())
    assert after.clusters == numbers == {"0": 0, "1": 1, "2": 0}


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
    strategy.planner.assignments.rule = lambda profile, importance: Assigned(3)
    with local_grid(told, CLIENTS) as grid:
        strategy.start(grid, initial()[0], num_rounds=2)

    def product(sent, client, d=(0.0, 0.0)):
        return alphas[client] / 3 * (sent[B_KEY] + d[1]) @ (sent[A_KEY] + d[0])

    first = [product(seen[1, k], k, moves(k, 1, 3)) for k in range(CLIENTS)]
    U, S, Vt = np.linalg.svd(sum(w * x for w, x in zip(p(), first, strict=True)))
    for k in range(CLIENTS):
        close(product(seen[2, k], k), U[:, :3] * S[:3] @ Vt[:3])
