# SPDX-License-Identifier: Apache-2.0
"""Tables of text, with a header: comma- or tab-separated."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from atlas_flwr.data.readers.records import picked_row
from atlas_flwr.data.rows import Fault, Row
from atlas_flwr.errors import DataError

if TYPE_CHECKING:
    from atlas_flwr.data.readers.reading import Reading

__all__ = ["read_csv", "read_tsv"]

DELIMITERS = ",;\t|"
# Excel's own first line; what is no delimiter csv takes, or since Python 3.13 does not.
TOLD = re.compile(r'"?sep=([^"\r\n])"?[\r\n]*', re.IGNORECASE)
HEADER = 64  # lines of a header at most, where line ends stand inside its quotes
LONGEST = 1 << 24  # characters of a field: a quote that never closes takes no more


class _Tabs(csv.excel_tab):
    """Tab-separated text is seldom quoted, but often has quotes in it."""

    quoting = csv.QUOTE_NONE


def read_csv(reading: Reading) -> Iterator[Row | Fault]:
    """Read a table whose delimiter is given, or told by its header."""
    lines = _lines(reading)
    first = next(lines, "")
    told = TOLD.fullmatch(first)
    header = _header(chain(() if told else [first], lines))
    every: Iterator[str] = chain(header, lines)
    if first.endswith("\r"):  # as old spreadsheets end lines
        every = (line.replace("\r", "\n") for line in every)
    delimiter = reading.delimiter
    if not delimiter:
        delimiter = told[1] if told else _delimiter(reading, header)
    given = {"delimiter": delimiter, "strict": True}
    yield from _table(reading, every, csv.excel, before=1 if told else 0, **given)


def read_tsv(reading: Reading) -> Iterator[Row | Fault]:
    """Read a table with tabs, in which quotes are text."""
    yield from _table(reading, _lines(reading), _Tabs)


def _lines(reading: Reading) -> Iterator[str]:
    """Yield lines with their ends, a line feed for CR LF; CR CR LF is one end."""
    before = ""  # an end of line may go on in the next
    for line in reading.ended_lines(""):
        if before.endswith("\r") and line == "\r\n":
            before += "\n"
            continue
        if before:
            yield before
        before = line.replace("\r\n", "\n")
    if before:
        yield before


def _header(lines: Iterator[str]) -> list[str]:
    """Take the first line, and those after it while a quote in them is open."""
    taken: list[str] = []
    for line in islice(lines, HEADER):
        taken.append(line)
        if sum(part.count('"') for part in taken) % 2 == 0:
            break
    return taken


def _delimiter(reading: Reading, header: Sequence[str]) -> str:
    """Return the delimiter by which a header has most of the wanted fields."""
    wanted = set(reading.wanted)

    def named(delimiter: str) -> int:
        try:
            names = next(csv.reader(header, delimiter=delimiter), [])
        except csv.Error:
            return 0  # the table is read again, and says what is wrong
        return len(wanted.intersection(names))

    return max(DELIMITERS, key=named)


def _table(
    reading: Reading,
    lines: Iterator[str],
    dialect: type[csv.Dialect],
    before: int = 0,
    **options: Any,
) -> Iterator[Row | Fault]:
    """Read a table; so many lines stand ``before`` its header."""
    table = csv.DictReader(lines, dialect=dialect, **options)
    began = before
    try:
        with _long_fields():
            names = table.fieldnames
        _check_header(reading, names or ())
        began = before + table.line_num
        for number, record in enumerate(_records(table)):
            where, began = f"line {began + 1}", before + table.line_num
            if number < reading.skip_rows:
                continue
            if None in record:
                why = "with more fields than the header: is a delimiter unquoted?"
                yield Fault(where, why)
            else:
                yield picked_row(reading, where, record)
    except csv.Error as error:
        quoted = dialect.quoting != csv.QUOTE_NONE
        hint = "is a quote never closed?" if quoted else "is a line end missing?"
        raise DataError(
            f"{reading.where}: the row that begins in line {began + 1} cannot be read "
            f"({error}): {hint}"
        ) from None


def _records(table: csv.DictReader[str]) -> Iterator[dict[str | Any, Any]]:
    while True:
        with _long_fields():
            record = next(table, None)
        if record is None:
            return
        yield record


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let fields be long while one row is read: the limit is the whole process's."""
    before = csv.field_size_limit(LONGEST)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _check_header(reading: Reading, names: Sequence[str]) -> None:
    if not names:
        raise DataError(
            f"{reading.where}: its first line is empty; it must name the columns"
        )
    faults = [
        f"{'two columns' if key in names else 'no column'} {key!r}"
        for key in reading.wanted
        if names.count(key) != 1
    ]
    if not faults:
        return
    shown = ", ".join(map(repr, names))
    keys = "`prompt`, `response`" if reading.response else "`text`, `label`"
    mend = (
        "These are not its characters: set the task's `encoding`, utf-16-le or "
        "utf-8-sig for one"
        if any(mark in shown for mark in ("\\x00", "\\ufeff"))
        else f"Rename a column, or set the task's {keys} or `delimiter`"
    )
    raise DataError(
        f"{reading.where}: its header has {', '.join(faults)}; it has {shown}. {mend}"
    )
