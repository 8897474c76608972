"""What is written beside an exported file, ``NAME.json``, and reading it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamodules.common.errors import UserError
from datamodules.common.files import read_json

#: The file's suffix of each format.
SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2", "openvino": ".xml"}
#: In the name of a file that ``verify`` refused.
REFUSED = ".refused"


def is_exported(path: str | Path) -> bool:
    """Whether a file is an exported model, by its name."""
    return Path(path).suffix in SUFFIXES.values()


def metadata_path(path: str | Path) -> Path:
    """``NAME.json`` of an exported file."""
    path = Path(path)
    return path.with_name(path.stem.removesuffix(REFUSED) + ".json")


def read_metadata(path: str | Path, *, refused: bool = False) -> dict[str, Any]:
    """The metadata of an exported file.

    Args:
        path: The exported file.
        refused: Whether one that ``verify`` refused is taken, too.

    Raises:
        UserError: If there are none, or they are of another file, or ``verify`` refused the file.
    """
    path = Path(path)
    about = read_json(metadata_path(path))
    if not isinstance(about, dict) or not {"task", "config", "file", "format"} <= about.keys():
        raise UserError(
            f"{path} has no metadata: {metadata_path(path)} is missing or was not written by `export`. Keep both beside"
            " each other."
        )
    if about["file"] != path.name:
        raise UserError(f"{metadata_path(path)} describes {about['file']}, not {path.name}: export again.")
    verified = about.get("verified")
    if not refused and verified and not verified["passed"]:
        raise UserError(
            f"{path} was refused by `verify`: {verified['reason']}. Export it again, or accept the difference with"
            " `verify --tolerance`."
        )
    return about
