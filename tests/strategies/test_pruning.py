"""HetLoRA's clients that prune their ranks, against a loop in dense float64."""

from __future__ import annotations

import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message
from flwr.clientapp import ClientApp

from atlas_flwr.strategies import HetLora
from atlas_flwr.testing import local_grid
from tests.matrix_clients import M, N
from tests.strategies.test_published import (
    A_KEY,
    ALPHA,
    B_KEY,
    CLIENTS,
    RANKS,
    close,
    initial,
    moves,
    plain_app,
    settings,
)

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
