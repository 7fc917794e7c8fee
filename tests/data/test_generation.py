"""Tasks whose answer is text: their files, their rows, their batches."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_flwr.data import Example, load_task, prepare, resolve_model, tokenizer_of
from atlas_flwr.data.definitions import read_definition
from atlas_flwr.data.responses import GenerationCollator, commonest_token_accuracy
from atlas_flwr.data.tasks import read_examples
from atlas_flwr.errors import DataError

GOOD = """
kind: generation
format: jsonl
path: rows.jsonl
prompt: "{instruction}\\n{input}\\nAnswer: "
response: "{output}"
"""
ROWS = [
    {"instruction": "Add.", "input": "1 + 1", "output": "2"},
    {"instruction": "Name a colour.", "input": "", "output": "Green,\n  like grass."},
    {"instruction": "Name a colour.", "input": None, "output": "Red."},
]


def task_of(folder, rows, text=GOOD):
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "mine.yaml").write_text(text)
    return load_task(str(folder / "mine.yaml"))


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_of(resolve_model("tiny", progress=False))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (('response: "{output}"', ""), "`response` is missing"),
        (('response: "{output}"', "response: Yes."), "names no field"),
        (('"{output}"', '"{output!r}"'), "is no field"),
        (('"{output}"', '"{}"'), "is no field"),
        (('"{output}"', '"{output"'), "and {{ }} for braces"),
        (('"{output}"', '"{output"'), "`response`: expected '}'"),
        (
            ("kind: generation", "kind: writing"),
            "classification, generation, completion",
        ),
        (("kind: generation", ""), "`labels` is missing"),
        (("format: jsonl", "format: jsonl\nlabels: {a: b, c: d}"), "`labels` is for"),
        (("format: jsonl", "format: jsonl\nbalance: true"), "`balance` is for"),
        (("format: jsonl", "format: jsonl\nsystem: Be brief."), "set `chat: true`"),
        (("format: jsonl", "format: folder"), "has no fields"),
        (("format: jsonl", "format: jsonl\nscores: [meteor]"), "rouge_l, chrf, bleu"),
        (("format: jsonl", "format: jsonl\nscores: [bleu, bleu]"), "names one twice"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(change, told):
    with pytest.raises(DataError) as caught:
        read_definition("mine", GOOD.replace(*change))
    assert told in str(caught.value)


def test_keys_of_generations_are_refused_in_classifications():
    text = "format: csv\npath: a.csv\nlabels: {a: x, b: y}\nprompt: '{text}'\n"
    with pytest.raises(DataError, match="`prompt` is for `kind: generation`"):
        read_definition("mine", text)


def test_templates_are_filled_in_and_white_space_stays(tmp_path):
    found = read_examples(task_of(tmp_path, ROWS)).examples
    assert {(e.text, e.answer) for e in found} == {
        ("Add.\n1 + 1\nAnswer: ", "2"),
        ("Name a colour.\n\nAnswer: ", "Green,\n  like grass."),
        ("Name a colour.\n\nAnswer: ", "Red."),
    }


def test_fields_may_be_called_as_people_call_columns(tmp_path):
    row = {"Your question?\n(one)": "1 {x}", "a.b": "2", "class": "3"}
    prompt = r'prompt: "{Your question?\n(one)} {a.b}"'
    old = GOOD[GOOD.index("prompt:") :].partition("\n")[0]
    text = GOOD.replace(old, prompt).replace("{output}", "{class}")
    (found,) = read_examples(task_of(tmp_path, [row], text)).examples
    assert (found.text, found.answer) == ("1 {x} 2", "3")


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"instruction": "Add.", "output": "2"}, "without a field 'input'"),
        ({"instruction": "Add.", "input": "", "output": ""}, "text in 'output'"),
        ({"instruction": "Add.", "input": "", "output": "  "}, "an empty response"),
        ({"instruction": "Add.", "input": ["x"], "output": "2"}, "a list in 'input'"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path, row, why):
    with pytest.raises(DataError, match=r"line 4") as caught:
        read_examples(task_of(tmp_path, [*ROWS, row]))
    assert why in str(caught.value)
    text = GOOD + "on_bad_rows: drop\n"
    left = read_examples(task_of(tmp_path, [*ROWS, row, ROWS[0]], text))
    assert len(left.examples) == 3
    assert why in left.left_out[0]
    assert "line 5" in left.left_out[1]  # the same as the first


words = st.text("abc \n", min_size=1, max_size=30).filter(str.strip)


@settings(max_examples=40)
@given(st.lists(st.tuples(words, words), min_size=1, max_size=4), st.integers(4, 40))
def test_a_batch_has_prompt_and_response_and_a_loss_on_the_latter(
    tokenizer, tmp_path_factory, pairs, limit
):
    task = task_of(tmp_path_factory.mktemp("t"), ROWS)
    collate = GenerationCollator(tokenizer, task, limit)
    examples = [Example(text, answer=answer) for text, answer in pairs]
    batch = collate(examples)
    end = tokenizer.eos_token_id
    assert batch.input_ids.shape[1] <= limit
    for example, ids, mask, labels in zip(
        examples, batch.input_ids, batch.attention_mask, batch.labels, strict=True
    ):
        row, learned = ids[mask == 1].tolist(), labels[labels != -100].tolist()
        whole = tokenizer(example.text + example.answer, add_special_tokens=False)
        everything = [*whole["input_ids"], end]
        assert learned
        assert len(row) > len(learned)  # something predicts the first
        assert row[-len(learned) :] == learned
        if len(everything) < limit:
            assert row[-len(everything) :] == everything
            assert learned[-1] == end
        # What is kept are the last positions: of a prompt, its end.
        kept = labels[-batch.logits_to_keep + 1 :]
        assert kept[kept != -100].tolist() == learned


def test_a_long_prompt_loses_its_beginning_and_no_response(tokenizer, tmp_path):
    collate = GenerationCollator(tokenizer, task_of(tmp_path, ROWS), 12)
    short = collate.row(Example("word " * 50 + "end:", answer=" yes"))
    roomy = GenerationCollator(tokenizer, task_of(tmp_path, ROWS), 500)
    whole = roomy.row(Example("word " * 50 + "end:", answer=" yes"))
    assert short.said == whole.said
    assert short.ids == whole.ids[-12:]


def test_a_chat_is_in_the_models_own_words(tokenizer, tmp_path):
    task = task_of(tmp_path, ROWS, GOOD + "chat: true\nsystem: Be brief.\n")
    with pytest.raises(DataError, match="has no chat template"):
        GenerationCollator(tokenizer, task, 64)
    chatting = tokenizer_of(resolve_model("tiny", progress=False))
    chatting.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    row = GenerationCollator(chatting, task, 200).row(Example("Why?", answer="So."))
    assert (
        chatting.decode(row.ids[: row.first])
        == "<system>Be brief.</><user>Why?</><assistant>"
    )
    assert chatting.decode(row.said) == "So.</>"
    chatting.chat_template = "{{ messages | length }}"
    with pytest.raises(DataError, match="otherwise when its answer follows"):
        GenerationCollator(chatting, task, 200)


def test_a_classifier_cannot_be_asked_to_write(tmp_path):
    task_of(tmp_path, ROWS)
    with pytest.raises(DataError, match="which writes none"):
        prepare("tiny-bert", [str(tmp_path / "mine.yaml")], progress=False)


def test_the_labels_are_aligned_with_what_predicts_them(tokenizer, tmp_path):
    collate = GenerationCollator(tokenizer, task_of(tmp_path, ROWS), 40)
    batch = collate(list(read_examples(task_of(tmp_path, ROWS)).examples))
    assert torch.equal(
        batch.labels[batch.labels != -100], batch.input_ids[batch.labels != -100]
    )
    assert not ((batch.labels != -100) & (batch.attention_mask == 0)).any()


def test_the_commonest_token_is_what_accuracy_is_compared_with(tokenizer, tmp_path):
    collate = GenerationCollator(tokenizer, task_of(tmp_path, ROWS), 64)
    train = [Example("q", answer="a a a a"), Example("q", answer="b a")]
    test = [Example("q", answer="a b"), Example("q", answer="a")]
    tokens = [token for example in test for token in collate.row(example).said]
    learned = [token for example in train for token in collate.row(example).said]
    best = max(set(learned), key=learned.count)
    wanted = sum(token == best for token in tokens) / len(tokens)
    assert commonest_token_accuracy(collate, train, test) == wanted
