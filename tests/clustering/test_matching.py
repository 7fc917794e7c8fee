from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.clustering import match_labels
from atlas_flwr.errors import DataError

CLIENTS = st.sampled_from("abcdefgh")
LABELLING = st.dictionaries(CLIENTS, st.integers(0, 3), min_size=1)


def kept(before, after):
    return sum(before.get(client) == label for client, label in after.items())


def most_kept(before, after):
    """Try every one-to-one renumbering."""
    new = sorted(set(after.values()))
    old = [*sorted(set(before.values())), *(-i - 1 for i in new)]
    return max(
        kept(before, {c: dict(zip(new, names, strict=True))[after[c]] for c in after})
        for names in permutations(old, len(new))
    )


@given(LABELLING, LABELLING)
def test_no_other_renumbering_keeps_more_clients_where_they_were(before, after):
    assert kept(before, match_labels(before, after)) == most_kept(before, after)


@given(LABELLING, LABELLING)
def test_the_partition_is_kept(before, after):
    matched = match_labels(before, after)
    pairs = {(after[c], matched[c]) for c in after}
    assert matched.keys() == after.keys()
    assert len(pairs) == len(set(after.values())) == len(set(matched.values()))


@given(LABELLING, LABELLING, st.integers(0, 9))
def test_a_cluster_of_strangers_gets_a_number_that_was_never_used(before, after, fresh):
    matched = match_labels(before, after, fresh=fresh)
    for label in set(matched.values()):
        members = [c for c in matched if matched[c] == label]
        if not any(before.get(c) == label for c in members):
            assert label not in before.values()
            assert label >= fresh


@given(LABELLING, st.randoms())
def test_names_and_order_of_the_new_clusters_do_not_matter(labels, random):
    names = random.sample(range(10), 4)
    renamed = {c: names[labels[c]] for c in random.sample(sorted(labels), len(labels))}
    assert match_labels(labels, renamed) == labels


def test_a_first_clustering_is_numbered_by_its_clients():
    assert match_labels({}, {"b": 0, "a": 7, "c": 0}) == {"a": 0, "b": 1, "c": 1}


def test_negative_numbers_are_refused():
    with pytest.raises(DataError, match="allowed: 0 and above"):
        match_labels({"a": -1}, {"a": 0})
