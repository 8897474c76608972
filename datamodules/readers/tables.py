"""CSV and parquet files, and text files of names, as columns of cells."""

from __future__ import annotations

import csv
import io
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.annotations.records import SPLIT_WORDS, split_name
from datamodules.common.errors import UserError, did_you_mean
from datamodules.decoding.files import IMAGE_SUFFIXES
from datamodules.readers.text import read_lines, read_text

#: Suffixes of lists, and what stands for the splits in a path of several.
LIST_SUFFIXES = (".csv", ".parquet", ".txt")
SPLIT_FIELD = "{split}"
_LIST_NAME = re.compile(rf"({SPLIT_WORDS})(?:[-_ ]?(?:set|list|labels?|annotations?|images?|files|data))?")
_BEHIND_IMAGE = re.compile(rf"(?:{'|'.join(f'(?<={re.escape(s)})' for s in IMAGE_SUFFIXES)})[,\s]+", re.IGNORECASE)

Where = Callable[[int], str]  # index of a row -> "FILE, line N"


class Table(NamedTuple):
    """A list's columns: text for CSV, any plain values for parquet; of several lists, one after the other."""

    file: Path  # the first
    columns: dict[str, list[Any]]
    where: Where
    folders: list[Path]  # of each row's list
    splits: list[str | None]  # what the lists' names say of each row

    @property
    def is_text(self) -> bool:
        """Whether it is a text file of names, without a header."""
        return self.file.suffix.lower() == ".txt"

    def require(self, *names: str) -> None:
        """Refuse a table that lacks one of these columns, or has no rows.

        Raises:
            UserError: Naming the columns that it has.
        """
        for name in names:
            if name not in self.columns:
                near = did_you_mean(name, self.columns)
                raise UserError(f"'{self.file}' has no column '{name}' (it has: {', '.join(self.columns)}).{near}")
        if not self.columns[names[0]]:
            raise UserError(f"'{self.file}' has no rows.")


def load_tables(source: str | Path, second: str) -> Table:
    """The rows of a list, or of the lists of the splits; see ``list_files``.

    Args:
        source: The list or lists.
        second: What the second column of text files is called.

    Raises:
        UserError: If a list cannot be read, or they have different columns.
    """
    tables = {split: load_table(file, second) for split, file in list_files(source).items()}
    first, *others = tables.values()
    for other in others:
        if set(other.columns) != set(first.columns):
            raise UserError(
                f"'{first.file}' has the columns {', '.join(first.columns)}, but '{other.file}' has"
                f" {', '.join(other.columns)}. Give them the same."
            )
    lengths = [len(table.folders) for table in tables.values()]
    starts = list(accumulate(lengths, initial=0))

    def where(i: int) -> str:
        part = bisect_right(starts, i) - 1
        return [first, *others][part].where(i - starts[part])

    return Table(
        first.file,
        {name: [cell for table in tables.values() for cell in table.columns[name]] for name in first.columns},
        where,
        [folder for table in tables.values() for folder in table.folders],
        [split for split, length in zip(tables, lengths, strict=True) for _ in range(length)],
    )


def list_files(source: str | Path) -> dict[str | None, Path]:
    """The lists of a source by their splits.

    Args:
        source: One list; a path with ``{split}``, which stands for ``train``, ``val``, ``test`` or another usual word;
            or a folder with ``train.csv`` (``.parquet``, ``.txt``) and perhaps ``val`` and ``test`` in it.

    Raises:
        UserError: If there are none, or two of one split.
    """
    text = str(source)
    if SPLIT_FIELD in text:
        words = SPLIT_WORDS.split("|")
        candidates = [
            (split_name(w), Path(text.replace(SPLIT_FIELD, w))) for w in (*words, *map(str.capitalize, words))
        ]
        found = _by_split((split, file) for split, file in candidates if file.is_file())
        if not found:
            raise UserError(f"'{text}' matches no file (looked in {Path.cwd()}): {SPLIT_FIELD} is train, val or test.")
        return dict(found.items())
    path = Path(source)
    return dict(lists_of_splits(path).items()) if path.is_dir() else {None: path}


def lists_of_splits(folder: Path) -> dict[str, Path]:
    """The lists in a folder that are named after splits: ``train.csv``, ``val_list.txt``, ``test_labels.csv``.

    Raises:
        UserError: If there are two of one split.
    """
    found = []
    for file in sorted(folder.iterdir()):
        match = _LIST_NAME.fullmatch(file.stem.lower())
        if match and file.suffix.lower() in LIST_SUFFIXES and file.is_file():
            found.append((split_name(match[1]), file))
    by_split = _by_split(found)
    return by_split if "train" in by_split else {}


def _by_split(files: Iterable[tuple[str | None, Path]]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for split, file in files:
        other = found.setdefault(str(split), file)
        if other != file and not other.samefile(file):
            raise UserError(f"'{other}' and '{file}' are both of the {split} split; give one of them by its name.")
    return {split: found[split] for split in ("train", "val", "test") if split in found}


def load_table(file: str | Path, second: str = "label") -> Table:
    """The columns of one list.

    Args:
        file: ``.csv``, ``.parquet``, or ``.txt`` without a header: a path a line, perhaps with a word behind it.
        second: What the column of that word is called.

    Raises:
        UserError: If there is no such file, it is neither or cannot be read as such, or two columns have one name.
    """
    file = Path(file)
    if not file.is_file():
        raise UserError(f"List '{file}' does not exist (looked in {Path.cwd()}).")
    if file.suffix.lower() == ".csv":
        return _load_csv(file)
    if file.suffix.lower() == ".txt":
        return _load_text(file, second)
    if file.suffix.lower() == ".parquet":
        import pyarrow.parquet

        try:
            table = pyarrow.parquet.read_table(file)
            columns = {name: table.column(name).to_pylist() for name in table.column_names}
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"'{file}' cannot be read as parquet ({error}).") from error
        _refuse_duplicates(file, table.column_names)
        return _table(file, columns, lambda i: f"{file}, row {i + 1}")
    raise UserError(f"'{file}' is neither a .csv nor a .parquet list, nor a .txt file of names.")


def _table(file: Path, columns: dict[str, list[Any]], where: Where) -> Table:
    rows = len(next(iter(columns.values()), []))
    return Table(file, columns, where, [file.parent] * rows, [None] * rows)


def _load_text(file: Path, second: str) -> Table:
    rows = [(number, _words(line)) for number, line in enumerate(read_lines(file), 1) if line]
    lines = [number for number, _ in rows]
    width = len(rows[0][1]) if rows else 1
    for number, words in rows:
        if len(words) != width or width > 2:
            raise UserError(
                f"{file}, line {number}: {len(words)} parts, where line {lines[0]} has {width}; a line is a path, or a"
                f" path and its {second}, with a blank or a tab between."
            )
    names = ["path", second][:width]
    columns = {name: [words[i] for _, words in rows] for i, name in enumerate(names)}
    return _table(file, columns, lambda i: f"{file}, line {lines[i]}")


def _words(line: str) -> list[str]:
    """The path of a line and what stands behind it."""
    if "\t" in line:
        return [word.strip() for word in line.split("\t") if word.strip()]
    parts = _BEHIND_IMAGE.split(line, 1)  # names of files may have blanks
    if len(parts) == 2 or line.lower().endswith(IMAGE_SUFFIXES):
        return parts
    return line.rsplit(None, 1)


def _load_csv(file: Path) -> Table:
    # Not pandas: it takes classes named "NA" or "None" for missing values, and renames duplicated columns.
    header, rows, lines = _read_csv(file)
    if not header:
        raise UserError(f"'{file}' is empty; its first line must name the columns, for example path,label.")
    if len(header) == 1 and re.search(r"[;\t]", header[0]):
        raise UserError(f"'{file}' is not separated by commas (its first line is '{header[0]}'); save it with commas.")
    _refuse_duplicates(file, header)
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(header):
            raise UserError(f"{file}, line {line}: {len(row)} cells where the header names {len(header)} columns.")
    columns: dict[str, list[Any]] = {name: [row[i] for row in rows] for i, name in enumerate(header)}
    return _table(file, columns, lambda i: f"{file}, line {lines[i]}")


def _read_csv(file: Path) -> tuple[list[str], list[list[str]], list[int]]:
    """The header, the rows that are not empty, and the line where each ends."""
    rows: list[list[str]] = []
    lines: list[int] = []
    reader = csv.reader(io.StringIO(read_text(file), newline=""))
    try:
        header = [name.strip() for name in next(reader, [])]
        for row in reader:
            if row:
                rows.append([cell.strip() for cell in row])
                lines.append(reader.line_num)
    except csv.Error as error:
        raise UserError(f"{file}, line {reader.line_num}: not readable as CSV ({error}).") from error
    return header, rows, lines


def _refuse_duplicates(file: Path, header: list[str]) -> None:
    for name in header:
        if header.count(name) > 1:
            raise UserError(f"'{file}' has the column '{name}' {header.count(name)} times; each name may stand once.")
