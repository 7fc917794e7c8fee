"""Prompts come to the tokens that training put before a response."""

from __future__ import annotations

import json

import pytest

from atlas_flwr.data import Example, load_task, resolve_model, tokenizer_of
from atlas_flwr.data.responses import GenerationCollator
from atlas_flwr.errors import DataError
from atlas_flwr.serving import PromptForm, Prompts, read_prompts
from tests.serving.conftest import TASKS

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}<assistant>{% endif %}"
COUNTING = PromptForm("counting", "Count after {start}: ")
ADVICE = PromptForm("advice", "{problem} {detail}")


@pytest.fixture
def tokenizer():
    return tokenizer_of(resolve_model("tiny"))


def task(tmp_path, more=""):
    text = "kind: generation\nformat: jsonl\npath: x\n" + TASKS["counting"] + more
    (tmp_path / "counting.yaml").write_text(text)
    return load_task(str(tmp_path / "counting.yaml"))


CHAT = "\nchat: true"


@pytest.mark.parametrize("more", ["", CHAT, f"{CHAT}\nsystem: Be brief."])
def test_a_row_is_put_as_in_training(tmp_path, tokenizer, more):
    tokenizer.chat_template = TEMPLATE
    known = task(tmp_path, more)
    form = PromptForm("counting", known.reading.prompt, known.chat, known.system)
    example = Example("Count after one: ", answer="two")
    row = GenerationCollator(tokenizer, known, 999).row(example)
    assert Prompts(tokenizer, [form]).ids({"start": "one"}) == row.ids[: row.first]


def test_a_prompt_is_put_as_it_is(tokenizer):
    ids = Prompts(tokenizer, [COUNTING]).ids({"prompt": "Say {this}", "start": 1})
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Say {this}"


def test_a_row_finds_the_task_that_has_its_fields(tokenizer):
    prompts = Prompts(tokenizer, [COUNTING, ADVICE])
    assert prompts.form_of({"problem": "rain", "detail": None}) is ADVICE
    text = tokenizer.decode(prompts.ids({"start": 3}), skip_special_tokens=True)
    assert text.startswith("Count after 3:")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "no prompt in it"),
        (["no json"], "line 1 is no JSON object"),
        (['{"prompt": "a"}', "[1]"], "line 2 is no JSON object"),
        (['{"prompt": 3}'], "line 1 has a prompt that is no text"),
        (['{"stop": 1}'], r"has stop; wanted: 'prompt' or the fields start \(task"),
        (["{}"], "has no fields"),
        (["x"] * 5, "and 2 more"),
        (['{"prompt": "a", "prompt": "b"}'], "has a key twice"),
        (["[" * 5000], "line 1 is no JSON object"),
        (['[{"prompt": "a"}, 3]'], "entry 2 is no JSON object"),
        (['{"prompt": "\\ud800"}'], "half a character"),
        (['{"start": {"a": 1}}'], "an object or a list in 'start'"),
        (['{"prompt": ""}'], "an empty prompt"),
        (['{"prompt": "' + "a " * 99 + '"}'], r"tokens.*the model knows 30"),
    ],
)
def test_rows_that_cannot_be_put_are_named(tmp_path, tokenizer, lines, message):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=message):
        read_prompts(path, Prompts(tokenizer, [COUNTING], 30))


def test_a_file_that_is_no_text_is_refused(tmp_path, tokenizer):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'{"prompt": "\xff\xfe"}')
    with pytest.raises(DataError, match="no text in UTF-8"):
        read_prompts(path, Prompts(tokenizer, []))


@pytest.mark.parametrize("around", ["\ufeff{}", "[{}]"])
def test_marks_and_arrays_are_read(tmp_path, tokenizer, around):
    path = tmp_path / "prompts.jsonl"
    text = around.replace("{}", '{"prompt": "a\u2028b"}')
    path.write_text(text, encoding="utf-8")
    assert read_prompts(path, Prompts(tokenizer, [])) == [{"prompt": "a\u2028b"}]


def test_blank_lines_are_no_rows(tmp_path, tokenizer):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n" + json.dumps({"prompt": "a", "id": 7}) + "\n\n")
    rows = read_prompts(path, Prompts(tokenizer, []))
    assert rows == [{"prompt": "a", "id": 7}]
    with pytest.raises(DataError, match="no file"):
        read_prompts(tmp_path / "other", Prompts(tokenizer, []))
