"""Each client weighs in one group: the last that it trained in, or was put into."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.aggregation import Contribution
from atlas_flwr.aggregation.members import Members
from atlas_flwr.lora import AdapterState

CLIENTS = st.sampled_from("abcd")
TRAINED = st.tuples(CLIENTS, st.sampled_from("01"), st.integers(1, 9))


def counted(trained):
    members = Members()
    for client, group, weight in trained:
        members.count(group, [Contribution(client, weight, AdapterState())])
    return members


@given(st.lists(TRAINED))
def test_a_client_weighs_what_it_came_with_last_and_only_where_it_trained_last(trained):
    members = counted(trained)
    last = {client: (group, weight) for client, group, weight in trained}
    for group in "01":
        expected = sum(weight for where, weight in last.values() if where == group)
        assert members.weight(group) == expected


@given(st.lists(TRAINED), st.dictionaries(CLIENTS, st.integers(0, 3)))
def test_a_new_grouping_takes_weights_along_and_drops_who_is_in_none(trained, after):
    members = counted(trained)
    members.regroup(after)
    last = {client: weight for client, _, weight in trained}
    for label in range(4):
        inside = [client for client, found in after.items() if found == label]
        assert members.weight(str(label)) == sum(last.get(c, 0) for c in inside)
