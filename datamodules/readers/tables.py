"""CSV and parquet files as columns of cells."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.common.errors import UserError, did_you_mean
from datamodules.readers.text import read_text

Where = Callable[[int], str]  # index of a row -> "FILE, line N"


class Table(NamedTuple):
    """A list's columns: text for CSV, any plain values for parquet."""

    file: Path
    columns: dict[str, list[Any]]
    where: Where

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


def load_table(file: str | Path) -> Table:
    """The columns of a list.

    Raises:
        UserError: If there is no such file, it is neither CSV nor parquet or cannot be read as such, or two columns
            have one name.
    """
    file = Path(file)
    if not file.is_file():
        raise UserError(f"List '{file}' does not exist (looked in {Path.cwd()}).")
    if file.suffix.lower() == ".csv":
        return _load_csv(file)
    if file.suffix.lower() == ".parquet":
        import pyarrow.parquet

        try:
            table = pyarrow.parquet.read_table(file)
        except pyarrow.ArrowException as error:
            raise UserError(f"'{file}' cannot be read as parquet ({error}).") from error
        _refuse_duplicates(file, table.column_names)
        columns = {name: table.column(name).to_pylist() for name in table.column_names}
        return Table(file, columns, lambda i: f"{file}, row {i + 1}")
    raise UserError(f"'{file}' is neither a .csv nor a .parquet list.")


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
    return Table(file, columns, lambda i: f"{file}, line {lines[i]}")


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
