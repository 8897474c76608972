"""What a run was made with: versions of packages, revision, platform and command."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from datamodules.common.files import read_json, write_json
from pipelines.run.masking import masked_words

PACKAGES = [
    "torch",
    "torchvision",
    "pytorch-lightning",
    "timm",
    "albumentations",
    "segmentation-models-pytorch",
    "torchmetrics",
]
PACKAGES += ["wandb", "numpy", "opencv-python-headless", "simplejpeg"]


def environment() -> dict[str, Any]:
    """Package versions, git revision, platform and command of this process, secrets masked."""
    return {
        "command": masked_words(sys.argv),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git": _git_revision(),
        "packages": {package: found for package in PACKAGES if (found := version_of(package)) is not None},
    }


def version_of(package: str) -> str | None:
    """The installed version of a package; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def write_environment(directory: Path) -> None:
    """Add this command to ``environment.json``, a list with one entry a command."""
    path = directory / "environment.json"
    try:
        commands = list(read_json(path) or [])
    except (ValueError, TypeError):  # damaged; it must not stop a resume
        commands = []
    write_json(path, [*commands, environment()])


def _git_revision() -> str | None:
    """Revision of the checkout that this code runs from, with ``-dirty`` where it has changes; None outside git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
