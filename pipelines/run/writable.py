"""Whether a command can write what it is to write, asked before it does any work."""

from __future__ import annotations

from pathlib import Path
from tempfile import NamedTemporaryFile

from pytorch_lightning.utilities import rank_zero_only

from datamodules.common.errors import UserError


@rank_zero_only
def check_writable(folder: Path, way_out: str) -> None:
    """Write and remove an empty file in a folder, or in the nearest one above that exists.

    Args:
        folder: Where files will be written.
        way_out: What to do where that cannot be.

    Raises:
        UserError: If it cannot be written; the folder and the way out are named.
    """
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    try:
        with NamedTemporaryFile(dir=existing, prefix=".writable."):
            pass
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): {way_out}.") from None
