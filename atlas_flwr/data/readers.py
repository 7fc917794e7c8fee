# SPDX-License-Identifier: Apache-2.0
"""Readers: files of several formats as rows of text and label."""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
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
        Of the file.
    pattern : str
        ``lines``: matches a line, with groups ``label`` and ``text``. ``folder``:
        matches a file's name, with a group ``label``.
    text : tuple[str, ...]
        Fields that are joined to the text.
    label : str
        The label's field.
    max_lines : int
        Lines of each file to read, above 0, for ``folder``.
    """

    format: str
    package: str = ""
    member: str = ""
    path: str = ""
    dataset: str = ""
    split: str = "train"
    encoding: str = "utf-8"
    pattern: str = ""
    text: tuple[str, ...] = ("text",)
    label: str = "label"
    max_lines: int = 0

    @property
    def where(self) -> str:
        """The source, for messages."""
        return self.path or self.dataset or f"{self.package}:{self.member}"

    def rows(self) -> Iterator[Row]:
        """Read all rows."""
        return READERS[self.format](self)

    def bytes(self) -> bytes:
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
        """Read the file as text."""
        return self.bytes().decode(self.encoding)

    def picked(self, records: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
        """Pick the text's and the label's fields out of records.

        Raises
        ------
        DataError
            If a record lacks one.
        """
        for record in records:
            missing = [k for k in (*self.text, self.label) if k not in record]
            if missing:
                raise DataError(
                    f"{self.where} has no field {missing[0]!r}; its fields are "
                    f"{', '.join(map(str, record))}"
                )
            text = " ".join(str(record[key]) for key in self.text)
            yield Row(text, str(record[self.label]))


def _delimited(delimiter: str) -> Callable[[Reading], Iterator[Row]]:
    def read(reading: Reading) -> Iterator[Row]:
        file = io.StringIO(reading.string(), newline="")
        if delimiter == ",":
            return reading.picked(csv.DictReader(file))
        # Tab-separated text is seldom quoted, but often has quotes in it.
        unquoted = csv.DictReader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE)
        return reading.picked(unquoted)

    return read


def _jsonl(reading: Reading) -> Iterator[Row]:
    lines = reading.string().splitlines()
    return reading.picked(json.loads(line) for line in lines if line.strip())


def _parquet(reading: Reading) -> Iterator[Row]:
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(reading.bytes()))
    return reading.picked(table.to_pylist())


def _lines(reading: Reading) -> Iterator[Row]:
    pattern = re.compile(reading.pattern)
    for number, line in enumerate(reading.string().splitlines(), start=1):
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
            lines = content.decode(reading.encoding).splitlines()
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
        from datasets import load_dataset
    except ModuleNotFoundError:
        raise DataError(
            f"dataset {reading.dataset!r} is on a hub: pip install datasets"
        ) from None
    return reading.picked(load_dataset(reading.dataset, split=reading.split))


READERS: Mapping[str, Callable[[Reading], Iterator[Row]]] = {
    "csv": _delimited(","),
    "folder": _folder,
    "hub": _hub,
    "jsonl": _jsonl,
    "lines": _lines,
    "parquet": _parquet,
    "tsv": _delimited("\t"),
}
