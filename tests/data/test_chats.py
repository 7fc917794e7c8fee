"""Conversations are cut where an answer begins, be it known or still to come."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_flwr.data.chats import chat_prompt, chat_template_text, pieces
from atlas_flwr.data.turns import Turn, with_system
from tests.data.templates import CHATML, FORGETFUL, PLAIN

words = st.text("ab \n<é", min_size=1, max_size=8)
talks = st.lists(st.tuples(words, words), min_size=1, max_size=3)


@pytest.fixture
def tokenizer(tiny_tokenizer):
    before = tiny_tokenizer.chat_template
    yield tiny_tokenizer
    tiny_tokenizer.chat_template = before


def conversation(pairs):
    return [
        turn
        for said, answer in pairs
        for turn in (Turn("user", said), Turn("assistant", answer))
    ]


@settings(max_examples=30)
@given(pairs=talks, template=st.sampled_from([CHATML, PLAIN]))
def test_pieces_are_the_whole_and_each_answer_is_one(tiny_tokenizer, pairs, template):
    tiny_tokenizer.chat_template = template
    turns = conversation(pairs)
    found = list(pieces(tiny_tokenizer, turns))
    whole = "".join(tiny_tokenizer.decode(piece.ids) for piece in found)
    assert whole == chat_template_text(tiny_tokenizer, turns)
    answers = [tiny_tokenizer.decode(p.ids) for p in found if p.turn is not None]
    assert len(answers) == len(pairs)
    for text, (_, answer) in zip(answers, pairs, strict=True):
        assert text.startswith(answer)


@settings(max_examples=30)
@given(pairs=talks)
def test_a_prompt_is_what_stands_before_its_answer_in_training(tiny_tokenizer, pairs):
    for template in (CHATML, PLAIN, FORGETFUL):
        tiny_tokenizer.chat_template = template
        turns = conversation(pairs)
        asked = chat_prompt(tiny_tokenizer, turns[:-1])
        *before, last = pieces(tiny_tokenizer, turns)
        assert last.turn == len(turns) - 1
        assert [token for piece in before for token in piece.ids] == asked


def test_what_a_template_writes_behind_the_end_token_is_not_said(tokenizer):
    tokenizer.chat_template = CHATML
    *_, last = pieces(tokenizer, conversation([("Why?", "So.")]))
    assert tokenizer.decode(last.ids) == "So.<eos>\n"
    assert tokenizer.decode(last.ids[: last.said]) == "So.<eos>"


def test_where_there_is_no_end_token_all_is_said(tokenizer):
    tokenizer.chat_template = PLAIN
    *_, last = pieces(tokenizer, conversation([("Why?", "So.")]))
    assert tokenizer.decode(last.ids[: last.said]) == "So.\n"


def test_turns_that_a_template_rewrites_later_are_no_pieces(tokenizer):
    tokenizer.chat_template = FORGETFUL
    turns = conversation([("One?", "1"), ("Two?", "2")])
    assert [p.turn for p in pieces(tokenizer, turns)] == [None, 3]


def test_a_conversations_own_system_text_goes_before_the_tasks():
    own = (Turn("system", "Mine."), Turn("user", "Why?"))
    assert with_system(own, "Yours.") == own
    assert with_system(own[1:], "Yours.") == (Turn("system", "Yours."), own[1])
