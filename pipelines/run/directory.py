"""The run directory: ``<runs_dir>/<name>/<version>/`` and the plain files in it."""

from __future__ import annotations

import csv
import json
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn

from datamodules.common.errors import UserError, examples
from datamodules.common.files import atomic_path, write_text
from pipelines.exported.metadata import is_exported
from pipelines.run.checkpoints import newest_good_checkpoint

#: Arguments of one command, not of the run; a saved config is the same for all commands.
COMMAND_KEYS = (
    "ckpt_path",
    "resume",
    "source",
    "output",
    "weights_only",
    "verbose",
    "return_predictions",
    "C",
    "config",
    "trust",
)


def runs_of(root: str | Path, name: str) -> list[Path]:
    """The run directories of a name, oldest first."""
    folder = Path(root) / name
    if not folder.is_dir():
        return []
    return sorted((d for d in folder.iterdir() if d.is_dir() and d.name.isdigit()), key=lambda d: int(d.name))


def new_run(root: str | Path, name: str) -> Path:
    """Make the next version's directory; two runs that start together get two.

    Raises:
        UserError: If the directory cannot be written, naming it.
    """
    existing = runs_of(root, name)
    version = int(existing[-1].name) + 1 if existing else 0
    while True:
        path = Path(root) / name / str(version)
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            version += 1
        except OSError as error:
            raise UserError(
                f"Cannot make the run directory {path}: {error}. Set --runs_dir to a writable place."
            ) from None
        else:
            return path


def run_of_checkpoint(path: str | Path) -> Path | None:
    """The run directory that a checkpoint lies in, or None for one that was copied elsewhere.

    A stage of noisy student has its checkpoint beside the run that it comes from. An exported file has a folder of its
    own name: what its checkpoint scored is not replaced.
    """
    if is_exported(path):
        return Path(path).with_suffix("")
    folder = Path(path).resolve().parent
    if (folder.parent / "config.yaml").exists():
        return folder.parent
    is_stage = (folder / "config.yaml").exists()
    return next(reversed(runs_of(folder.parent, folder.name)), None) if is_stage else None


def is_stage(run: Path) -> bool:
    """Whether a run is a training of the noisy-student loop, which says itself how it goes on."""
    return (run.parent / "started.json").exists()


def task_name(config: Mapping[str, Any] | None) -> str | None:
    """The class of the task that a config trains, a student's own where it teaches one; None where it names none."""
    model = (config or {}).get("model")
    model = ((model.get("init_args") or {}).get("student") or model) if isinstance(model, dict) else model
    name = model.get("class_path") if isinstance(model, dict) else model
    return name.rpartition(".")[2] if isinstance(name, str) else None


def runs_of_task(root: str | Path, name: str, task: str | None) -> list[Path]:
    """The run directories of a name, oldest first, without those that train another task: names may be equal."""
    found = runs_of(root, name)
    return found if task is None else [run for run in found if _task_of(run) in (task, None)]


def _task_of(run: Path) -> str | None:
    file = run / "config.yaml"
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
    except (yaml.YAMLError, UnicodeDecodeError):
        return None
    return task_name(config) if isinstance(config, dict) else None


def find_checkpoint(root: str | Path, name: str, which: str | None, task: str | None = None) -> Path:
    """A file; or ``best`` (the default) or ``last`` of the newest run of a name that has it.

    Args:
        root: Folder of all runs.
        name: Of the run.
        which: A file, ``best`` or ``last``.
        task: Class of the task; runs of the name that train another one are left out.

    Raises:
        UserError: If there is none; weights that were never trained are not evaluated.
    """
    which = which or "best"
    if which not in ("best", "last"):
        if not Path(which).is_file():
            if which.startswith("[") and "," in which:
                raise UserError(f"--ckpt_path {which} names several checkpoints; this command takes one.")
            raise UserError(f"--ckpt_path {which} does not exist. Give a file, 'best' or 'last'.")
        return Path(which)
    for run in reversed(runs_of_task(root, name, task)):
        path = run / "checkpoints" / f"{which}.ckpt"
        if path.exists():
            return path
    kind = f"{task} run" if task and runs_of(root, name) else "run"
    raise UserError(
        f"--ckpt_path {which}: no {kind} named '{name}' in {Path(root).absolute()} has such a checkpoint. Run `fit`"
        " first, or give --ckpt_path FILE (--name and --runs_dir if the run is elsewhere)."
    )


def best_or_last(checkpoints: Path) -> Path | None:
    """``best.ckpt`` of a folder, or ``last.ckpt`` where there is no best; None without either."""
    return next((path for name in ("best", "last") if (path := checkpoints / f"{name}.ckpt").exists()), None)


def find_resume(
    root: str | Path, name: str, resume: str | None, task: str | None = None
) -> tuple[Path | None, Path | None]:
    """The run that is to be continued, and its newest good checkpoint; None where a new one is to be started.

    Args:
        root: Folder of all runs.
        name: Of the run.
        resume: ``--resume``: ``auto``, a run directory, or None.
        task: Class of the task; ``auto`` leaves out runs of the name that train another one.

    Raises:
        UserError: If a directory is given that has no readable checkpoint, or the newest run has only unusable ones.
    """
    if resume is None:
        return None, None
    if resume == "auto":
        # Only the newest: an older run of the name is another, finished training.
        found = runs_of_task(root, name, task)
        for run in found[-1:]:
            checkpoint = _newest_good(run)
            if checkpoint is not None:
                return run, checkpoint
        why = "has no checkpoint" if found else "is not there"
        rank_zero_info(f"--resume auto: the newest run of '{name}' {why}; starting a new one.")
        return None, None
    run = Path(resume)
    checkpoint = _newest_good(run) if run.is_dir() else None
    if checkpoint is None:
        raise UserError(f"--resume {resume}: there is no run directory with a readable checkpoint there.")
    return run, checkpoint


def _newest_good(run: Path) -> Path | None:
    """The checkpoint to go on from; None where none was ever written.

    Raises:
        UserError: If there are some, and none can be used: a new training in their place would hide the loss.
    """
    checkpoint = newest_good_checkpoint(run / "checkpoints")
    files = sorted((run / "checkpoints").glob("*.ckpt"))
    if checkpoint is None and files:
        raise UserError(
            f"--resume: none of the checkpoints in {run / 'checkpoints'} can be used"
            f" ({examples([file.name for file in files])}; the warnings above say why)."
            " Put a good copy there, or train anew: without --resume, or with another --name."
        )
    return checkpoint


def write_config(directory: Path, config: dict[str, Any]) -> Path:
    """Write ``config.yaml``; where a different one is there (a resumed run), ``config.1.yaml`` and so on."""
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    number = 0
    while True:
        path = directory / ("config.yaml" if number == 0 else f"config.{number}.yaml")
        if not path.exists():
            write_text(path, text)
            return path
        newer = directory / f"config.{number + 1}.yaml"
        if path.read_text(encoding="utf-8") == text and not newer.exists():
            return path
        number += 1


def newest_config(directory: Path) -> dict[str, Any]:
    """The config that a run was last trained with; empty where there is none that can be read."""
    files = [directory / "config.yaml", *sorted(directory.glob("config.*.yaml"), key=lambda p: int(p.suffixes[0][1:]))]
    try:
        return dict(yaml.safe_load(files[-1].read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, yaml.YAMLError):
        return {}


def run_config(config: dict[str, Any], resolved_model: dict[str, Any], resolved_data: dict[str, Any]) -> dict[str, Any]:
    """The config as resolved: without the arguments of one command, with the values that came from the data."""
    config = {k: v for k, v in config.items() if k not in COMMAND_KEYS}
    for part, resolved in (("model", resolved_model), ("data", resolved_data)):
        if isinstance(config.get(part), dict):
            init_args = {**config[part].get("init_args", {})}
            init_args.update({k: v for k, v in resolved.items() if k in init_args})
            config[part] = {**config[part], "init_args": init_args}
    return config


def checkpoint_config(config: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint carries: model, data, name, seed and precision, but not how many devices trained it."""
    kept: dict[str, Any] = {k: config[k] for k in ("name", "seed_everything", "model", "data") if k in config}
    model = kept.get("model")
    if model:
        # The weights are in the checkpoint: the weights file that training started from is not needed to use it.
        kept["model"] = {**model, "init_args": {**model.get("init_args", {}), "pretrained": False}}
    precision = config.get("trainer", {}).get("precision")
    return {**kept, "trainer": {"precision": precision}} if precision else kept


def wandb_id(directory: Path) -> str:
    """The W&B run id of a run directory; a resumed run keeps it. Under a sweep's agent it is the one that it gives."""
    path = directory / "wandb_id.txt"
    found = path.read_text(encoding="utf-8", errors="replace").strip() if path.exists() else ""
    if not re.fullmatch(r"[\w-]+", found):  # none yet, or a damaged file
        of_agent = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
        found = of_agent or secrets.token_hex(4)
        write_text(path, found)
    return found


def write_data_files(directory: Path, datamodule: Any) -> None:
    """``split.json``: which image is in which split; ``skipped.csv``: which files could not be read."""
    records = getattr(datamodule, "records", None)
    if records:
        split = {name: [r["path"] for r in rows] for name, rows in records.items()}
        write_text(directory / "split.json", json.dumps(split, ensure_ascii=False))
    skipped = getattr(datamodule, "skipped", None)
    if skipped:
        rank_zero_warn(f"{len(skipped)} unreadable image(s) left out; they are listed in {directory / 'skipped.csv'}.")
        with atomic_path(directory / "skipped.csv") as path, open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("path", "reason"), *skipped])
