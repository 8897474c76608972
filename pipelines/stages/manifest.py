"""Stages that leave files, and manifests that say what they read: nothing is done twice.

A stage is done when its ``manifest.json`` has been renamed into place. It names the settings and the digests of the
files that the stage read: where they are the same, the stage is not repeated; where they differ, it is done again, and
so is what depends on files that came out differently. A stage that was killed continues where it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.common.errors import UserError
from datamodules.common.files import read_json, write_json
from datamodules.common.locks import HeldError, held
from pipelines.run.masking import masked


class Output(NamedTuple):
    """A file that a stage left, and the digest of its content."""

    path: Path
    digest: str


Outputs = dict[str, Output]


class StageError(UserError):
    """A stage's command failed; its own message is above.

    Args:
        message: What to say.
        status: The exit status that follows from it.
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


class BusyError(StageError):
    """Another process works in the run directory."""


def run_stage(
    directory: Path,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Output],
    work: Callable[[Path], Mapping[str, str]],
    program: str = "noisy-student",
) -> Outputs:
    """Do a stage, or take what it left before.

    Args:
        directory: The stage's own.
        settings: Plain values that its outcome depends on.
        inputs: What it reads.
        work: Does it in the directory, and continues what a killed one left there; returns name -> file name.
        program: The command, for what is printed.

    Returns:
        Its files, by name.
    """
    plain = masked(json.loads(json.dumps(settings)), marked=True)
    key = {"settings": plain, "inputs": {n: o.digest for n, o in inputs.items()}}
    label = "/".join(directory.parts[-2:])
    done = _done_before(directory, key, label, program)
    if done is not None:
        return done
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "started.json", {"key": key}, sync=True)
    began = time.monotonic()
    files = work(directory)
    outputs = {name: Output(directory / file, digest_of(directory / file)) for name, file in files.items()}
    written = {name: {"file": files[name], "digest": output.digest} for name, output in outputs.items()}
    seconds = round(time.monotonic() - began, 1)
    write_json(directory / "manifest.json", {"key": key, "outputs": written, "seconds": seconds}, sync=True)
    return outputs


def _done_before(directory: Path, key: Mapping[str, Any], label: str, program: str) -> Outputs | None:
    """What a finished stage of the same key left; None where there is work to do, and a line of why."""
    manifest = read_json(directory / "manifest.json")
    known = manifest or read_json(directory / "started.json")
    if known is None:
        say(f"{label}: starts", program)
        return None
    known["key"]["settings"] = masked(known["key"]["settings"], marked=True)  # an older version wrote secrets
    if known["key"] != key:
        say(
            f"{label}: {_difference(known['key'], key)}; done again (the old one is kept as {directory.name}.replaced)",
            program,
        )
        old = directory.with_name(f"{directory.name}.replaced")
        shutil.rmtree(old, ignore_errors=True)
        directory.rename(old)
        return None
    if manifest is None:
        say(f"{label}: continues", program)
        return None
    outputs = {n: Output(directory / o["file"], o["digest"]) for n, o in manifest["outputs"].items()}
    missing = [output.path for output in outputs.values() if not output.path.exists()]
    if missing:
        say(f"{label}: {missing[0].name} is missing; done again", program)
        return None
    say(f"{label}: done before", program)
    return outputs


def digest_of(path: Path) -> str:
    """Of a file's content: of a checkpoint the names and values of its weights, of another file its bytes.

    A checkpoint also holds the paths of its run, which do not belong to the outcome.
    """
    digest = hashlib.sha256()
    if path.suffix == ".ckpt":
        import torch

        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        for name, tensor in sorted(checkpoint["state_dict"].items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
        return digest.hexdigest()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def digest_of_values(values: Any) -> str:
    """Of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def say(text: str, program: str = "noisy-student") -> None:
    """One line of progress."""
    print(f"{program}: {text}", flush=True)


@contextlib.contextmanager
def only_one(root: Path, program: str = "noisy-student") -> Iterator[None]:
    """Keep a second process, also one of another machine, out of a run directory.

    Raises:
        BusyError: If there is one.
    """
    root.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held(root / ".running.lock"))
        except HeldError as holder:
            raise BusyError(
                f"another {program} ({holder}) works in {root}: wait for it, or give this one another --name."
            ) from None
        yield


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first thing that changed, for people."""
    if old["settings"] != new["settings"]:
        path, before, after = next(_changes(old["settings"], new["settings"]))
        return f"{path} was {before!r} and is {after!r}"
    names = [n for n in new["inputs"] if old["inputs"].get(n) != new["inputs"][n]] or list(old["inputs"])
    return f"it reads another {names[0]} than before"


def _changes(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*new, *(k for k in old if k not in new)]:
            if old.get(key) != new.get(key):
                yield from _changes(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    else:
        yield path, old, new
