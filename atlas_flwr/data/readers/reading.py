# SPDX-License-Identifier: Apache-2.0
"""Where a task's rows come from, and how they are read."""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from atlas_flwr.data.packages import read_member
from atlas_flwr.data.readers.catalogues import read_gettext
from atlas_flwr.data.readers.datasets import read_hub, read_parquet
from atlas_flwr.data.readers.objects import read_json, read_jsonl
from atlas_flwr.data.readers.records import picked_row
from atlas_flwr.data.readers.tables import read_csv, read_tsv
from atlas_flwr.data.readers.texts import read_folder, read_lines
from atlas_flwr.data.rows import Fault, Row
from atlas_flwr.data.templates import template_fields
from atlas_flwr.errors import DataError

__all__ = ["PRESET_ENCODING", "READERS", "Reading"]

PRESET_ENCODING = "utf-8-sig"
LOOK = 200  # bytes by which an encoding is told
PIECE = 1 << 16  # characters
MARKS = {  # the longer one first: the others begin as these do
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
PACKED = (b"PK\x03\x04", b"\x1f\x8b")  # zip, as .xlsx is, and gzip


@dataclass(frozen=True)
class Reading:
    """Where a task's rows come from, and how they are read.

    Attributes
    ----------
    format : str
        A key of :data:`READERS`.
    package, member : str
        A file of a pinned package (see :mod:`atlas_flwr.data.packages`); for
        ``folder`` and ``gettext`` the member is a prefix.
    path : str
        A local file, or folder.
    dataset, split : str
        A dataset on a hub, read with the ``datasets`` library.
    encoding : str
        Of the file; the preset is UTF-8, or UTF-16 or UTF-32 where the file begins with
        its mark.
    delimiter : str
        Between the fields of ``csv``; empty for the one by which the header has the
        wanted fields, of comma, semicolon, tab and bar.
    pattern : str
        ``lines``: matches a line, with groups ``label`` and ``text``. ``folder``:
        matches a file's name, with a group ``label``.
    text : tuple[str, ...]
        Fields that are joined to the text.
    label : str
        The label's field; empty where texts have none.
    prompt, response : str
        Templates that take the places of both, where text is answered by text. Fields
        of a prompt may be empty.
    messages : str
        Field of a conversation, which takes their place.
    client : str
        Field that says whose a row is; for ``lines`` and ``folder``, a group of the
        pattern.
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
    messages: str = ""
    client: str = ""
    max_lines: int = 0
    skip_rows: int = 0

    @property
    def where(self) -> str:
        """The source, for messages."""
        return self.path or self.dataset or f"{self.package}:{self.member}"

    @property
    def wanted(self) -> tuple[str, ...]:
        """The fields that a record must have."""
        own = (self.client,) if self.client else ()
        if self.messages:
            return self.messages, *own
        if not self.response:
            return (*self.text, *((self.label,) if self.label else ()), *own)
        fields = *template_fields(self.prompt), *template_fields(self.response), *own
        return tuple(dict.fromkeys(fields))

    @property
    def may_be_empty(self) -> frozenset[str]:
        """Fields of a prompt that a record may leave empty."""
        if not self.response:
            return frozenset()
        needed = {*template_fields(self.response), self.client}
        return frozenset(template_fields(self.prompt)).difference(needed)

    def rows(self) -> Iterator[Row | Fault]:
        """Read all rows, and name those that cannot be used."""
        return READERS[self.format](self)

    def opened(self) -> BinaryIO:
        """Open the file.

        Raises
        ------
        DataError
            If it is not there.
        """
        if self.package:
            return io.BytesIO(read_member(self.package, self.member))
        path = Path(self.path)
        if not path.is_file():
            kind = "a folder, no file:" if path.is_dir() else "no file"
            raise DataError(
                f"there is {kind} {self.path} (a task's `path` is seen from the "
                "folder of its YAML file)"
            )
        try:
            return path.open("rb")
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror}") from None

    def decoded(self, content: bytes, name: str = "") -> str:
        """Decode text of the source, of the file ``name`` in it."""
        where = f"{self.where}, file {name}" if name else self.where
        encoding = self._encoding(where, content[:LOOK])
        try:
            return content.decode(encoding)
        except (UnicodeDecodeError, LookupError) as error:
            raise _undecoded(where, encoding, error, content[:LOOK]) from None

    def _encoding(self, where: str, first: bytes) -> str:
        """Return the encoding, by the mark that a file begins with where none is set.

        Raises
        ------
        DataError
            If it is packed, or the preset would read UTF-16 without a mark as text with
            zeros in it.
        """
        if first.startswith(PACKED):
            raise DataError(
                f"{where} is a packed file or a spreadsheet, no text: unpack it, or "
                "save the sheet as CSV"
            )
        if self.encoding != PRESET_ENCODING:
            return self.encoding
        for mark, encoding in MARKS.items():
            if first.startswith(mark):
                return encoding
        if first.count(0) >= max(len(first) // 3, 1):
            likely = "utf-16-be" if first.startswith(b"\0") else "utf-16-le"
            raise DataError(
                f"{where} has zeros between its characters, as UTF-16 without a mark: "
                f"set the task's `encoding`, {likely} for one"
            )
        return self.encoding

    def lines(self) -> Iterator[tuple[int, str]]:
        """Read the file's lines that are not blank, with their numbers from 1.

        ``str.splitlines`` would also break at characters that stand inside a text,
        such as U+2028 in JSON or byte 0x85 in Latin-1.

        Raises
        ------
        DataError
            If it is not there, or is not in the task's encoding.
        """
        for number, line in enumerate(self.ended_lines("\n"), start=1):
            if line.strip():
                ends = "\r\n" if line.endswith("\r\n") else "\n"
                yield number, line.removesuffix(ends)

    def ended_lines(self, newline: str) -> Iterator[str]:
        """Read the file's lines with what ends each; ``newline`` as ``open`` takes it.

        The file is never in memory as a whole, as it may be larger than that.

        Raises
        ------
        DataError
            If it is not there, or is not in the task's encoding.
        """
        return self._read(newline, iter)

    def pieces(self) -> Iterator[str]:
        """Read the file's text, a piece at a time, wherever its lines end.

        Raises
        ------
        DataError
            If it is not there, or is not in the task's encoding.
        """
        return self._read("", lambda text: iter(lambda: text.read(PIECE), ""))

    def _read(
        self, newline: str, parts: Callable[[io.TextIOWrapper], Iterator[str]]
    ) -> Iterator[str]:
        with self.opened() as file:
            first = file.read(LOOK)
            file.seek(0)
            encoding = self._encoding(self.where, first)
            try:
                # Held, or it would close the file before that tells its place.
                text = io.TextIOWrapper(file, encoding, newline=newline)
                yield from parts(text)
            except UnicodeDecodeError as error:
                # Its own position counts from the piece that was being read.
                at = file.tell() - len(error.object) + error.start
                why = f"{error.reason} at byte {at:,}"
                raise _undecoded(self.where, encoding, why, first) from None
            except LookupError as error:
                raise _undecoded(self.where, encoding, error, first) from None

    def picked(
        self, records: Iterable[tuple[str, Mapping[str, Any]]]
    ) -> Iterator[Row | Fault]:
        """Pick the text's and the label's fields out of records with their places."""
        for where, record in records:
            yield picked_row(self, where, record)


def _undecoded(
    where: str, encoding: str, why: Exception | str, first: bytes
) -> DataError:
    likely = "utf-16" if b"\0" in first else "cp1252 or latin-1"
    return DataError(
        f"{where} is not in the encoding {encoding!r}: {why}; set the task's "
        f"`encoding`, {likely} for one"
    )


# A new format is an entry here.
READERS: Mapping[str, Callable[[Reading], Iterator[Row | Fault]]] = {
    "csv": read_csv,
    "folder": read_folder,
    "gettext": read_gettext,
    "hub": read_hub,
    "json": read_json,
    "jsonl": read_jsonl,
    "lines": read_lines,
    "parquet": read_parquet,
    "tsv": read_tsv,
}
