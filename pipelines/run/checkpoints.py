"""Checkpoint files that are either complete or not there, and are never executed."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from pytorch_lightning.plugins.io import TorchCheckpointIO

from datamodules.common.errors import UserError
from pipelines.exported.metadata import is_exported, read_metadata
from pipelines.run.plain_values import plain_checkpoint
from pipelines.run.temporary import sweep, temporary_of
from tasks.finite import first_spoiled

#: In place of a file: a save of which nothing is written.
TRIAL = "trial.ckpt"


class NotSavedError(UserError):
    """A checkpoint could not be written, for want of room most often; an older file of its name is intact."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs, and renames; loads tensors and plain values only.

    Lightning writes to TMPDIR and then copies, so that a kill leaves an unreadable file where TMPDIR is on another
    filesystem: https://github.com/Lightning-AI/pytorch-lightning/issues/21253. Remote paths (``s3://...``) are left
    to Lightning and fsspec.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint; the file of that name is the old or the new one at any time.

        Args:
            checkpoint: Tensors, and values that ``plain_checkpoint`` makes plain.
            path: The file to write; its directory is made. ``TRIAL`` only looks whether it could be read back.
            storage_options: Refused, as by Lightning.

        Raises:
            NotSavedError: If it cannot be written (a full disk), naming the file and the free space. An older file of
                that name is intact.
            UserError: If it holds what could not be read back.
        """
        checkpoint = plain_checkpoint(checkpoint)
        if str(path) == TRIAL:
            return
        if _is_remote(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        temporary = temporary_of(target)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            sweep(target.parent)
            with open(temporary, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
            _sync_directory(target.parent)
        except (OSError, RuntimeError) as error:
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):  # torch's zip writer hides the reason behind a RuntimeError
                if "PytorchStreamWriter" not in str(error) and "inline_container" not in str(error):
                    raise  # not about writing: a value that cannot be saved
                cause = OSError(None, str(error).partition("\n")[0])
            free = shutil.disk_usage(_existing(target)).free / 2**20
            older = "the older file of that name is intact" if target.exists() else "nothing was written"
            raise NotSavedError(
                f"cannot write the checkpoint {target} ({cause.strerror or cause}; {free:.0f} MiB free there); {older}."
                " Make room there, or choose another place with --runs_dir."
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | torch.device | str | None = lambda storage, location: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint; nothing in it is ever executed.

        Args:
            path: A local file, or a remote one by an fsspec path.
            map_location: As in ``torch.load``.
            weights_only: Ignored: always True.

        Returns:
            The checkpoint.

        Raises:
            UserError: For a web address, a damaged file, and one that holds more than tensors and plain values.
            UserError: If there is no such file.
        """
        if str(path).lower().startswith(("http:", "https:")):
            raise UserError(
                f"{path} is a web address: download the checkpoint, compare its sha256 with the one published, and "
                "give the file"
            )
        if _is_remote(path):
            try:
                checkpoint: dict[str, Any] = super().load_checkpoint(path, map_location=map_location, weights_only=True)
            except FileNotFoundError:
                raise UserError(f"there is no checkpoint {path}") from None
            return checkpoint
        if not Path(path).is_file():
            raise UserError(f"there is no checkpoint {path}")
        return _load(Path(path), map_location)


def readable(path: str | os.PathLike[str]) -> bool:
    """Tell whether a checkpoint file is complete, undamaged, and of tensors and plain values only.

    Reads the whole file: 200 MB in 0.07 s where it is still in memory.
    """
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # torch is stricter about the directory
    except Exception:
        return False  # damage shows itself in many ways
    return _intact(path)


def newest_good_checkpoint(directory: str | os.PathLike[str]) -> Path | None:
    """Choose the checkpoint to go on from.

    Args:
        directory: Folder with ``*.ckpt`` files.

    Returns:
        The readable file with the greatest ``global_step``, of several the one written last; None if there is none.
        One without accumulated gradients goes before one that lacks them. Each newer one that cannot be read, or whose
        weights are not finite, is named in a warning.
    """
    found: list[tuple[bool, int, float, Path]] = []
    for path in sorted(Path(directory).glob("*.ckpt")):
        try:
            # Mapped, so that only the small pickle is read here. The steps come first, the costly check of the bits
            # is done for the newest only.
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            is_whole = not checkpoint.get("task_state", {}).get("mid_step", False)
            found.append((is_whole, int(checkpoint["global_step"]), path.stat().st_mtime, path))
        except Exception as error:
            # A damaged file fails in many ways. None of them may keep an older, good file from being used.
            _warn_unreadable(path, _reason(error))
    for _, _, _, path in sorted(found, reverse=True):
        if not readable(path):
            _warn_unreadable(path, "checksums differ")
        elif name := first_spoiled(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"]):
            warnings.warn(f"{path} is skipped: {name} is NaN or infinite", stacklevel=2)
        else:
            return path
    return None


def _reason(error: Exception) -> str:
    """Why a file could not be read, without the names of torch's readers."""
    if isinstance(error, pickle.UnpicklingError | EOFError) or "ZipArchive" in str(error):
        return "it is cut short, or no checkpoint"
    if isinstance(error, RuntimeError) and ("zip" in str(error) or "Pytorch" in str(error)):
        return "it is cut short, or no checkpoint"
    if isinstance(error, KeyError):
        return f"it holds no {error}: weights only, or something else"
    return str(
        getattr(error, "strerror", None) or f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    )


def open_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint whose tensors are mapped from the file, not read.

    Raises:
        UserError: As ``AtomicCheckpointIO.load_checkpoint``.
    """
    if not readable(path):
        _load(path, "cpu")  # says why
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return checkpoint if isinstance(checkpoint, dict) else {}


def _load(path: Path, map_location: Any) -> dict[str, Any]:
    problem = "checksums differ"
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        if _intact(path):
            return checkpoint
    except pickle.UnpicklingError as error:
        if what := re.search(r"(?:GLOBAL |class |function )[\w.]+", str(error)):
            raise UserError(
                f"{path} holds more than tensors and plain values ({what[0]}) and was not loaded, "
                "since that could run foreign code: it was not written by this program, or is damaged"
            ) from error
        problem = "it does not look like a checkpoint"
    except (RuntimeError, EOFError, OSError) as error:  # OSError: Invalid argument, for an empty file
        if readable(path):
            raise  # not about the file: out of memory, for example
        problem = _reason(error)
    others = [
        other for name in ("last.ckpt", "best.ckpt") if (other := path.with_name(name)) != path and other.exists()
    ]
    another = f"use {others[0]}, for example" if others else "use another checkpoint"
    raise UserError(f"{path} is incomplete or damaged ({problem}): {another}.")


def _intact(path: str | os.PathLike[str]) -> bool:
    """Compare the CRC-32 of every member of the zip file: torch writes them, but does not look at them."""
    try:
        with zipfile.ZipFile(path) as file:
            # A tensor with the mark of a directory: torch reads nothing, and returns what was in memory.
            if any(info.external_attr & 0x10 for info in file.infolist()):
                return False
            return file.testzip() is None
    except Exception:
        # Flipped bits in a header ask for decompression, passwords or impossible offsets: any error means damage.
        return False


def _warn_unreadable(path: Path, reason: str) -> None:
    warnings.warn(f"{path} cannot be read and is skipped ({reason})", stacklevel=3)


def _existing(path: Path) -> Path:
    """The nearest folder above that exists."""
    return next(folder for folder in path.absolute().parents if folder.exists())


def _is_remote(path: str | os.PathLike[str]) -> bool:
    return "://" in str(path)


def _sync_directory(directory: Path) -> None:
    """Make a rename survive a power failure."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def carried_text(path: Path) -> Any:
    """The config that a checkpoint or an exported file carries, as text; None where a checkpoint has none.

    Raises:
        UserError: If there is no such file, or it is damaged.
    """
    return read_metadata(path)["config"] if is_exported(path) else open_checkpoint(path).get("config")


def read_checkpoint_config(path: Path) -> dict[str, Any]:
    """The config that a checkpoint carries.

    Raises:
        UserError: If it carries none, or is damaged.
    """
    text = open_checkpoint(path).get("config")
    if text is None:
        raise UserError(f"{path} carries no config: it was not written by this command line. Give --config FILE too.")
    return dict(yaml.safe_load(text))


def global_step_of(path: Path) -> int:
    """Optimizer steps that were taken when a checkpoint was written."""
    return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"])
