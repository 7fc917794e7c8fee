from __future__ import annotations

import numpy as np
import pytest

from atlas_flwr.clustering import METHODS
from atlas_flwr.cohort.discovery import CLUSTERINGS, Discovery
from atlas_flwr.errors import AdapterError


def parts(task, seed, moved=0.0):
    """A client's sketch in parts; tasks are orthogonal, noise is small."""
    rng = np.random.default_rng(seed)
    centre = np.eye(16)[task] + moved * np.eye(16)[15]
    return (centre + 0.05 * rng.standard_normal((4, 16))).astype(np.float32)


def discovery(tasks, **options):
    found = Discovery(**options)
    for client, task in tasks.items():
        found.add(client, parts(task, int(client)))
    found.fit()
    return found


def copy_of(found, **options):
    """As a resumed run makes it: what is saved goes through JSON."""
    again = Discovery(**options)
    again.restore(
        found.state(), list(found.fitted_on), list(found.numbers), found.next_number
    )
    return again


@pytest.mark.parametrize("method", METHODS)
def test_every_method_clusters_sketches_in_parts(method):
    found = discovery({"1": 0, "2": 1, "3": 0, "4": 1, "5": 2, "6": 2}, method=method)
    assert found.labels() == {"1": 0, "2": 1, "3": 0, "4": 1, "5": 2, "6": 2}
    found.add("7", parts(1, 7))
    assert found.label("7") == 1


def test_who_joined_a_cluster_is_in_it_until_all_are_clustered_anew():
    """What it has learned is there, whatever it says when it is asked again."""
    found = discovery({"1": 0, "2": 1, "3": 0, "4": 1}, num_clusters=2)
    found.add("5", parts(0, 5))
    assert found.label("5") == found.label("1")
    found.add("5", parts(1, 6))
    found.add("3", parts(1, 7))
    assert found.label("5") == found.label("3") == found.label("1")
    found.fit()
    assert found.label("5") == found.label("3") == found.label("2") != found.label("1")


def test_shares_in_clusters_are_by_their_numbers_and_sum_to_one():
    found = discovery({"1": 0, "2": 1, "3": 0, "4": 1})
    between = parts(0, 9) + parts(1, 10)
    found.add("5", between)
    shares = found.memberships()
    for client, label in found.labels().items():
        assert shares[client].keys() == {"0", "1"}
        assert sum(shares[client].values()) == pytest.approx(1, abs=1e-3)
        assert max(shares[client], key=shares[client].get) == str(label)
    assert min(shares["1"].values()) < 0.05 < 0.2 < min(shares["5"].values())
    found.numbers = (7, 3)  # as after clustering anew
    assert found.memberships()["1"].keys() == {"7", "3"}
    assert Discovery().memberships() == Discovery("none").memberships() == {}


def test_the_clusterings_are_the_methods_and_none():
    assert set(CLUSTERINGS) == {*METHODS, "none"}


def test_integer_sketches_are_clustered_as_floats_are():
    floats = discovery({"1": 0, "2": 1, "3": 0, "4": 1})
    codes = Discovery()
    for client, sketch in floats.sketches.items():
        codes.add(client, np.rint(100 * sketch).astype(np.int8))
    codes.fit()
    assert codes.labels() == floats.labels()


def test_clusters_keep_their_numbers_when_members_come_and_go():
    found = discovery({"2": 0, "3": 0, "4": 1, "5": 1, "6": 2, "7": 2})
    assert found.labels() == {"2": 0, "3": 0, "4": 1, "5": 1, "6": 2, "7": 2}
    # A newcomer whose name sorts first would have renumbered all of them.
    found.add("1", parts(2, 1))
    found.fit()
    assert found.labels() == {"1": 2, "2": 0, "3": 0, "4": 1, "5": 1, "6": 2, "7": 2}


def test_a_new_cluster_gets_a_number_that_no_cluster_ever_had():
    found = discovery({"1": 0, "2": 0, "3": 1, "4": 1})
    found.sketches = {c: parts(0, int(c)) for c in "1234"}  # all do the same now
    found.fit()
    (left,) = set(found.labels().values())
    found.sketches |= {c: parts(5, int(c)) for c in "34"}
    found.fit()
    assert left in {0, 1}
    assert sorted(set(found.labels().values())) == [left, 2]


def test_a_resumed_run_knows_its_clusters_by_the_same_numbers():
    found = discovery({"2": 0, "3": 0, "4": 1, "5": 1})
    found.add("1", parts(1, 1))
    found.fit()
    again = copy_of(found)
    assert again.labels() == found.labels()
    for one in (found, again):
        one.add("0", parts(7, 0))
        one.add("00", parts(7, 100))
        one.fit()
    assert again.labels() == found.labels()
    assert found.label("0") == 2


def test_a_run_saved_without_numbers_is_taken_up_as_a_first_clustering():
    found = discovery({"1": 0, "2": 1, "3": 0, "4": 1})
    again = Discovery()
    again.restore(found.state(), found.fitted_on)
    assert again.labels() == found.labels()


def test_balanced_clusters_have_equal_sizes():
    tasks = {"1": 0, "2": 0, "3": 0, "4": 0, "5": 0, "6": 1}
    found = discovery(tasks, num_clusters=2, balanced=True)
    assert sorted(np.bincount(list(found.labels().values()))) == [3, 3]
    unbalanced = discovery(tasks, num_clusters=2)
    assert sorted(np.bincount(list(unbalanced.labels().values()))) == [1, 5]


@pytest.mark.parametrize("shape", [(16,), (3, 16), (4, 15), (1, 4, 16)])
def test_sketches_of_another_shape_are_refused(shape):
    found = discovery({"1": 0})
    with pytest.raises(AdapterError, match="as many parts"):
        found.add("2", np.ones(shape, np.float32))
