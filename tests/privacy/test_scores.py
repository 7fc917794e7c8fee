"""Scores: held against counting by hand, and against another way to count."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.privacy.attacks.naming import best_names
from atlas_flwr.privacy.scores import commonest_share, rouge_l, score

ABOUT = {
    "attack": "a",
    "adversary": "b",
    "defence": "none",
    "cut": "2/1",
    "target": "text",
}
SHORT = st.lists(st.integers(0, 3), min_size=1, max_size=7)


def longest_common(one, other):
    """Try all subsequences, the longest first."""
    for size in range(min(len(one), len(other)), 0, -1):
        ours, theirs = set(combinations(one, size)), set(combinations(other, size))
        if ours & theirs:
            return size
    return 0


@given(SHORT, SHORT)
def test_rouge_l_is_that_of_the_longest_common_subsequence(one, other):
    wanted = 2 * longest_common(one, other) / (len(one) + len(other))
    assert rouge_l(one, other) == pytest.approx(wanted)


def test_a_score_counts_tokens_and_whole_texts():
    found = score(
        [[1, 2], [3, 4, 5]], [[1, 2], [3, 0, 0]], baseline=0.1, seed=0, **ABOUT
    )
    assert found.token_accuracy == pytest.approx(3 / 5)
    assert (found.exact_texts, found.texts, found.tokens) == (1, 2, 5)
    assert found.interval[0] <= found.token_accuracy <= found.interval[1]
    assert found.rouge_l == pytest.approx((1 + 1 / 3) / 2)


def test_the_interval_narrows_with_texts_and_is_a_point_where_all_are_read():
    def width(count):
        truths = [[n % 2, 1] for n in range(count)]
        found = score([[0, 1]] * count, truths, baseline=0, seed=0, **ABOUT)
        return found.interval[1] - found.interval[0]

    assert width(200) < width(20) / 2
    sure = score([[1]] * 9, [[1]] * 9, baseline=0, seed=0, **ABOUT)
    assert sure.interval == (1.0, 1.0)


def test_guessing_says_what_is_commonest_among_what_is_known():
    assert commonest_share([7, 7, 1], [[7, 1], [7, 7]]) == 0.75


def test_groups_are_named_as_is_best_for_the_attacker():
    owners = ["0"] * 4 + ["1"] * 2
    groups = [[2], [2], [0], [1], [0], [0]]
    labels = [[0], [0], [1], [1], [1], [1]]
    assert best_names(owners, groups, labels)[:2] == [[0], [0]]
    assert best_names(owners, groups, labels)[4:] == [[1], [1]]
    named = best_names(owners, groups, labels)
    assert sum(n == label for n, label in zip(named, labels, strict=True)) == 5
