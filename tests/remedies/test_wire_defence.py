# SPDX-License-Identifier: Apache-2.0
"""A run's defence stands before everything that a client sends, and nowhere else."""

from __future__ import annotations

import json

import pytest
import torch

from atlas_flwr.cli.command import run_words
from atlas_flwr.config import load_config
from atlas_flwr.errors import CacheLost, ConfigError
from atlas_flwr.privacy import parse_defence
from atlas_flwr.privacy.defended import DefendedTrunk
from atlas_flwr.remedies import client_hooks
from atlas_flwr.split import SplitPlan, partition
from atlas_flwr.split.split_cache import SplitCache
from atlas_flwr.trunk.passing import PassingTrunk
from atlas_flwr.types import MOST_IN_FLIGHT, TrunkCall
from tests.families import build
from tests.read_keys import read_by
from tests.remedies.test_chain import now
from tests.runs_on_devices import ATLAS, losses


class Sent(PassingTrunk):
    """Remembers what came; answers with it."""

    def __init__(self):
        super().__init__(self)
        self.came = []

    def forward(self, call):
        self.came.append(call.hidden)
        return call.hidden

    def backward(self, step, grad):
        self.came.append(grad)
        return grad

    def leaving(self, hidden, mask):
        return hidden

    def extend(self, call, place, keep=0):
        self.came.append(call.hidden)
        if place.turn:
            raise CacheLost("again")
        return call.hidden[:, -keep:]


def defended(text):
    sent = Sent()
    return sent, DefendedTrunk(sent, parse_defence(text), torch.Generator())


@pytest.mark.parametrize("text", ["gaussian:0.5", "laplace:0.5", "topk:0.25"])
def test_real_positions_are_changed_both_ways_and_padding_is_not(text):
    sent, trunk = defended(text)
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    hidden = torch.randn(2, 4, 8) * mask[..., None]
    grad = torch.randn(2, 4, 8) * mask[..., None]
    kept = hidden.clone(), grad.clone()
    trunk.forward(TrunkCall(hidden, mask, step=0))
    trunk.backward(0, grad)
    for before, came in zip((hidden, grad), sent.came, strict=True):
        assert not came[0, 0].any()
        assert ((came != before).any(-1) == mask.bool()).all()
    assert torch.equal(hidden, kept[0])  # the client's own stay what they were
    assert torch.equal(grad, kept[1])


def test_as_many_batches_as_may_wait_for_the_trunk_are_defended_both_ways():
    sent, trunk = defended("topk:0.25")
    hidden = torch.randn(1, 3, 8)
    for step in range(MOST_IN_FLIGHT):
        trunk.forward(TrunkCall(hidden, step=step))
    sent.came.clear()
    for step in range(MOST_IN_FLIGHT):
        trunk.backward(step, hidden)
    assert [int((came != 0).sum(-1).max()) for came in sent.came] == [2] * len(
        sent.came
    )
    assert len(sent.came) == MOST_IN_FLIGHT


def test_texts_that_a_trunk_says_to_have_forgotten_have_the_same_noise_again():
    """The mean of noise that is drawn anew would tell what is below it."""
    sent, trunk = defended("gaussian:1")
    head = partition(build("llama"), SplitPlan(1, 1)).head
    hidden = torch.randn(2, 5, 32)
    cache = SplitCache(head, None, trunk, texts=0)
    mask = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    for start, stop in ((0, 3), (3, 4), (4, 5)):
        cache.cross(hidden[:, start:stop], mask[:, :stop], None)
    assert [came.shape[1] for came in sent.came] == [3, 1, 4, 1, 5]
    last = sent.came[-1]
    assert all(torch.equal(c, last[:, : c.shape[1]]) for c in sent.came[0::2])
    assert torch.equal(sent.came[3], last[:, 4:])
    assert ((last != hidden).any(-1) == mask.bool()).all()


def test_no_two_rounds_draw_the_same_noise_since_the_server_knows_the_seed():
    hidden = torch.randn(1, 3, 8)
    sent = Sent()
    for _ in range(2):
        hooks = client_hooks(now(defence="gaussian:1"))
        hooks.guard(sent).forward(TrunkCall(hidden))
    assert not torch.equal(*sent.came)


def test_without_a_defence_nothing_stands_before_the_trunk():
    sent = Sent()
    assert client_hooks(now()).guard(sent) is sent


def run(folder, name, **changes):
    return losses(folder, **{**ATLAS, "run-name": name, **changes})


def test_a_defence_that_changes_nothing_leaves_a_runs_numbers_as_they_are(tmp_path):
    assert run(tmp_path, "kept", defence="topk:1") == run(tmp_path, "plain")


def test_a_runs_attackers_know_its_defence(tmp_path):
    noisy = {"defence": "gaussian:0.5", "record-wire": True}
    assert run(tmp_path, "noisy", **noisy) != run(tmp_path, "plain")
    folder = tmp_path / "noisy"
    words = ["attack", str(folder), "--attacks", "linear", "--texts", "4"]
    assert run_words(words) == 0
    (found,) = json.loads((folder / "privacy.json").read_text())
    assert found["defence"] == "gaussian:0.5"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"defence": "wishing:1"}, "'wishing' is no defence"),
        ({"defence": "gaussian:-1"}, "strength of gaussian"),
        ({"defence": "gaussian:1", "split": "vanilla"}, "labels cross as they are"),
        ({"defence": "gaussian:1", "split": "none"}, "nothing crosses"),
        ({"defence": "gaussian:1", "strategy": "fedavg"}, "defence"),
        ({"defence": "nopeek:1", "adapter": "prompt"}, "each token's own position"),
        ({"defence": "nopeek:1", "in-flight": 2, "accumulate": 2}, "in-flight=2"),
    ],
)
def test_a_defence_that_cannot_be_is_refused(changes, said):
    base = read_by(changes.get("strategy", "atlas"), {})
    with pytest.raises(ConfigError, match=said):
        load_config({**base, **changes})
