"""``metrics.csv`` in the run directory."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from datamodules.common.files import atomic_path
from pipelines.run.saves import FULL, warn


def _plain(value: Any) -> float | int | str:
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, int | str) else float(value)


class MetricsCSV(Logger):
    """Writes ``<directory>/metrics.csv``: one row per step, each call on disk before it returns.

    Lightning's CSVLogger deletes an existing file when it starts again in the same directory, and writes the values of
    training and of validation at one step into two rows. Here a resumed run appends, values of one step share one
    row, and steps strictly increase. Columns are ``step``, ``epoch`` if there is one, and the others by first
    appearance; numbers are written so that reading gives the same bits. A row cut short by a kill is dropped.
    """

    def __init__(self, directory: str | Path) -> None:
        super().__init__()
        self.path = Path(directory) / "metrics.csv"
        self._columns: list[str] = []
        self._last: dict[str, str] = {}  # the last row
        self._start = 0  # offset in bytes of the last row
        self._loaded = False
        self._waiting: dict[int, dict[str, str]] = {}  # rows that found no room

    @property
    def name(self) -> str:
        """Empty: the directory is the run's."""
        return ""

    @property
    def version(self) -> str:
        """Empty: the directory is the run's."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run directory."""
        return str(self.path.parent)

    @property
    def log_dir(self) -> str:
        """The run directory."""
        return str(self.path.parent)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run directory has the configuration in ``config.yaml``."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write one row, or add to the row of that step.

        Args:
            metrics: Numbers, or tensors of one element.
            step: Optimizer step; by default the one after the last.

        Where the disk is full, the row waits in memory, which is said once: the next one writes it too.
        """
        self._load()
        last = int(self._last["step"]) if self._last else -1
        step = last + 1 if step is None else max(0, int(step))
        values = {key: str(_plain(value)) for key, value in metrics.items() if key != "step"}
        columns = self._all_columns(*values)
        was_waiting = bool(self._waiting)
        if was_waiting or columns != self._columns or step < last:
            self._waiting.setdefault(step, {}).update(values)
        else:
            self._append(step, values)
        if self._waiting:
            self._write_waiting(columns, tells=not was_waiting)

    def _append(self, step: int, values: dict[str, str]) -> None:
        """Write one row behind the others, or over the last of them; it waits where there is no room."""
        if not self._last or step > int(self._last["step"]):
            self._start, self._last = self.path.stat().st_size, {"step": str(step)}
        self._last |= values
        line = self._line([self._last.get(column, "") for column in self._columns])
        try:
            with open(self.path, "r+b", buffering=0) as file:
                file.seek(self._start)
                is_whole = file.write(line) == len(line)
                file.truncate()
        except OSError as error:
            if error.errno not in FULL:
                raise
            is_whole = False
        if not is_whole:
            self._waiting[step] = dict(self._last)

    def _write_waiting(self, columns: list[str], *, tells: bool) -> None:
        """Write the file anew, with the rows that wait."""
        kept = self._columns, self._last, self._start
        try:
            self._rewrite(self._waiting, columns)
            self._waiting = {}
        except OSError as error:
            if error.errno not in FULL:
                raise
            self._columns, self._last, self._start = kept
            if tells:
                warn(f"{self.path} has no room ({error.strerror}): its rows are kept in memory until there is some.")

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Try once more to write what waits."""
        if self._waiting:
            self._write_waiting(self._all_columns(), tells=True)

    def _all_columns(self, *more: str) -> list[str]:
        """The file's, those of rows that wait, and more."""
        return self._ordered([*self._columns, *(key for row in self._waiting.values() for key in row), *more])

    @rank_zero_only
    def resume(self, step: int) -> None:
        """Cut the rows that an earlier process wrote after the checkpoint from which the run goes on.

        Args:
            step: The last step that the restored state has logged; rows with a greater one are removed.
        """
        self._load()
        if self._last and int(self._last["step"]) > step:
            self._rewrite({}, self._columns, last_step=step)

    @staticmethod
    def _ordered(columns: Sequence[str]) -> list[str]:
        first = [column for column in ("step", "epoch") if column == "step" or column in columns]
        return list(dict.fromkeys([*first, *columns]))

    @staticmethod
    def _line(fields: Sequence[str]) -> bytes:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(fields)
        return text.getvalue().encode()

    def _rows(self) -> dict[int, dict[str, str]]:
        """Read all complete rows by their step."""
        rows: dict[int, dict[str, str]] = {}
        if not self.path.exists():
            return rows
        text = self.path.read_bytes().rpartition(b"\n")[0].decode(errors="replace")
        reader = csv.reader(io.StringIO(text))
        columns = next(reader, [])
        for fields in reader:
            row = {column: field for column, field in zip(columns, fields, strict=False) if field}
            if len(fields) == len(columns) and row.get("step", "").isdigit():
                rows.setdefault(int(row["step"]), {}).update(row)
        self._columns = columns if "step" in columns else []
        return rows if self._columns else {}

    def _load(self) -> None:
        """Take over an earlier process's file; one cut short, or with rows out of order, is written anew."""
        if self._loaded:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = self._rows()
        if self._columns:
            self._write(rows, self._ordered(self._columns))
        self._loaded = True

    def _rewrite(self, extra: dict[int, dict[str, str]], columns: list[str], last_step: int | None = None) -> None:
        rows = self._rows()
        for step, values in extra.items():
            rows.setdefault(step, {}).update(values)
        self._write({s: row for s, row in rows.items() if last_step is None or s <= last_step}, columns)

    def _write(self, rows: dict[int, dict[str, str]], columns: list[str]) -> None:
        lines = [self._line(columns)]
        self._columns, self._last, self._start = columns, {}, 0
        for step, row in sorted(rows.items()):
            self._last = {**row, "step": str(step)}
            self._start = sum(map(len, lines)) if step == max(rows) else 0
            lines.append(self._line([self._last.get(column, "") for column in columns]))
        with atomic_path(self.path) as temporary:
            temporary.write_bytes(b"".join(lines))
