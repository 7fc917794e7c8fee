"""Defences: what they promise, and what of it an attacker can expect."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from atlas_flwr.privacy import DEFENCES, parse_defence
from atlas_flwr.privacy.defences.scale import LONGEST, clipped, usual_size
from atlas_flwr.remedies.wire_defence import guarded


def drawn(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", ["gaussian", "laplace"])
def test_noise_has_the_strength_that_was_asked_for(name):
    hidden = torch.randn(200, 64)
    noise = parse_defence(f"{name}:0.5").activations(hidden, drawn()) - hidden
    size = usual_size(hidden)
    assert float(noise.std()) == pytest.approx(0.5 * size, rel=0.03)
    assert abs(float(noise.mean())) < 0.02 * size


def test_laplace_noise_has_laplaces_tails():
    hidden = torch.ones(400, 64)
    noise = parse_defence("laplace:1").activations(hidden, drawn()) - hidden
    kurtosis = float((noise**4).mean() / (noise**2).mean() ** 2)
    assert kurtosis == pytest.approx(6, rel=0.1)


def test_noise_is_the_same_for_the_same_seed_alone():
    hidden, found = torch.randn(5, 8), parse_defence("gaussian:1")
    one, same = (found.activations(hidden, drawn(3)) for _ in range(2))
    assert torch.equal(one, same)
    assert not torch.equal(one, found.activations(hidden, drawn(4)))


@pytest.mark.parametrize(
    ("name", "law"), [("gaussian", "norm"), ("laplace", "laplace")]
)
def test_a_clients_noise_follows_from_no_seed_and_no_state(name, law):
    """A seed of torch's can be tried; a state follows from noise that is known."""
    defence, hidden = parse_defence(f"{name}:0.5"), torch.ones(40, 50)
    drawn = guarded(None, defence).generator
    state = drawn.get_state()
    one = defence.activations(hidden, drawn) - hidden
    drawn.set_state(state)
    other = defence.activations(hidden, drawn) - hidden
    assert not torch.equal(one, other)
    noise = torch.cat([one, other]).flatten() / 0.5
    assert noise.dtype == hidden.dtype
    law = stats.norm(0, 1) if name == "gaussian" else stats.laplace(0, 0.5**0.5)
    assert stats.kstest(noise.numpy(), law.cdf).pvalue > 1e-6


def test_no_vector_is_longer_than_the_bound_and_short_ones_are_left_alone():
    hidden = torch.randn(50, 16)
    hidden[0] *= 100
    short = clipped(hidden, usual_size(hidden))
    limit = LONGEST * usual_size(hidden) * 16**0.5
    assert float(short.norm(dim=1).max()) <= limit * 1.001
    assert torch.equal(short[1:], hidden[1:])


def test_topk_keeps_the_largest_numbers_and_no_others():
    hidden = torch.randn(6, 20)
    found = parse_defence("topk:0.25").activations(hidden, None)
    assert ((found != 0).sum(1) == 5).all()
    kept = found != 0
    assert (hidden.abs()[kept].view(6, 5).min(1).values >= _largest(hidden, kept)).all()
    assert torch.equal(found[kept], hidden[kept])


def _largest(hidden, kept):
    return hidden.abs().masked_fill(kept, 0).amax(1)


@pytest.mark.parametrize("name", ["gaussian:0.7", "laplace:0.7"])
def test_what_was_sent_is_likelier_by_its_own_text_than_by_others(name):
    found, texts = parse_defence(name), torch.randn(30, 64)
    scale = usual_size(texts)
    for place in range(30):
        received = found.activations(texts[place], drawn(place), scale)
        expected = found.activations(texts, None, scale)
        costs = found.unlikeliness(received, expected, scale)
        assert int(costs.argmin()) == place


def test_the_likelihood_of_gaussian_noise_is_that_of_its_density():
    found, received = parse_defence("gaussian:0.5"), torch.randn(4)
    candidates = torch.randn(3, 4)
    density = (
        torch.distributions.Normal(candidates, 0.5 * 2.0).log_prob(received).sum(1)
    )
    costs = found.unlikeliness(received, candidates, 2.0)
    assert torch.allclose(costs - costs[0], density[0] - density, atol=1e-5)


def test_joined_defences_act_one_after_the_other():
    hidden = torch.randn(6, 20)
    both = parse_defence("topk:0.5+gaussian:0.3")
    apart = parse_defence("topk:0.5").activations(hidden, None)
    apart = parse_defence("gaussian:0.3").activations(apart, drawn())
    assert torch.equal(both.activations(hidden, drawn()), apart)
    assert both.draws
    assert str(both) == "topk:0.5+gaussian:0.3"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fog:1", "'fog' is no defence: must be one of none, gaussian"),
        ("gaussian", "must be a number above 0, e.g. gaussian:0.3"),
        ("tokens", "must be a number above 0 and at most 20, e.g. tokens:10"),
        ("gaussian:-1", "must be a number above 0"),
        ("gaussian:nan", "must be a number above 0"),
        ("topk:2", "above 0 and at most 1"),
        ("mask:", "mask has no strength"),
        ("none:", "none has no strength"),
        ("gaussian:1+gaussian:2", "must be different defences"),
        ("none+topk:0.1", "and not none"),
        ("", "'' is no defence"),
    ],
)
def test_what_is_wrong_with_a_defence_is_said(text, said):
    with pytest.raises(ValueError, match="(?s)" + said.replace("+", r"\+")):
        parse_defence(text)


def test_every_defence_says_what_it_does():
    assert all(
        len(kind.about.split()) > 3 for n, kind in DEFENCES.items() if n != "none"
    )
