from __future__ import annotations

import json

import pytest

from atlas_flwr.cohort.assigned import Assignments
from atlas_flwr.protocol.profile import Assigned, Profile

ONE, OTHER = {"a": 0.9, "b": 0.1}, {"a": 0.1, "b": 0.9}


def rule(profile, importance):
    return Assigned({name: round(10 * share) for name, share in importance.items()})


def test_without_a_rule_nothing_is_given():
    assert Assignments().of(Profile("x"), ONE) is None


def test_what_was_given_stays_until_importances_move():
    found = Assignments(rule, tolerance=0.2)
    first = found.of(Profile("x"), ONE)
    assert first == Assigned({"a": 9, "b": 1})
    assert found.of(Profile("x"), {"a": 0.75, "b": 0.25}) is first
    assert found.of(Profile("x"), OTHER) == Assigned({"a": 1, "b": 9})
    assert found.of(Profile("y"), ONE) == first


def test_measurements_are_averaged_over_rounds_and_members():
    found = Assignments(rule)
    found.learn("x", ONE)
    found.learn("x", OTHER)
    found.learn("y", OTHER)
    assert found.importances["x"] == pytest.approx({"a": 0.5, "b": 0.5})
    assert found.cluster(["x", "y", "unheard"]) == pytest.approx({"a": 0.3, "b": 0.7})
    assert found.cluster(["unheard"]) == {}
    found.learn("y", OTHER, examples=3.0)  # x has 1
    assert found.cluster(["x", "y"]) == pytest.approx({"a": 0.2, "b": 0.8})


def test_a_resumed_run_gives_the_same_as_before():
    found = Assignments(rule, tolerance=0.5)
    found.learn("x", ONE, 2.0)
    given = found.of(Profile("x"), ONE)
    found.learn("x", {"a": 1.0})
    arrays, values = found.state()
    again = Assignments(rule, tolerance=0.5)
    again.restore(arrays, json.loads(json.dumps(values)))
    moved = {"a": 0.6, "b": 0.4}  # within the tolerance of what it was based on
    assert again.of(Profile("x"), moved) == given == found.of(Profile("x"), moved)
    assert again.importances == found.importances
    for one in (found, again):
        one.learn("y", OTHER, 3.0)
    assert again.cluster(["x", "y"]) == found.cluster(["x", "y"])
    again.learn("x", OTHER)
    found.learn("x", OTHER)
    assert again.importances == found.importances


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (None, {"a": 2, "b": 4}),
        (Assigned(3), {"a": 2, "b": 3}),
        (Assigned({"a": 9, "b": 1, "c": 5}), {"a": 2, "b": 1, "c": 5}),
    ],
)
def test_pruned_ranks_stay_pruned_whatever_the_rule_gives(given, wanted):
    found = Assignments((lambda profile, importance: given) if given else None)
    found.limit("x", {"a": 2, "b": 4})
    assert found.of(Profile("x"), {}) == Assigned(wanted)
    assert found.of(Profile("y"), {}) == given
    again = Assignments(found.rule)
    arrays, values = found.state()
    again.restore(arrays, json.loads(json.dumps(values)))
    assert again.of(Profile("x"), {}) == Assigned(wanted)
