from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from atlas_flwr.data import load_examples, load_task, task_names
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
    assert task.reading.package


def test_examples_are_deduplicated_and_in_one_order(make_task: MakeTask) -> None:
    rows = [("b  b", "x"), ("a", "y"), ("b b", "x"), (" ", "y"), ("c\n", "y")]
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
    with pytest.raises(DataError, match=r"'much' .* is not a number"):
        load_examples(load_task(str(tmp_path / "other.yaml")))


def test_an_unknown_class_and_an_empty_class_are_told(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\nwords,a\n")
    path = tmp_path / "own.yaml"
    path.write_text("format: csv\npath: rows.csv\nlabels: {b: one, c: two}\n")
    with pytest.raises(DataError, match=r"label 'a' .* are b, c"):
        load_examples(load_task(str(path)))
    path.write_text("format: csv\npath: rows.csv\nlabels: {a: one, c: two}\n")
    with pytest.raises(DataError, match="no example of c"):
        load_examples(load_task(str(path)))


def test_a_task_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(DataError, match=r"'sapm'.*questions.*spam"):
        load_task("sapm")
