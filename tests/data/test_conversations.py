"""Conversations of several turns: their rows, and what of them is learned."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_flwr.data import Example, load_examples, load_task
from atlas_flwr.data.definitions import read_definition
from atlas_flwr.data.responses import GenerationCollator
from atlas_flwr.data.tasks import read_examples
from atlas_flwr.data.turns import Turn
from atlas_flwr.errors import DataError
from atlas_flwr.serving import PromptForm, Prompts
from tests.data.templates import CHATML, FORGETFUL, MARKING, PLAIN

GOOD = """
kind: generation
format: jsonl
path: rows.jsonl
messages: messages
chat: true
"""


def said(*contents):
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": c} for n, c in enumerate(contents)]


def task_of(folder, rows, more=""):
    lines = [json.dumps({"messages": row}) for row in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    (folder / "talks.yaml").write_text(GOOD + more)
    return load_task(str(folder / "talks.yaml"))


def turns(*contents):
    return tuple(Turn(**turn) for turn in said(*contents))


@pytest.fixture
def tokenizer(tiny_tokenizer):
    before = tiny_tokenizer.chat_template
    tiny_tokenizer.chat_template = CHATML
    yield tiny_tokenizer
    tiny_tokenizer.chat_template = before


def learned(tokenizer, row):
    """Split what is learned at its seams."""
    texts, run = [], []
    for token, known in zip(row.ids, row.learned, strict=True):
        if known:
            run.append(token)
        elif run:
            texts.append(tokenizer.decode(run))
            run = []
    return [*texts, *([tokenizer.decode(run)] if run else [])]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("chat: true", ""), "set `chat: true`"),
        (("chat: true", "chat: true\nprompt: '{a}'"), "leave one out"),
        (("chat: true", "chat: true\nlearn: first"), "allowed: all, last"),
        (("format: jsonl", "format: csv"), "has no lists"),
        (("format: jsonl", "format: jsonl\nlabels: {a: b, c: d}"), "`labels` is for"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(change, told):
    with pytest.raises(DataError) as caught:
        read_definition("mine", GOOD.replace(*change))
    assert told in str(caught.value)


def test_learn_is_for_conversations():
    text = GOOD.replace("messages: messages", "prompt: '{a}'\nresponse: '{b}'")
    with pytest.raises(DataError, match="`learn` is for conversations"):
        read_definition("mine", text + "learn: last\n")


def test_a_conversation_ends_in_its_last_answer(tmp_path):
    rows = [said("Hi", "Ho", "More?", "No.", "Bye"), said("Hi", "Ho")]
    long, short = reversed(load_examples(task_of(tmp_path, rows)))
    assert (long.text, long.answer) == ("Hi\nHo\nMore?", "No.")
    assert long.turns == turns("Hi", "Ho", "More?")
    assert (short.turns, short.answer) == (turns("Hi"), "Ho")


def test_rows_that_are_no_conversations_are_named(tmp_path):
    rows = [said("Hi", "Ho"), "Hi", said("Hi")]
    with pytest.raises(DataError) as caught:
        read_examples(task_of(tmp_path, rows))
    assert "whose conversation is no list of {role, content}" in str(caught.value)
    assert "no turn of the assistant's (line 3)" in str(caught.value)
    left = read_examples(task_of(tmp_path, [*rows, rows[0]], "on_bad_rows: drop\n"))
    assert len(left.examples) == 1
    assert "(line 4)" in left.left_out[-1]


@pytest.mark.parametrize(
    ("more", "wanted"),
    [("", ["Ho<eos>", "No.<eos>"]), ("learn: last\n", ["No.<eos>"])],
)
def test_every_answer_is_learned_or_the_last(tmp_path, tokenizer, more, wanted):
    task = task_of(tmp_path, [said("Hi", "Ho", "More?", "No.")], more)
    row = GenerationCollator(tokenizer, task, 200).row(load_examples(task)[0])
    assert learned(tokenizer, row) == wanted
    assert tokenizer.decode(row.ids) == (
        "<|user|>Hi<eos>\n<|assistant|>Ho<eos>\n<|user|>More?<eos>\n<|assistant|>No.<eos>"
    )


words = st.text("ab \n", min_size=1, max_size=12).filter(str.strip)


@settings(max_examples=40)
@given(st.lists(words, min_size=4, max_size=6), st.integers(2, 50))
def test_a_long_conversation_keeps_its_last_answer(
    tiny_tokenizer, tmp_path_factory, contents, limit
):
    tiny_tokenizer.chat_template = CHATML
    task = task_of(tmp_path_factory.mktemp("t"), [said("Hi", "Ho")])
    contents = contents[: len(contents) // 2 * 2]
    example = Example("", answer=contents[-1], turns=turns(*contents[:-1]))
    whole = GenerationCollator(tiny_tokenizer, task, 9999).row(example)
    row = GenerationCollator(tiny_tokenizer, task, limit).row(example)
    last = whole.of_last().said
    assert len(row.ids) <= limit
    assert not row.learned[0]
    if len(last) < limit:
        assert row.ids == whole.ids[-limit:]
        assert row.said[-len(last) :] == last
    else:
        assert row.said == last[: limit - 1]


def test_a_template_that_rewrites_answers_can_learn_the_last(tmp_path, tokenizer):
    tokenizer.chat_template = FORGETFUL
    rows = [said("Hi", "Ho", "More?", "No.")]
    with pytest.raises(DataError, match="set `learn: last`"):
        GenerationCollator(tokenizer, task_of(tmp_path, rows), 200)
    task = task_of(tmp_path, rows, "learn: last\n")
    row = GenerationCollator(tokenizer, task, 200).row(load_examples(task)[0])
    assert learned(tokenizer, row) == ["<think></think>No.<eos>"]


def test_a_template_may_mark_answers_itself(tmp_path, tokenizer):
    tokenizer.chat_template = MARKING
    rows = [said("Hi", "Ho", "More?", "No.")]
    for more, wanted in (
        ("", ["Ho<eos>", "No.<eos>"]),
        ("learn: last\n", ["No.<eos>"]),
    ):
        task = task_of(tmp_path, rows, more)
        row = GenerationCollator(tokenizer, task, 200).row(load_examples(task)[0])
        assert learned(tokenizer, row) == wanted


@pytest.mark.parametrize("template", [CHATML, PLAIN])
@pytest.mark.parametrize("more", ["", "system: Be brief.\n"])
def test_serving_reads_what_training_saw(tmp_path, tokenizer, template, more):
    tokenizer.chat_template = template
    task = task_of(tmp_path, [said("Hi", "Ho", "More?\n", "\nNo.")], more)
    row = GenerationCollator(tokenizer, task, 200).row(load_examples(task)[0])
    form = PromptForm.of(task)
    asked = Prompts(tokenizer, [form]).ids({"messages": said("Hi", "Ho", "More?\n")})
    last = row.of_last()
    assert asked == last.ids[: last.first]
