"""Conversations are read in the two ways in which data sets write them."""

from __future__ import annotations

import pytest

from atlas_flwr.data.turns import Turn, read_turns

ASKED = {"role": "user", "content": "Why?"}
ANSWERED = {"role": "assistant", "content": "So."}


def test_both_ways_to_write_a_turn_come_to_the_same():
    other = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Why?"},
        {"from": "gpt", "value": "So."},
    ]
    one = [{"role": "system", "content": "Be brief."}, ASKED, ANSWERED]
    wanted = (Turn("system", "Be brief."), Turn("user", "Why?"))
    assert read_turns(one) == read_turns(other) == (*wanted, Turn("assistant", "So."))


def test_what_one_side_says_in_a_row_is_one_turn():
    found = read_turns([ASKED, {"role": "user", "content": "Now?"}, ANSWERED, ASKED])
    assert found[0] == Turn("user", "Why?\nNow?")
    assert [turn.role for turn in found] == ["user", "assistant", "user"]


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("Why?", "is no list"),
        ([], "is no list"),
        (["Why?"], "an entry that is no"),
        ([{"speaker": "a", "text": "b"}], "an entry that is no"),
        ([ASKED, {"role": "tool", "content": "3"}], "the role 'tool', where system"),
        ([ASKED, {"role": "assistant", "content": " "}], "a turn without text"),
        ([ASKED, {"role": "assistant"}], "a turn without text"),
        ([ASKED, {"role": "assistant", "content": "\ud800"}], "half a character"),
        ([ANSWERED, ASKED], "does not begin with a user's turn"),
        ([{"role": "system", "content": "Be brief."}], "does not begin with a user's"),
        ([ASKED, {"role": "system", "content": "x"}, ANSWERED], "in its midst"),
    ],
)
def test_what_is_no_conversation_is_said(value, why):
    with pytest.raises(ValueError, match=why):
        read_turns(value)
