"""Temporary files of checkpoints: named by who writes them, so that those of killed writers are found and removed."""

from __future__ import annotations

import itertools
import os
import re
import socket
import time
from pathlib import Path

from datamodules.common.locks import is_alive

_number = itertools.count()
# A temporary file of another machine cannot be asked whether its writer lives; no save takes this long.
ORPHAN_SECONDS = 3600.0


def temporary_of(target: Path) -> Path:
    """A new name beside a checkpoint, with this machine and process in it."""
    return target.with_name(f".{target.name}.{host()}-{os.getpid()}-{next(_number)}.tmp")


def host() -> str:
    """This machine, as such names have it."""
    return re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname())


def sweep(directory: Path) -> None:
    """Remove temporary files whose writer was killed."""
    for path in directory.glob(".*.ckpt.*.tmp"):
        machine, _, rest = path.name.removesuffix(".tmp").rpartition(".")[2].partition("-")
        process = rest.partition("-")[0]
        try:
            orphan = machine == host() and process.isdigit() and not is_alive(int(process))
            if orphan or time.time() - path.stat().st_mtime > ORPHAN_SECONDS:
                path.unlink(missing_ok=True)
        except OSError:  # somebody else's, or gone in the meantime
            continue
