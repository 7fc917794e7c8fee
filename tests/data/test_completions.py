"""Plain text: where it comes from, and how it is cut."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_flwr.data import Example, load_examples, load_task
from atlas_flwr.data.completions import CompletionCollator
from atlas_flwr.data.definitions import read_definition
from atlas_flwr.errors import DataError
from atlas_flwr.serving import PromptForm, Prompts

FILE = "kind: completion\npath: {path}\nformat: {format}\n"


def task_of(folder, path, how, more=""):
    (folder / "texts.yaml").write_text(FILE.format(path=path, format=how) + more)
    return load_task(str(folder / "texts.yaml"))


@pytest.fixture
def task(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "One.\n  Two."}))
    return task_of(tmp_path, "rows.jsonl", "jsonl")


def test_texts_of_rows_lines_and_files_keep_their_white_space(tmp_path, task):
    assert [e.text for e in load_examples(task)] == ["One.\n  Two."]
    (tmp_path / "lines.txt").write_text("b: One\n\na: Two \n")
    found = load_examples(task_of(tmp_path, "lines.txt", "lines"))
    assert [e.text for e in found] == ["a: Two ", "b: One"]
    more = "pattern: '(?P<who>.): (?P<text>.*)'\nclient: who\n"
    found = load_examples(task_of(tmp_path, "lines.txt", "lines", more))
    assert {(e.text, e.owner) for e in found} == {("One", "b"), ("Two ", "a")}
    (tmp_path / "texts" / "ann").mkdir(parents=True)
    (tmp_path / "texts" / "ann" / "a.txt").write_bytes(b"One.\r\n\r\n  Two.\n")
    more = "pattern: '(?P<who>[^/]+)/'\nclient: who\n"
    (found,) = load_examples(task_of(tmp_path, "texts", "folder", more))
    assert (found.text, found.owner) == ("One.\n\n  Two.\n", "ann")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("prompt: '{text}'", "`prompt` is for `kind: generation`"),
        ("chat: true", "`chat` is for"),
        ("label: x", "`label` is for classifications"),
        ("balance: true", "`balance` is for classifications"),
        ("text: []", "`text` names no field"),
        ("client: who\nformat: lines", "stands twice"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(more, told):
    with pytest.raises(DataError, match=told):
        read_definition("mine", FILE.format(path="a", format="jsonl") + more)


def test_a_client_that_a_pattern_does_not_find_is_refused():
    with pytest.raises(DataError, match=r"\(\?P<who>"):
        read_definition("m", FILE.format(path="a", format="folder") + "client: who\n")


@settings(max_examples=40)
@given(text=st.text("ab \n", min_size=1, max_size=60), limit=st.integers(2, 20))
def test_every_token_is_predicted_once(tiny_tokenizer, tmp_path_factory, text, limit):
    task = task_of(tmp_path_factory.mktemp("t"), "rows.jsonl", "jsonl")
    collate = CompletionCollator(tiny_tokenizer, task, limit)
    rows = [collate.row(piece) for piece in collate.prepared([Example(text)])]
    ids = tiny_tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = [*ids, tiny_tokenizer.eos_token_id]
    assert [token for row in rows for token in row.said] == ids[1:]
    assert all(len(row.ids) <= limit for row in rows)
    for before, row in pairwise(rows):
        assert row.ids[0] == before.ids[-1]


def test_texts_without_a_token_to_learn_are_counted(tiny_tokenizer, task, caplog):
    end = tiny_tokenizer.eos_token
    tiny_tokenizer.eos_token = None
    try:
        collate = CompletionCollator(tiny_tokenizer, task, 8)
        pieces = collate.prepared([Example("a"), Example("abc")])
        assert len(pieces) == 1
        with pytest.raises(DataError, match="none of 1 texts"):
            collate.prepared([Example("a")])
    finally:
        tiny_tokenizer.eos_token = end


def test_a_prompt_goes_on_as_it_is(tiny_tokenizer, task):
    prompts = Prompts(tiny_tokenizer, [PromptForm.of(task)])
    ids = prompts.ids({"text": "Once upon"})
    assert tiny_tokenizer.decode(ids) == "Once upon"
