"""The loop as a state machine: stages that leave files, manifests that say what they read, nothing done twice.

A stage is done when its ``manifest.json`` has been renamed into place. It names the settings and the digests of the
files that the stage read: where they are the same, the stage is not repeated; where they differ, it is done again, and
so is what depends on files that came out differently. A stage that was killed goes on where it was.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.common.errors import UserError

USAGE = """usage: python -m pipelines noisy-student --config FILE [--key value]

Trains a teacher, labels the pool, selects, trains students, and reports what the unlabelled images were worth.
The same command goes on where it was stopped. Keys: docs/noisy_student.md."""


class Output(NamedTuple):
    """A file that a stage left, and the digest of its content."""

    path: Path
    digest: str


Outputs = dict[str, Output]


class StageError(UserError):
    """A stage's command failed; its own message stands above.

    Args:
        message: What to say.
        status: The exit status that follows from it.
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def main(args: list[str], *, one_generation: bool = False) -> int:
    """The command ``noisy-student``.

    Args:
        args: Its words.
        one_generation: What ``fit`` does with the loop's config: the first student of the first seed, no controls.

    Returns:
        The exit status: 0 success, 1 a failure, 2 a mistake in the command or the config, 128 plus the number of the
        signal that ended a training.
    """
    if not args or "--help" in args or "-h" in args:
        print(USAGE)
        return 0
    ranks = [name for name in ("RANK", "LOCAL_RANK") if name in os.environ]
    if ranks:
        print(
            f"error: noisy-student is one process, but {ranks[0]} is set: start it without a launcher, and give the"
            " launcher as launch: in the config.",
            file=sys.stderr,
        )
        return 2
    from datamodules.common.errors import UserError
    from pipelines.config.ready import complete
    from pipelines.config.reasons import reason_of
    from pipelines.noisy_student.loop import run
    from pipelines.noisy_student.settings import first_generation, read_settings
    from pipelines.quiet import quieten

    quieten()
    try:
        settings = read_settings(complete(["noisy-student", *args]))
        run(first_generation(settings) if one_generation else settings)
    except Exception as error:
        if os.environ.get("PIPELINES_TRACEBACK"):
            traceback.print_exc()
        message = str(error) if isinstance(error, UserError | StageError) else reason_of(error)
        if message is None:
            traceback.print_exc()
            return 1
        print(f"error: {message}", file=sys.stderr, flush=True)
        return error.status if isinstance(error, StageError) else 2
    return 0


def run_stage(
    directory: Path,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Output],
    work: Callable[[Path], Mapping[str, str]],
) -> Outputs:
    """Do a stage, or take what it left before.

    Args:
        directory: The stage's own.
        settings: Plain values that its outcome depends on.
        inputs: What it reads.
        work: Does it in the directory, and goes on with what a killed one left there; returns name -> file name.

    Returns:
        Its files, by name.
    """
    key = {"settings": json.loads(json.dumps(settings)), "inputs": {n: o.digest for n, o in inputs.items()}}
    manifest = read_json(directory / "manifest.json")
    known = manifest or read_json(directory / "started.json")
    label = "/".join(directory.parts[-2:])
    if manifest is not None and manifest["key"] == key:
        outputs = {n: Output(directory / o["file"], o["digest"]) for n, o in manifest["outputs"].items()}
        gone = [o.path for o in outputs.values() if not o.path.exists()]
        if not gone:
            say(f"{label}: done before")
            return outputs
        say(f"{label}: {gone[0].name} is gone; done again")
    elif known is not None and known["key"] != key:
        say(f"{label}: {_difference(known['key'], key)}; done again (the old one is kept as {directory.name}.replaced)")
        old = directory.with_name(f"{directory.name}.replaced")
        shutil.rmtree(old, ignore_errors=True)
        directory.rename(old)
    elif known is not None:
        say(f"{label}: goes on")
    else:
        say(f"{label}: starts")
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "started.json", {"key": key})
    began = time.monotonic()
    files = work(directory)
    outputs = {name: Output(directory / file, digest_of(directory / file)) for name, file in files.items()}
    written = {name: {"file": files[name], "digest": output.digest} for name, output in outputs.items()}
    write_json(
        directory / "manifest.json", {"key": key, "outputs": written, "seconds": round(time.monotonic() - began, 1)}
    )
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


def read_json(path: Path) -> Any:
    """What a file holds; None where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def write_json(path: Path, values: Any) -> None:
    """Write in one step: the file is the old or the new one at any time."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(values, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def say(text: str) -> None:
    """One line of progress."""
    print(f"noisy-student: {text}", flush=True)


@contextlib.contextmanager
def only_one(root: Path) -> Iterator[None]:
    """Keep a second process out of a run directory.

    Raises:
        StageError: If there is one.
    """
    root.mkdir(parents=True, exist_ok=True)
    with open(root / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StageError(
                f"another noisy-student works in {root}: wait for it, or give this one another --name."
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
