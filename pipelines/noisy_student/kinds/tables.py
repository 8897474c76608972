"""Lists of pseudo-labels, which carry the digest of what they were made from, and the arrays of evaluations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.common.files import atomic_path

NOTE = "pseudo_label"  # key of the file's metadata


def write_table(
    columns: Mapping[str, Sequence[Any] | NDArray[Any]], output: Path, note: dict[str, str] | None = None
) -> None:
    """Write a parquet file in one step.

    Args:
        columns: By name.
        output: The file.
        note: Kept in the file's metadata: the ``digest`` of what the labels were made from.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(dict(columns))
    if note is not None:
        table = table.replace_schema_metadata({NOTE: json.dumps(note)})
    with atomic_path(output) as temporary:
        pq.write_table(table, temporary)


def digest_of_table(file: Path) -> str | None:
    """The digest that ``write_table`` kept; None where there is no file."""
    import pyarrow.parquet as pq

    if not file.is_file():
        return None
    metadata = pq.read_schema(file).metadata or {}
    digest: str | None = json.loads(metadata.get(NOTE.encode(), b"{}")).get("digest")
    return digest


def write_arrays(output: Path, **arrays: Any) -> None:
    """Write an ``.npz`` file in one step."""
    with atomic_path(output) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)
