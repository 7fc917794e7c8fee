"""NoPeek: what a distance correlation is, and what training with it does to a head."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from atlas_flwr.privacy import parse_defence
from atlas_flwr.privacy.defences.nopeek import MOST, distance_correlation
from atlas_flwr.remedies.wire_defence import penalised
from atlas_flwr.train.step import Step, StepLoss, task_loss
from tests.train.splits import KINDS, batches, split_model


def by_definition(x, z):
    """Székely et al., 2007, definitions 2 to 4, number by number."""

    def centred(rows):
        n = len(rows)
        d = np.array([[math.dist(one, two) for two in rows] for one in rows])
        mean = d.mean()
        return [
            [d[i][j] - d[i].mean() - d[:, j].mean() + mean for j in range(n)]
            for i in range(n)
        ]

    def product(a, b):
        pairs = zip(a, b, strict=True)
        return sum(p * q for r, s in pairs for p, q in zip(r, s, strict=True))

    a, b = centred(x), centred(z)
    return math.sqrt(product(a, b) / math.sqrt(product(a, a) * product(b, b)))


def test_it_is_what_its_definition_says():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((12, 5))
    z = 1e-3 * x[:, :2] + 1e-3 * rng.standard_normal((12, 2)) + 7
    found = distance_correlation(torch.tensor(x), torch.tensor(z))
    assert float(found) == pytest.approx(by_definition(x, z), rel=1e-3)


def test_of_two_normal_numbers_it_is_the_closed_form():
    """Székely et al., 2007, theorem 7."""
    rho, drawn = 0.6, torch.Generator().manual_seed(0)
    x, own = torch.randn(2, 1500, 1, generator=drawn)
    z = rho * x + math.sqrt(1 - rho**2) * own
    top = rho * math.asin(rho) + math.sqrt(1 - rho**2) + 1
    top -= rho * math.asin(rho / 2) + math.sqrt(4 - rho**2)
    wanted = math.sqrt(top / (1 + math.pi / 3 - math.sqrt(3)))
    assert float(distance_correlation(x, z)) == pytest.approx(wanted, abs=0.03)


def test_turned_and_stretched_rows_tell_all_and_rows_all_alike_nothing():
    x = torch.randn(20, 6)
    turned = 3 * x @ torch.linalg.qr(torch.randn(6, 6)).Q + 1
    assert float(distance_correlation(x, turned)) == pytest.approx(1, abs=1e-4)
    alike = torch.ones(20, 6, requires_grad=True)
    found = distance_correlation(x, alike)
    found.backward()
    assert found.item() < 1e-5
    assert alike.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_trained_with_it_has_less_in_common_with_its_text(kind):
    (batch,) = batches(kind, 1)

    def trained(defence):
        model = split_model(kind)
        model.head.get_input_embeddings().requires_grad_(False)
        stepper = torch.optim.Adam(model.head.parameters(), lr=1e-3)
        for index in range(12):
            loss = penalised(defence, Step(model, batch, index), task_loss)
            stepper.zero_grad()
            loss.total().backward()
            stepper.step()
        told = penalised(parse_defence("nopeek:1"), Step(model, batch, 12), task_loss)
        return float(told.penalty)

    hidden, plain = (trained(parse_defence(text)) for text in ("nopeek:5", "topk:1"))
    assert hidden < plain - 0.02


def test_the_tasks_loss_stays_what_it_was_and_its_term_is_the_heads_alone():
    model, (batch,) = split_model(), batches("llama", 1)
    plain = task_loss(Step(model, batch, 0))
    found = penalised(
        parse_defence("nopeek:2+topk:1"), Step(model, batch, 0), task_loss
    )
    assert torch.equal(found.task, plain.task)
    one = penalised(parse_defence("nopeek:1"), Step(model, batch, 0), task_loss)
    assert float(found.penalty) == pytest.approx(2 * float(one.penalty))
    found.penalty.backward()
    assert any(p.grad is not None for p in model.head.parameters())
    assert all(p.grad is None for p in model.tail.parameters())


def test_of_many_positions_some_are_taken_evenly():
    x, z = torch.randn(2, MOST + 1, 3)
    found = parse_defence("nopeek:2").penalty(x, z)
    assert float(found) == 2 * float(distance_correlation(x[::2], z[::2]))


def test_where_the_head_does_not_run_nothing_is_added():
    model, (batch,) = split_model(), batches("llama", 1)
    estimated = StepLoss(torch.tensor(1.0))
    found = penalised(
        parse_defence("nopeek:2"), Step(model, batch, 0), lambda step: estimated
    )
    assert found is estimated
