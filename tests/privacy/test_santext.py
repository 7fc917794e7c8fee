"""Metric privacy of tokens: what its epsilon says, of which distance, and its draws."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_flwr.cli.recorded import cases, recordings
from atlas_flwr.privacy import parse_defence
from atlas_flwr.privacy.defences import vocabulary as module
from tests.privacy.test_attack import recorded
from tests.privacy.test_own_examples import SECRET
from tests.privacy.test_tokens import SIZE, odds, vocabulary


def distances(words):
    """Return all distances by another way: of points on the unit sphere."""
    off = (words.table - words.table.mean(0)).double()
    points = torch.nn.functional.normalize(off, dim=1)
    return (points[:, None] - points[None]).norm(dim=2)


@pytest.fixture(autouse=True)
def _groups_of_seven(monkeypatch):
    monkeypatch.setattr(module, "GROUP", 7)  # nine of them, of 58 tokens
    monkeypatch.setattr(module, "ROWS", 14)
    monkeypatch.setattr(module, "SUMMED", 5)


@pytest.mark.parametrize("both", ["santext:16+tokens:10", "tokens:10+mask+santext:16"])
def test_no_two_defences_answer_each_token(both):
    with pytest.raises(ValueError, match="both answer each token; name one"):
        parse_defence(both)
    beside = "santext:16+mask+gaussian:0.1"
    assert str(parse_defence(beside)) == beside


@settings(max_examples=20, deadline=None)
@given(st.floats(0.05, 30))
def test_no_answer_is_likelier_than_epsilon_times_the_distance_says(epsilon):
    words = vocabulary()
    table = odds(parse_defence(f"santext:{epsilon}"), words)
    assert torch.allclose(table.sum(1), torch.ones(SIZE).double())
    told = (table[:, None].log() - table[None].log()).abs().max(2).values
    assert (told <= epsilon * distances(words) + 1e-6).all()


def test_what_is_met_is_more_than_half_of_what_is_said():
    words = vocabulary()
    table = odds(parse_defence("santext:3"), words)
    told = (table[:, None].log() - table[None].log()).abs().max(2).values
    share = (told / (3 * distances(words).clamp(min=1e-9))).fill_diagonal_(0)
    assert 0.5 < float(share.max()) <= 1


def test_odds_are_those_of_the_exponential_mechanism():
    words, found = vocabulary(), parse_defence("santext:5")
    weights = (-2.5 * distances(words)[:, words.plain]).exp()
    wanted = weights / weights.sum(1, keepdim=True)
    assert torch.allclose(odds(found, words), wanted, atol=1e-6)


def test_distances_are_a_metric_and_a_token_is_where_it_is():
    words = vocabulary()
    every = torch.arange(SIZE)
    found = words.distances(every, every)
    assert torch.allclose(found, distances(words), atol=1e-6)
    assert float(found.diagonal().max()) < 1e-7
    assert (found[:, None] <= found[:, :, None] + found[None] + 1e-7).all()


def test_answers_are_drawn_as_probably_as_is_said():
    found, words, drawn = parse_defence("santext:6"), vocabulary(), 6000
    table = odds(found, words)
    (answers,) = found.tokens([[5, 0] * (drawn // 2)], words, SECRET)
    for token, said in ((5, answers[::2]), (0, answers[1::2])):
        counts = torch.bincount(torch.tensor(said), minlength=SIZE)[words.plain]
        wanted = table[token] * len(said)
        chi = float(((counts - wanted) ** 2 / wanted).sum())
        assert chi < 57 + 4 * (2 * 57) ** 0.5
        assert not set(said) & {0, 7}


def test_the_least_and_the_greatest_draw_answer_by_the_first_and_the_last_token():
    found, words = parse_defence("santext:30"), vocabulary()
    (sums,) = words.sums([5], found.rate)
    assert found._answer(5, sums, 0.0, words) == int(words.plain[0])
    assert found._answer(5, sums, 1.0, words) == int(words.plain[-1])


def test_a_texts_answers_are_the_same_in_all_rounds_and_in_any_company():
    found, words = parse_defence("santext:2"), vocabulary()
    one = found.tokens([[3, 4, 5] * 9], words, SECRET)
    again = found.tokens([[9], [3, 4, 5] * 9], vocabulary(), SECRET)
    assert one[0] == again[1]
    assert one != found.tokens([[3, 4, 5] * 9], words, b"another")
    assert len(set(one[0][::3])) > 1  # each place has a draw of its own


def test_sums_of_different_epsilons_are_kept_apart():
    words = vocabulary()
    few, many = (words.sums([5, 6], rate)[:, -1] for rate in (9.0, 1.0))
    assert (few < many).all()
    assert torch.equal(words.sums([6], 9.0)[:, -1], few[1:])
    assert words.sums([6], 9.0).shape == (1, math.ceil(58 / 7))


@pytest.mark.slow
def test_the_attackers_texts_are_answered_as_the_defence_says(tmp_path):
    folder = recorded(tmp_path, defence="santext:8")
    (case,) = cases(folder.config(), recordings(folder), 12, 0)
    knows = case.knowledge
    words, found = knows.vocabulary, knows.defence
    pairs = [
        (own, sent)
        for t in knows.known
        for own, sent in zip(
            t.ids[t.private].tolist(), t.sent[t.private].tolist(), strict=True
        )
    ]
    stay = {
        n: float(found.token_odds(n, torch.tensor([n]), words).exp())
        for n in {own for own, _ in pairs}
    }
    wanted = sum(stay[own] for own, _ in pairs) / len(pairs)
    kept = sum(own == sent for own, sent in pairs) / len(pairs)
    assert kept == pytest.approx(wanted, abs=0.03)
