"""Tables that people have beside their images: the class of each file (CSV), or a list of the files to use."""

from __future__ import annotations

import csv
import hashlib
import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath

from ..bounds import LARGEST_TABLE
from ..errors import DataError, shown
from ..inputs import read_text

_FILE_COLUMNS = (
    *("file", "path", "filename", "filepath", "image", "imagepath", "imageid", "imagename"),
    *("img", "id", "name"),
)
_LABEL_COLUMNS = ("label", "class", "classname", "category", "target", "labelname", "species", "breed", "y")


@dataclass(frozen=True)
class LabelTable:
    """The classes of files by name.

    Attributes:
        path: of the CSV file.
        rows: what it calls each file → its class.
        digest: sha256 of the rows.
    """

    path: Path
    rows: dict[str, str]
    digest: str

    def of(self, paths: Iterable[str]) -> dict[str, str]:
        """The class of each path that the table names: by its path, or by its end where only one row fits.

        A row may name the whole path, its last parts, or the file without its ending.

        Raises:
            DataError: no row names any of the paths, one names several, or two give one two classes.
        """
        rows = self.rows
        found: dict[str, str] = {}
        taken: defaultdict[str, list[str]] = defaultdict(list)
        first = ""
        for path in paths:
            first = first or path
            parts = path.split("/")
            ends = (normal_form("/".join(parts[at:])) for at in range(len(parts)))
            fits = next((fit for end in ends if (fit := [name for name in (end, _stem(end)) if name in rows])), [])
            if len({rows[name] for name in fits}) > 1:
                raise _two_classes(self.path, *((name, rows[name]) for name in fits))
            if fits:
                found[path] = rows[fits[0]]
                taken[fits[0]].append(path)
        if not found:
            raise DataError(
                f"no row of {self.path} names an image of the data",
                saw=f"the table's {shown(next(iter(rows)))}, the data's {shown(first)}",
                fix="write the path of each file below the data's folder into the first column",
            )
        for known, of_row in taken.items():
            if len(of_row) > 1 and len({PurePosixPath(path).parent for path in of_row}) > 1:
                raise DataError(
                    f"a row of {self.path} fits several images",
                    saw=f"{shown(known)}: {of_row[0]}, {of_row[1]}",
                    fix="write the path of the file below the data's folder",
                )
        return found


def read_labels(path: Path) -> LabelTable:
    """The table in a CSV file: a column of files and a column of classes, with a header or without.

    Columns are known by their names (`file`, `image_id`, `label`, `class`, …), else the first two count. They are
    separated by commas, semicolons or tabs.

    Raises:
        DataError: it cannot be read, holds no rows, or gives a file two classes.
    """
    text = _text(path)
    lines = re.compile("[^\n]*\n|[^\n]+")  # one after the other: all of them at once take many times the file's size
    first = next((line for match in lines.finditer(text) if (line := match[0]).strip()), "")
    reader = csv.reader(
        (match[0] for match in lines.finditer(text)), delimiter=max(",;\t", key=first.count), strict=True
    )
    try:
        return _table(path, ([one.strip() for one in row] for row in reader if any(row)))
    except csv.Error as error:
        raise DataError(f"{path} is not a CSV file", saw=error, fix="each row is `file,label`") from error


def _table(path: Path, rows: Iterator[list[str]]) -> LabelTable:
    head = next(rows, [])
    names = ["" if re.search(r"\d", cell) else re.sub("[^a-z]", "", cell.lower()) for cell in head]
    file = next((names.index(name) for name in _FILE_COLUMNS if name in names), None)
    label = next((names.index(name) for name in _LABEL_COLUMNS if name in names), None)
    if file is None or label is None or file == label:
        file, label = 0, 1
        rows = chain([head] if head else [], rows)
    table: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        if len(row) <= max(file, label):
            raise DataError(
                f"a row of {path} has no label",
                saw=f"row {number}: {shown(row)}",
                fix="write `file,label` into each row",
            )
        name, value = normal_form(_normal(row[file])), row[label]
        if table.setdefault(name, value) != value:
            raise _two_classes(path, (name, table[name]), (name, value))
    table = {name: value for name, value in table.items() if name and value}
    if not table:
        raise DataError(f"the table {path} has no rows", fix="write `file,label` into each row")
    return LabelTable(path, table, hashlib.sha256(repr(sorted(table.items())).encode("utf-8", "replace")).hexdigest())


def _two_classes(path: Path, *rows: tuple[str, str]) -> DataError:
    saw = " and ".join(f"{shown(name)}: {shown(value)}" for name, value in rows)
    return DataError(f"{path} gives a file two classes", saw=saw, fix="leave one of the two rows out")


def read_list(path: Path) -> tuple[str, ...]:
    """The paths in a text file, one on each line, as they stand there; empty lines do not count.

    Raises:
        DataError: it cannot be read, or names no file.
    """
    names = tuple(dict.fromkeys(_normal(line) for line in _text(path).split("\n") if line.strip()))
    if not names:
        raise DataError(f"the list {path} names no file", fix="write the path of one image on each line")
    return names


def normal_form(name: str) -> str:
    """The same for the two forms in which Unicode writes é: macOS and others name one file differently."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _normal(name: str) -> str:
    name = name.strip().replace("\\", "/")
    return posixpath.normpath(name) if name else ""


def _stem(path: str) -> str:
    """The path without the ending of its file."""
    head, dot, ending = path.rpartition(".")
    return head if dot and "/" not in ending else path


def _text(path: Path) -> str:
    try:
        text = read_text(path, LARGEST_TABLE)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text in UTF-8", saw=error.reason, fix="save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read", saw=error.strerror, fix="check the path") from error
    if "\0" in text:
        raise DataError(f"{path} is not a text file", fix="save it as CSV in UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")
