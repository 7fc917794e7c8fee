"""Atlas over many rounds: what it sends, and what it says of what it does not send."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import MessageType

from atlas_flwr.protocol.profile import Assigned
from atlas_flwr.report.events import SumsSent
from atlas_flwr.strategies import Atlas
from atlas_flwr.testing import local_grid
from tests.strategies.test_published import (
    CLIENTS,
    FOLDED,
    folded,
    initial,
    learned,
    live,
    p,
    plain_app,
    settings,
)

ROUNDS = 12


def one_each(profile, importance):
    return Assigned(1)


def played(**more):
    """Run clients of rank 1; return what they were sent, the result and the events."""
    seen, events = {}, []
    strategy = Atlas(
        **settings(
            assign=one_each,
            fingerprints="gradients",
            clustering="none",
            aggregation="both",
            on_event=events.append,
            **more,
        )
    )
    with local_grid(plain_app(seen), CLIENTS) as grid:
        result = strategy.start(grid, initial()[0], num_rounds=ROUNDS)
        sizes = [
            sum(a.numpy().nbytes for a in m.content["arrays"].values())
            for m in grid.sent
            if m.metadata.message_type == MessageType.TRAIN
        ]
    told = [event for event in events if isinstance(event, SumsSent)]
    return seen, strategy, result, told, sizes


def test_late_rounds_send_the_bytes_of_the_third_and_by_flat_false_more():
    *_, flat = played()
    *_, growing = played(flat=False)
    third = slice(2 * CLIENTS, 3 * CLIENTS)
    assert sum(flat[-CLIENTS:]) <= sum(flat[third])
    assert sum(growing[-CLIENTS:]) > 1.2 * sum(flat[-CLIENTS:])


def test_the_sum_is_that_of_all_training_and_what_is_not_sent_is_told():
    seen, strategy, result, told, _ = played()
    W = 0
    for number in range(1, ROUNDS + 1):
        got = [seen[number, k] for k in range(CLIENTS)]
        W = W + sum(
            w * (learned(sent, k, number) - live(sent))
            for k, (w, sent) in enumerate(zip(p(), got, strict=True))
        )
    held = strategy.cluster_states()["0"]
    sent = held.factors["model.q"].delta().numpy()
    whole = sent + held.rest["model.q"].numpy()
    np.testing.assert_allclose(whole, W, rtol=1e-4, atol=1e-5 * np.abs(W).max())
    share = np.linalg.norm(W - sent) / np.linalg.norm(W)
    assert told[-1].round == ROUNDS
    assert told[-1].held_back == pytest.approx(share, rel=0.05)
    metrics = result.train_metrics_clientapp[ROUNDS]
    assert metrics["held-back"] == told[-1].held_back > 0


def test_all_clients_of_a_round_compute_with_one_and_the_same_sum():
    seen, *_ = played()
    for number in (3, ROUNDS):
        sums = [live(seen[number, k]) + folded(seen[number, k]) for k in range(CLIENTS)]
        assert FOLDED[0] in seen[number, 0]
        for other in sums[1:]:
            np.testing.assert_allclose(sums[0], other, rtol=1e-4, atol=1e-4)


def test_what_is_all_sent_has_nothing_to_tell():
    _, strategy, result, told, _ = played(flat=False)
    assert not told
    assert not strategy.cluster_states()["0"].rest
    assert "held-back" not in result.train_metrics_clientapp[ROUNDS]
