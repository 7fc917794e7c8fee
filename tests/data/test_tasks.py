from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from atlas_flwr.data import load_examples, load_task, task_names
from atlas_flwr.data.tasks import read_examples
from atlas_flwr.errors import DataError
from tests.data.conftest import MakeTask

_SHIPPED = {
    "questions": (5_381, 6),
    "spam": (4_512, 2),
    "movies": (10_041, 2),
    "news": (2_105, 5),
}


@pytest.mark.parametrize("name", sorted(_SHIPPED))
def test_a_shipped_task_has_its_examples_all_different(name: str) -> None:
    examples = load_examples(load_task(name))
    classes = {example.label for example in examples}
    assert (len(examples), len(classes)) == _SHIPPED[name]
    assert len({example.text for example in examples}) == len(examples)


@pytest.mark.parametrize("name", task_names())
def test_a_shipped_task_says_what_it_is_and_under_what_licence(name: str) -> None:
    task = load_task(name)
    assert task.description
    assert task.licence
    assert task.reading.package or task.reading.dataset


def test_a_shipped_translation_has_both_sides_and_no_names_that_stay() -> None:
    examples = load_examples(load_task("french"))
    assert len(examples) == 3_050
    said = {(e.text, e.answer) for e in examples}
    assert ("Text: Close\nTranslation: ", "Fermer") in said
    assert not any(text == f"Text: {answer}\nTranslation: " for text, answer in said)


def test_examples_are_deduplicated_and_in_one_order(make_task: MakeTask) -> None:
    rows = [("b  b", "x"), ("a", "y"), ("b b", "x"), ("c\n", "y")]
    found = load_examples(make_task(rows))
    assert [(e.text, e.label) for e in found] == [("a", 1), ("b b", 0), ("c", 1)]
    assert load_examples(make_task(rows[::-1])) == found


def test_long_texts_are_cut_between_words(make_task: MakeTask) -> None:
    rows = [("one two three", "x"), ("abcdefghij", "y"), ("one two four", "x")]
    found = load_examples(make_task(rows, "max_chars: 8"))
    assert [e.text for e in found] == ["abcdefgh", "one two"]
    exact = load_examples(make_task([("one two", "x"), ("b", "y")], "max_chars: 7"))
    assert exact[1].text == "one two"


def test_scores_become_two_classes_with_a_gap(tmp_path: Path) -> None:
    scores = [-3, -0.5, 0, 0.5, 0.6, 2]
    rows = "".join(f"text {i},{score}\n" for i, score in enumerate(scores))
    (tmp_path / "rows.csv").write_text(f"text,label\n{rows}")
    task = "format: csv\npath: rows.csv\nabove: 0.5\nlabels: {low: bad, high: good}\n"
    (tmp_path / "own.yaml").write_text(task)
    found = load_examples(load_task(str(tmp_path / "own.yaml")))
    assert Counter(example.label for example in found) == {0: 1, 1: 2}
    (tmp_path / "rows.csv").write_text("text,label\nwords,much\n")
    (tmp_path / "other.yaml").write_text(task)
    with pytest.raises(DataError, match=r"label is no number, as 'much' .line 2."):
        load_examples(load_task(str(tmp_path / "other.yaml")))


def test_an_unknown_class_and_an_empty_class_are_told(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\nwords,a\n")
    path = tmp_path / "own.yaml"
    path.write_text("format: csv\npath: rows.csv\nlabels: {b: one, c: two}\n")
    with pytest.raises(
        DataError, match=r"1 with label 'a', where `labels` are b, c .line 2."
    ):
        load_examples(load_task(str(path)))
    path.write_text("format: csv\npath: rows.csv\nlabels: {a: one, c: two}\n")
    with pytest.raises(DataError, match="no example of c"):
        load_examples(load_task(str(path)))


def test_rows_that_cannot_be_used_are_counted_and_named(make_task: MakeTask) -> None:
    good = [(f"text {i}", "xy"[i % 2]) for i in range(1_000)]
    rows = [*good, ("no label", ""), (" ", "x"), ("text 4", "y"), ("text 5", "y")]
    with pytest.raises(DataError) as error:
        load_examples(make_task(rows))
    said = str(error.value)
    assert "1 without a label (line 1001)" in said
    assert "1 with an empty text (line 1002)" in said
    both = "(line 5, line 1003)"
    assert f"2 whose text stands there with another label, too {both}" in said
    assert "on_bad_rows: drop" in said
    dropped = read_examples(make_task(rows, "on_bad_rows: drop"))
    assert len(dropped.examples) == 999
    assert "text 4" not in {e.text for e in dropped.examples}
    assert len(dropped.left_out) == 4  # the last repeats what stands there before


def test_of_a_text_with_two_labels_no_row_is_kept_whichever_comes_later(
    make_task: MakeTask,
) -> None:
    rows = [("a", "x"), ("b", "y"), ("a", "y"), ("a", "x"), ("a", "x"), ("c", "x")]
    examined = read_examples(make_task(rows, "on_bad_rows: drop"))
    assert [e.text for e in examined.examples] == ["b", "c"]
    (told,) = examined.left_out
    assert told.startswith("4 whose text stands there with another label, too")
    assert all(f"line {number}" in told for number in (1, 3, 4, 5))


@pytest.mark.parametrize("label", ["1.0", " 1 ", "1"])
def test_a_whole_number_is_its_label_however_it_is_written(
    make_task: MakeTask, label: str
) -> None:
    task = make_task([("a", label), ("b", "0")], labels="{'0': bad, '1': good}")
    assert [e.label for e in load_examples(task)] == [1, 0]


def test_a_task_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(DataError, match=r"'sapm'.*questions.*spam"):
        load_task("sapm")


@pytest.mark.parametrize("score", ["nan", "inf"])
def test_a_score_that_is_not_finite_is_of_no_class(
    make_task: MakeTask, score: str
) -> None:
    rows = [("one", "0.9"), ("two", "-0.9"), ("three", score)]
    task = make_task(rows, "above: 0.5", "{low: bad, high: good}")
    with pytest.raises(DataError, match="1 whose label is not finite"):
        load_examples(task)


def test_a_task_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes("format: csv\ndescription: h\u00e9\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"mine\.yaml is not in UTF-8"):
        load_task(str(path))
