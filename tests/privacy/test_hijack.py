"""A trunk that shapes a client's head, and the client's watch on its trunk."""

from __future__ import annotations

import json
import random
import re
import secrets
from pathlib import Path

import pytest
import torch

import atlas_flwr
from atlas_flwr.client_apps import trunk as client_trunk
from atlas_flwr.config import load_config
from atlas_flwr.errors import ConfigError, RoundError, TrunkError
from atlas_flwr.privacy import parse_defence
from atlas_flwr.privacy.attacks.hijack import HijackingTrunk, overlap
from atlas_flwr.privacy.attacks.reader import LinearReader
from atlas_flwr.privacy.defended import DefendedTrunk
from atlas_flwr.privacy.knowledge import KnownText
from atlas_flwr.privacy.watched import DRAWS, WatchedTrunk
from atlas_flwr.train.step import batch_loss
from atlas_flwr.trunk.passing import PassingTrunk
from atlas_flwr.types import TrunkCall
from tests.runs_on_devices import ATLAS, losses
from tests.train.splits import KINDS, batches, split_model

WIDTH, WORDS = 16, 40


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class Same(PassingTrunk):
    """A trunk that answers with what came, and whose true gradient is what it got."""

    def __init__(self):
        super().__init__(self)

    def forward(self, call):
        return call.hidden.detach()

    def backward(self, step, grad):
        return grad


def test_a_hijacked_head_is_read_better_through_noise_though_nobody_told_a_token():
    drawn = torch.Generator().manual_seed(0)
    # As in a real head, all positions have much in common, and noise is as large as it.
    table = torch.randn(WORDS, WIDTH, generator=drawn) + 3.0
    head = torch.nn.Linear(WIDTH, WIDTH, bias=False)
    torch.nn.init.eye_(head.weight)
    noise = parse_defence("gaussian:0.4")
    texts = [torch.randint(WORDS, (12,), generator=drawn) for _ in range(60)]

    def read():
        with torch.no_grad():
            known = [
                KnownText(t, noise.activations(head(table[t]), drawn)) for t in texts
            ]
        reader = LinearReader(known[:50], table, first=False)
        right = [reader.scores(k.hidden).argmax(1) == k.ids for k in known[50:]]
        return float(torch.cat(right).float().mean())

    before, trunk = read(), HijackingTrunk(Same())
    stepper = torch.optim.SGD(head.parameters(), lr=0.02)
    for step, text in enumerate(texts[:50]):
        hidden = head(table[text])
        trunk.forward(TrunkCall(hidden.detach()[None], step=step))
        hidden.backward(trunk.backward(step, torch.ones(1, 12, WIDTH))[0])
        stepper.step()
        stepper.zero_grad()
    assert read() > before + 0.2


def test_a_hijack_returns_the_gradient_of_its_aim_as_large_as_the_true_one():
    hidden, grad = torch.randn(1, 6, WIDTH), torch.randn(1, 6, WIDTH)
    trunk = HijackingTrunk(Same())
    trunk.forward(TrunkCall(hidden, step=0))
    back = trunk.backward(0, grad)[0]
    moved = hidden[0] - 1e-3 * back
    assert overlap(moved) < overlap(hidden[0])
    assert float(back.norm()) == pytest.approx(float(grad.norm()), rel=1e-4)


def test_a_share_of_none_is_honest_and_padding_stays_still():
    mask = torch.tensor([[0, 1, 1, 1]])
    grad = torch.randn(1, 4, WIDTH) * mask[..., None]
    for share in (0.0, 0.5):
        trunk = HijackingTrunk(Same(), share)
        trunk.forward(TrunkCall(torch.randn(1, 4, WIDTH), mask, step=0))
        back = trunk.backward(0, grad)
        assert not back[0, 0].any()
        assert torch.equal(back, grad) == (share == 0)


def test_no_code_of_the_package_hijacks_so_that_no_run_can():
    for path in Path(atlas_flwr.__file__).parent.rglob("*.py"):
        if path.name != "hijack.py":
            assert not re.search(r"hijack import|HijackingTrunk\(", path.read_text())


def trained(trunk_of, steps=12, kind="llama"):
    """Train a tiny split model over what is made of its trunk; return the watch."""
    torch.manual_seed(0)
    model = split_model(kind)
    model.trunk = watch = WatchedTrunk(trunk_of(model.trunk), 1.0)
    stepper = torch.optim.Adam(model.parameters(), 1e-2)
    for batch in batches(kind, steps):
        batch_loss(model, batch).backward()
        stepper.step()
        stepper.zero_grad()
    return watch


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradients_of_an_honest_trunk_fit_its_answers(kind):
    watch = trained(lambda trunk: trunk, kind=kind)
    assert watch.watched == 12
    assert watch.off < 0.01


def test_they_fit_past_a_defence_as_what_was_sent_is_compared():
    torch.manual_seed(0)
    model = split_model()
    watch = WatchedTrunk(model.trunk, 1.0)
    model.trunk = DefendedTrunk(watch, parse_defence("gaussian:1"), torch.Generator())
    for batch in batches("llama", 6):
        batch_loss(model, batch).backward()
    assert watch.watched == 6
    assert watch.off < 0.01


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_trunk_that_returns_other_gradients_is_found(share):
    with pytest.raises(TrunkError, match=r"off by .* to shape this client's adapters"):
        trained(lambda trunk: HijackingTrunk(trunk, share))


def test_one_that_looks_for_probes_is_not_found_by_them():
    watch = trained(lambda trunk: HijackingTrunk(trunk, evades=True))
    assert watch.watched == 12
    assert watch.off < 0.01


def test_a_watch_asks_for_no_more_than_its_share(monkeypatch):
    drawn = random.Random(0)
    monkeypatch.setattr(secrets, "randbelow", drawn.randrange)
    model = split_model()
    trunk = model.trunk
    model.trunk = watch = WatchedTrunk(trunk, 0.25)
    for batch in batches("llama", 24):
        batch_loss(model, batch).backward()
    assert trunk.calls == 2 * 24 + watch.watched
    assert 2 <= watch.watched <= 10


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_shares_that_are_none_are_refused(share):
    for made in (HijackingTrunk, WatchedTrunk):
        with pytest.raises(TrunkError, match=f"share {share}; it must be"):
            made(Same(), share)
    with pytest.raises(TrunkError, match="above 0"):
        WatchedTrunk(Same(), 0.0)


def test_a_pass_that_another_replaces_leaves_nothing_to_compare(monkeypatch):
    """As where small gradients stay: the next pass takes the number of the last."""
    draws = iter([0, DRAWS - 1])
    monkeypatch.setattr(secrets, "randbelow", lambda _: next(draws))
    watch = WatchedTrunk(Same(), 0.5)
    for scale in (1.0, 5.0):
        watch.forward(TrunkCall(scale * torch.randn(8, 4, WIDTH), step=0))
    watch.backward(0, torch.randn(8, 4, WIDTH))
    assert watch.watched == 0


def test_a_watch_changes_no_number_of_what_is_trained():
    def weights(watched):
        torch.manual_seed(0)
        model = split_model()
        if watched:
            model.trunk = WatchedTrunk(model.trunk, 1.0)
        stepper = torch.optim.Adam(model.parameters(), 1e-2)
        for batch in batches("llama", 3):
            batch_loss(model, batch).backward()
            stepper.step()
            stepper.zero_grad()
        return [*model.parameters(), torch.rand(1)]

    pairs = zip(weights(True), weights(False), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.slow
def test_a_hijacked_runs_clients_leave_it_and_its_events_say_why(tmp_path, monkeypatch):
    honest = client_trunk.connect_all
    monkeypatch.setattr(
        client_trunk,
        "connect_all",
        lambda *given, **more: HijackingTrunk(honest(*given, **more)),
    )
    changes = {"run-name": "run", "watch": 1.0, "local-steps": 3}
    with pytest.raises(RoundError, match="off by"):
        losses(tmp_path, **ATLAS, **changes)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    failed = [e for e in map(json.loads, lines) if e["event"] == "client-failed"]
    assert {e["client"] for e in failed} == {"0", "1"}
    assert all(e["kind"] == "train" and "off by" in e["reason"] for e in failed)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"split": "vanilla"}, "no answer comes before its gradient"),
        ({"codec": "fp16"}, "codec='fp16' rounds by more than"),
        ({"dtype": "bfloat16"}, "dtype='bfloat16' rounds by more than"),
        ({"peer-checks": 0.1, "trunk": "peers"}, "sees more than a watch"),
        ({"in-flight": 2, "accumulate": 2}, "compared one batch after the other"),
        ({"batch-size": 1}, "of a round's 8 batches of 1 whose .* some 4 are compared"),
        ({"batch-size": 2, "auxiliary-steps": 1}, "4 batches of 2 whose .* some 2 are"),
        (
            {"batch-size": 4, "skip-gradients": 0.5},
            "2 batches of 4 whose .* some 1 are",
        ),
        ({"watch": 1.0, "batch-size": 4, "local-steps": 1}, "fewer than 8 texts"),
        ({"watch": 1.5}, "watch=1.5: must be at least 0 and at most 1"),
    ],
)
def test_a_watch_that_cannot_be_is_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        load_config({"watch": 0.5, **changes})
