from __future__ import annotations

import codecs
import csv
import io
import json
import sys
import tracemalloc
import types
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_flwr.data.readers import READERS, Reading
from atlas_flwr.data.rows import Fault, Row
from atlas_flwr.errors import DataError

_ROWS = [Row('it\'s, "so" said', "a"), Row("línea\u2028dos", "b")]


def _records() -> list[dict[str, str]]:
    return [{"text": row.text, "label": row.label, "id": "7"} for row in _ROWS]


def _csv(path: Path) -> None:
    path.write_text('text,label\n"it\'s, ""so"" said",a\nlínea\u2028dos,b\n')


def _tsv(path: Path) -> None:
    path.write_text('text\tlabel\nit\'s, "so" said\ta\nlínea\u2028dos\tb\n')


def _json(path: Path) -> None:
    rows = [{"text": row.text, "label": row.label} for row in _ROWS]
    path.write_text(json.dumps(rows), encoding="utf-8")


def _jsonl(path: Path) -> None:
    lines = [json.dumps(record, ensure_ascii=False) for record in _records()]
    path.write_text("\ufeff" + "\r\n".join(lines) + "\r\n\n", encoding="utf-8")


def _parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(_records()), path)


def _lines(path: Path) -> None:
    path.write_text("".join(f"{row.label}|{row.text}\n" for row in _ROWS))


def _folder(path: Path) -> None:
    for i, row in enumerate(_ROWS):
        (path / row.label).mkdir(parents=True)
        (path / row.label / f"{i}.txt").write_text(row.text)
    (path / "README").write_text("not a text")


def _gettext(path: Path) -> None:
    path.mkdir()
    first, second = ({f"menu\x04{row.text}": [row.label, "more"]} for row in _ROWS)
    header = {"": {"language": "xx"}}
    (path / "a.json").write_text(json.dumps({**header, **first}))
    (path / "b.json").write_text(json.dumps(second, ensure_ascii=False))
    (path / "a.mo").write_bytes(b"\xde\x12")


_WRITERS = {
    "csv": _csv,
    "folder": _folder,
    "gettext": _gettext,
    "json": _json,
    "jsonl": _jsonl,
    "lines": _lines,
    "parquet": _parquet,
    "tsv": _tsv,
}
assert _WRITERS.keys() == READERS.keys() - {"hub"}
_PATTERNS = {
    "lines": r"(?P<label>\w+)\|(?P<text>.*)",
    "folder": r"(?P<label>\w+)/\d+\.txt$",
}


_TRANSLATED: dict[str, Any] = {"text": ("source",), "label": "translation"}


def _read(name: str, path: Path, **more: Any) -> list[Row]:
    given = {"pattern": _PATTERNS.get(name, ""), **more}
    if name == "gettext":
        given = {**_TRANSLATED, **given}
    return list(Reading(format=name, path=str(path), **given).rows())


@pytest.mark.parametrize("name", sorted(_WRITERS))
def test_every_format_gives_back_the_rows_written(name: str, tmp_path: Path) -> None:
    path = tmp_path / "rows"
    _WRITERS[name](path)
    read = _read(name, path)
    if name == "folder":  # takes a text's lines together
        read = [Row(row.text.replace(" dos", "\u2028dos"), row.label) for row in read]
    assert read == _ROWS


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1)))
def test_json_lines_give_back_any_text(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    path = tmp_path_factory.mktemp("json") / "rows.jsonl"
    lines = [
        json.dumps({"text": text, "label": 1}, ensure_ascii=False) for text in texts
    ]
    path.write_text("\n".join(lines), encoding="utf-8", newline="")
    assert _read("jsonl", path) == [Row(text, "1") for text in texts]


@given(
    text=st.text(st.sampled_from("a é\r\n\u2028\x85\ufeff"), max_size=30),
    encoding=st.sampled_from(["utf-8-sig", "utf-16", "utf-16-le"]),
)
def test_lines_read_one_by_one_are_those_of_the_whole(
    text: str, encoding: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("lines") / "file"
    path.write_bytes(text.encode(encoding))
    reading = Reading("lines", path=str(path), encoding=encoding)
    whole = path.read_bytes().decode(encoding).replace("\r\n", "\n")
    numbered = enumerate(whole.split("\n"), start=1)
    assert [*reading.lines()] == [(n, line) for n, line in numbered if line.strip()]


@settings(max_examples=150, deadline=None)
@given(body=st.text(st.sampled_from('ab",\r\n\u2028'), max_size=40))
def test_a_table_read_line_by_line_is_that_of_the_whole(
    body: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = "text,label\n" + body
    path = tmp_path_factory.mktemp("table") / "rows.csv"
    path.write_bytes(text.encode())
    whole = io.StringIO(text.replace("\r\n", "\n"), newline="")
    table, began, expected = csv.DictReader(whole, strict=True), 1, []
    try:
        for record in table:
            if None not in record and record["text"] and record["label"]:
                where = f"line {began + 1}"
                expected.append((record["text"], record["label"], where))
            began = table.line_num
    except csv.Error:
        with pytest.raises(DataError, match=f"begins in line {began + 1} cannot"):
            _read("csv", path)
        return
    rows = [row for row in _read("csv", path) if isinstance(row, Row)]
    assert [(row.text, row.label, row.where) for row in rows] == expected


def test_a_quote_that_never_closes_does_not_take_a_file_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atlas_flwr.data.readers.tables.LONGEST", 1000)
    path = tmp_path / "rows.csv"
    path.write_text('text,label\na,b\n"never,closed\n' + "c,d\n" * 1000 + '"')
    with pytest.raises(DataError, match=r"line 3 cannot.*limit \(1000\).*quote"):
        _read("csv", path)
    path.write_text("text\tlabel\n" + "x" * 1001 + "\ta\n")
    with pytest.raises(DataError, match=r"line 2 .*line end"):  # quotes are text there
        _read("tsv", path)


def test_tables_that_are_read_by_turns_have_long_cells_each(tmp_path: Path) -> None:
    path, long = tmp_path / "rows.csv", "x" * 200_000
    path.write_text(f"text,label\na,b\n{long},b\n")
    before = csv.field_size_limit()
    table = Reading(format="csv", path=str(path))
    first, second = iter(table.rows()), iter(table.rows())
    assert next(first) == next(second)
    assert csv.field_size_limit() == before
    assert [len(row.text) for row in first if isinstance(row, Row)] == [len(long)]
    assert [len(row.text) for row in second if isinstance(row, Row)] == [len(long)]


def _written(path: Path, rows: int) -> None:
    """Write rows of 1,000 characters, as the path's name ends."""
    head, line, end = {
        ".csv": ("text,label\n", "{},a\r\n", ""),
        ".json": ("[", '{{"text": "{}", "label": "a"}},', "{}]"),
        ".jsonl": ("", '{{"text": "{}", "label": "a"}}\n', ""),
        ".tsv": ("text\tlabel\n", "{}\ta\n", ""),
    }[path.suffix]
    path.write_text(head + line.format("x" * 1000) * rows + end, newline="")


@pytest.mark.parametrize("name", ["csv", "json", "jsonl", "tsv"])
def test_a_file_is_never_in_memory_as_a_whole(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"large.{name}"
    _written(path, 4000)
    tracemalloc.start()
    try:
        read = Reading(name, path=str(path)).rows()
        rows = sum(isinstance(row, Row) for row in read)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert rows == 4000
    assert peak < path.stat().st_size / 10


def test_fields_are_joined_in_the_order_asked(tmp_path: Path) -> None:
    _jsonl(tmp_path / "rows")
    read = _read("jsonl", tmp_path / "rows", text=("id", "text"), label="id")
    assert read[0] == Row('7 it\'s, "so" said', "7")


def test_rows_below_the_header_can_be_skipped(tmp_path: Path) -> None:
    (tmp_path / "rows.tab").write_text("text\tlabel\nstring\td\nclass\t\n\nwords\ta\n")
    assert _read("tsv", tmp_path / "rows.tab", skip_rows=2) == [Row("words", "a")]


def test_the_row_after_those_that_are_skipped_is_told_by_its_own_line(
    tmp_path: Path,
) -> None:
    (tmp_path / "rows.tab").write_text("text\tlabel\nunit\tnone\nwords\t\nmore\ta\n")
    read = _read("tsv", tmp_path / "rows.tab", skip_rows=1)
    assert [row.where for row in read] == ["line 3", "line 4"]


def test_only_the_first_lines_of_a_folders_files_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.txt").write_text("Title\n\nFirst.\nSecond.")
    assert _read("folder", tmp_path, max_lines=3) == [Row("Title First.", "a")]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("csv", b"text,topic\nx,y\n", "no column 'label'; it has 'text', 'topic'"),
        ("csv", b"text,text,topic\n", "two columns 'text', no column 'label'"),
        ("csv", "text,label\na,b\n".encode("utf-16-le"), "`encoding`, utf-16-le"),
        ("csv", b'text,label\na,b\n"never,closed\nc,d\n', "begins in line 3"),
        ("json", b'{"text": 1}', "it must be an array"),
        ("json", b'[{"text": 1}', "line 1"),
        ("json", b'{"text": 1}\n{"text": 2}', "is it `format: jsonl`?"),
        ("json", b'[{"text": 1},\n{"text": 2\n', "entry 2, line 3: Expecting ','"),
        ("json", b"[1] []", "more behind the array"),
        ("json", b"", "is empty"),
        ("csv", b"", "first line is empty"),
        ("tsv", b"\ntext\tlabel\n", "first line is empty"),
        ("csv", b"PK\x03\x04\x14\0\x06\0", "save the sheet as CSV"),
        ("jsonl", b"\x1f\x8b\x08\0", "unpack it"),
        ("parquet", b"PAR?", "cannot be read as Parquet"),
        ("folder", b"a file", "there is no folder"),
        ("tsv", b"text\tlabel\nl\xednea\ta", "latin-1"),
    ],
)
def test_a_damaged_file_is_told_with_its_place(
    name: str, content: bytes, told: str, tmp_path: Path
) -> None:
    path = tmp_path / "rows"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        _read(name, path)
    assert told in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("name", ["csv", "jsonl", "tsv"])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_a_byte_of_another_encoding_is_told_by_its_place_in_the_file(
    name: str, mark: bytes, tmp_path: Path
) -> None:
    path = tmp_path / f"rows.{name}"
    _written(path, 40)
    good = mark + path.read_bytes()
    path.write_bytes(good + b"caf\xe9\n" + good)
    with pytest.raises(DataError, match=f"at byte {len(good) + 3:,};"):
        _read(name, path)


NO_OBJECT = "that are no JSON object, or have a key twice"
MORE = "with more fields than the header: is a delimiter unquoted?"
UNMATCHED = "that do not match the task's pattern"


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("csv", b"text,label\nonly text\n", Fault("line 2", "without a label")),
        (
            "csv",
            b"text,label\na,b\nx, y,c\n",
            Fault(
                "line 3", "with more fields than the header: is a delimiter unquoted?"
            ),
        ),
        ("jsonl", b"[1]", Fault("entry 1", NO_OBJECT)),
        (
            "jsonl",
            b'{"text": "a", "text": "b", "label": 1}',
            Fault("line 1", NO_OBJECT),
        ),
        (
            "jsonl",
            b'{"text": "a", "label": 1}\n{"text"',
            Fault("line 2", "that are not JSON (Expecting ':' delimiter)"),
        ),
        (
            "jsonl",
            b'{"text": "a", "label": ' + 5000 * b"1" + b"}",
            Fault("line 1", "that are not JSON (a number of too many digits)"),
        ),
        (
            "jsonl",
            b'{"text": "a", "more": ' + 100_000 * b"[",
            Fault("line 1", "that are not JSON (nested too deeply)"),
        ),
        (
            "jsonl",
            b'{"text": NaN, "label": 1}',
            Fault("line 1", "with a number that is not finite in 'text'"),
        ),
        (
            "jsonl",
            b'{"text": "a\\ud800b", "label": 1}',
            Fault("line 1", "with half a character (a lone surrogate) in 'text'"),
        ),
        (
            "jsonl",
            b'{"text": {"body": "x"}, "label": 1}',
            Fault("line 1", "with an object in 'text', where text is wanted"),
        ),
        ("jsonl", b'{"text": "x", "label": null}', Fault("line 1", "without a label")),
        (
            "lines",
            b"nothing\n",
            Fault("line 1", "that do not match the task's pattern"),
        ),
    ],
)
def test_a_row_that_cannot_be_used_is_told_with_its_place(
    name: str, content: bytes, fault: Fault, tmp_path: Path
) -> None:
    path = tmp_path / "rows"
    path.write_bytes(content)
    assert _read(name, path)[-1] == fault


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_the_delimiter_is_that_by_which_the_header_has_the_fields(
    delimiter: str, tmp_path: Path
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"label{delimiter}text\n1{delimiter}one, two\n")
    assert _read("csv", path) == [Row("one, two", "1")]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_an_encoding_is_told_by_its_mark(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes("text,label\nżółw,a\n".encode(encoding))
    assert _read("csv", path) == [Row("żółw", "a")]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
@pytest.mark.parametrize("name", ["lines", "folder"])
def test_wide_characters_without_a_mark_are_not_read_as_zeros(
    name: str, encoding: str, tmp_path: Path
) -> None:
    path = tmp_path / "a"
    path.mkdir()
    (path / "1.txt").write_bytes("a plain text".encode(encoding))
    source = tmp_path if name == "folder" else path / "1.txt"
    more = {} if name == "folder" else {"pattern": "(?P<text>.*)", "label": ""}
    with pytest.raises(DataError, match=r"zeros between.*`encoding`, utf-16-[lb]e"):
        _read(name, source, **more)


def test_a_cell_may_be_long(tmp_path: Path) -> None:
    path, limit = tmp_path / "rows.csv", csv.field_size_limit()
    path.write_text("text,label\n" + "x" * 140_000 + ",a\n")
    assert len(_read("csv", path)[0].text) == 140_000
    assert csv.field_size_limit() == limit


def test_truth_values_and_whole_numbers_are_written_as_in_json(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[{"text": 2.0, "label": true}, {"text": 2.5, "label": 1.0}]')
    assert _read("json", path) == [Row("2", "true"), Row("2.5", "1")]
    assert _read("jsonl", path) == _read("json", path)


def test_what_a_system_leaves_in_a_folder_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.txt").write_text("words")
    (tmp_path / "a" / "._1.txt").write_bytes(b"\xff\x00")
    for left in ("__MACOSX", ".ipynb_checkpoints"):
        (tmp_path / left / "a").mkdir(parents=True)
        (tmp_path / left / "a" / "1.txt").write_text("again")
    assert _read("folder", tmp_path) == [Row("words", "a")]


def test_of_a_folder_the_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "of no pattern").symlink_to(tmp_path / "gone")
    (tmp_path / "a" / "2.txt").write_bytes(b"l\xednea")
    with pytest.raises(DataError, match=r"file a/2\.txt is not in the encoding"):
        _read("folder", tmp_path)
    (tmp_path / "a" / "1.txt").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=r"file a/1\.txt cannot be read: No such file"):
        _read("folder", tmp_path)


def test_a_catalogue_tells_contexts_domains_and_what_is_no_translation(
    tmp_path: Path,
) -> None:
    found = {"menu\x04Open": ["Ouvrir"], "Go": ["Go"], "Shut": "Fermer"}
    (tmp_path / "lab.json").write_text(json.dumps(found))
    wanted = {"text": ("domain", "context", "source")}
    assert _read("gettext", tmp_path, **wanted) == [
        Row("lab menu Open", "Ouvrir"),
        Fault("lab.json, 'Go'", "whose translation is the source itself"),
        Fault("lab.json, 'Shut'", "that are no list of translations"),
    ]
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(DataError, match=r"file other\.json: a JSON list; a catalogue"):
        _read("gettext", tmp_path)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        _read("csv", tmp_path / "none.csv")


def test_a_dataset_of_a_hub_is_read_by_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def load_dataset(name: str, split: str) -> list[dict[str, Any]]:
        asked.append((name, split))
        return [{"text": "some", "label": 3}]

    library = types.ModuleType("datasets")
    vars(library)["load_dataset"] = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", library)
    reading = Reading(format="hub", dataset="some/set", split="validation")
    assert list(reading.rows()) == [Row("some", "3")]
    assert asked == [("some/set", "validation")]


def test_without_the_library_for_hubs_its_installation_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="pip install datasets"):
        list(Reading(format="hub", dataset="some/set").rows())


def test_a_table_whose_lines_end_as_on_old_machines_is_read(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"text,label\rone,a\rtwo,b\r")
    assert _read("csv", tmp_path / "rows.csv") == [Row("one", "a"), Row("two", "b")]


@pytest.mark.parametrize("told", ["sep=;\r\n", '"sep=;"\n', "SEP=;\n"])
def test_the_line_by_which_excel_tells_a_delimiter_is_no_header(
    told: str, tmp_path: Path
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(told + "text;label;a,b,c\none, two;1;\nthree;\n", newline="")
    fault = Fault("line 4", "without a label")
    assert _read("csv", path) == [Row("one, two", "1"), fault]
    assert [row.where for row in _read("csv", path)] == ["line 3", "line 4"]


@pytest.mark.parametrize(
    "told", ['sep=""\n', 'sep="\n', '"sep="\n', "sep=\n", "sep=\r"]
)
def test_a_line_that_tells_no_delimiter_is_the_header_that_it_looks_like(
    told: str, tmp_path: Path
) -> None:
    (tmp_path / "rows.csv").write_text(told + "text,label\none,a\n", newline="")
    with pytest.raises(DataError, match=r"no column 'text', .* it has 'sep="):
        _read("csv", tmp_path / "rows.csv")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_header_may_have_line_ends_inside_quotes(end: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    header = '"Rated,\nby whom?";"text\n\nof it";label'
    path.write_text(f'{header}{end}me;"one\ntwo";1{end};three;{end}', newline="")
    first, fault = _read("csv", path, text=("text\n\nof it",))
    assert first == Row("one\ntwo", "1")
    assert (first.where, fault.where) == ("line 5", "line 7")


def test_a_quote_in_a_header_that_is_no_quotation_is_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('text;label;5" wide\n' + "one, two;a;\n" * 100)
    assert _read("csv", path) == [Row("one, two", "a")] * 100


@pytest.mark.parametrize("name", ["csv", "folder", "jsonl", "lines", "tsv"])
def test_text_with_a_nul_in_it_is_told_by_its_row(name: str, tmp_path: Path) -> None:
    path = tmp_path / "rows"
    _WRITERS[name](path)
    file, old = (path / "b" / "1.txt" if name == "folder" else path), "dos"
    text = file.read_text(encoding="utf-8-sig")
    nul = "\\u0000" if name == "jsonl" else "\0"
    file.write_text(text.replace(old, nul + old), newline="")
    good, fault = _read(name, path)
    assert good == _ROWS[0]
    assert isinstance(fault, Fault)
    assert "a NUL character (`tr -d" in fault.why
    assert fault.where == {"folder": "b/1.txt", "csv": "line 3", "tsv": "line 3"}.get(
        name, "line 2"
    )


def test_bytes_in_parquet_are_no_text(tmp_path: Path) -> None:
    table = pa.table({"text": [b"a"], "label": [1]})
    pq.write_table(table, tmp_path / "rows.parquet")
    (found,) = _read("parquet", tmp_path / "rows.parquet")
    assert found == Fault(
        "row 1", "with bytes (decode that column before saving) in 'text'"
    )


def test_a_line_without_one_of_the_patterns_groups_does_not_match(
    tmp_path: Path,
) -> None:
    (tmp_path / "rows").write_text("1 text\n0\n")
    pattern = "(?P<label>[01])(?: (?P<text>.*))?"
    found = _read("lines", tmp_path / "rows", pattern=pattern)
    assert found == [Row("text", "1"), Fault("line 2", UNMATCHED)]


@pytest.mark.parametrize("place", [0.3, 0.99])
def test_parquet_that_is_damaged_within_is_told(place: float, tmp_path: Path) -> None:
    texts = [f"text {i}, {'words ' * 9}" for i in range(3000)]
    table = pa.table({"text": texts, "label": ["a"] * len(texts)})
    path = tmp_path / "rows.parquet"
    pq.write_table(table, path)
    whole = path.read_bytes()
    at = int(place * (len(whole) - 200))
    path.write_bytes(whole[:at] + b"\xff" * 150 + whole[at + 150 :])
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        _read("parquet", path)
