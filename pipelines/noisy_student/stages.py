"""The stages of the loop that run commands: training, evaluation, labels, selection.

Each leaves files that can be read and used again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datamodules.base import DataModule
from datamodules.common.errors import UserError
from datamodules.common.files import read_json
from pipelines.config.allowed import trust_flags
from pipelines.config.carried import packages_of
from pipelines.config.values import merged
from pipelines.noisy_student import evaluation, pseudo_label
from pipelines.noisy_student.configs import trainer_flags
from pipelines.noisy_student.kinds.base import SelectionJob
from pipelines.noisy_student.kinds.of_data import kind_of
from pipelines.noisy_student.labeling import load_teacher
from pipelines.noisy_student.results import REPORT
from pipelines.noisy_student.settings import Settings, plain
from pipelines.run.directory import run_of_checkpoint, runs_of
from pipelines.run.student import export
from pipelines.run.tracking import Wandb
from pipelines.stages.fits import FIT
from pipelines.stages.launching import StageCommand, config_file, run_command
from pipelines.stages.manifest import say
from pipelines.trainer import Trainer

LABEL = StageCommand("pseudo-label", ("pipelines", "pseudo-label"), pseudo_label.main)
EVALUATE = StageCommand("evaluation", ("pipelines.noisy_student.evaluation",), evaluation.main)


def train(directory: Path, settings: Settings, data: DataModule, config: dict[str, Any], name: str) -> dict[str, str]:
    """One ``fit``, and the model's probabilities for the validation and test images.

    Args:
        directory: The stage's; a run that was killed is continued.
        settings: The loop's.
        data: The loop's labeled data.
        config: Of the command.
        name: Of the checkpoint that is left, ``teacher`` or ``student``.
    """
    place = ["--name", directory.name, "--runs_dir", str(directory.parent)]  # its run directory is 0 in this one
    # The loop has a report of its own.
    of_role: dict[str, Any] = merged({"trainer": {"wandb": {"job_type": name}, "report": False}}, config)
    with config_file(directory / "config.yaml", of_role) as file:
        words = ["--config", str(file), *place, "--resume", "auto", *trust_flags(packages_of(config))]
        run_command(FIT, words, settings.launch)
    run = runs_of(directory.parent, directory.name)[-1]
    export(run / "checkpoints" / f"{settings.checkpoint}.ckpt", directory / f"{name}.ckpt")
    return {name: f"{name}.ckpt", **evaluate(directory, settings, data, [directory / f"{name}.ckpt"])}


def take_teacher(directory: Path, settings: Settings, data: DataModule, checkpoints: Sequence[Path]) -> dict[str, str]:
    """A teacher that is trained already, or several together, in place of ``train``.

    Raises:
        UserError: If a run trained on images that are for validation or test here.
    """
    files = {}
    for number, checkpoint in enumerate(checkpoints):
        _check_seen(settings, data, checkpoint)
        name = f"teacher{number or ''}"
        files[name] = f"{name}.ckpt"
        export(checkpoint, directory / files[name])
    return {**files, **evaluate(directory, settings, data, [directory / file for file in files.values()])}


def _check_seen(settings: Settings, data: DataModule, checkpoint: Path) -> None:
    """Refuse a teacher that was trained on what is to measure it."""
    run = run_of_checkpoint(checkpoint)
    split = None if run is None else read_json(run / "split.json")
    if split is None:
        say(f"{checkpoint} lies in no run: whether it was trained on validation or test images is not known")
    elif settings.overlap != "allow":
        trained = {os.path.abspath(path) for path in split.get("train", [])}
        known = [r["path"] for s in ("val", "test") for r in data.records[s] if os.path.abspath(r["path"]) in trained]
        if known:
            raise UserError(
                f"teacher.checkpoint {checkpoint} was trained on {len(known)} of the validation and test images, among"
                f" them {known[0]}: its scores would be worth nothing. Set data.split_file to {run}/split.json, or"
                " train it here (teacher.model); overlap: allow lets it pass."
            )


def evaluate(directory: Path, settings: Settings, data: DataModule, checkpoints: Sequence[Path]) -> dict[str, str]:
    """Write ``val`` and ``test``: labels of a model, or of several together, and what scores are computed from.

    With ``launch`` it is a command of its own, like a training.

    Raises:
        UserError: If the model knows other classes than the data.
    """
    if settings.launch is None:
        trust = packages_of(plain(settings))
        loaded = [load_teacher(checkpoint, trust=trust) for checkpoint in checkpoints]
        evaluation.evaluate_splits(_plain_trainer(settings), loaded, data, directory)
    else:
        with config_file(directory / "evaluated.yaml", plain(settings.data)) as labeled:
            words = [*_named(checkpoints), "--labeled", str(labeled), "--output", str(directory)]
            run_command(EVALUATE, [*words, *trainer_flags(settings, "precision")], settings.launch)
    return evaluation.files_of(data)


def _named(checkpoints: Sequence[Path]) -> list[str]:
    """The flags that name a model, or several."""
    first, *others = map(str, checkpoints)
    return ["--ckpt_path", first, *([f"--teachers=[{','.join(others)}]"] if others else [])]


def _plain_trainer(settings: Settings) -> Trainer:
    chosen: dict[str, Any] = {k: v for k, v in plain(settings.trainer).items() if k in ("accelerator", "precision")}
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return Trainer(devices=1, enable_checkpointing=False, wandb=Wandb(mode="off"), **quiet, **chosen)


# Labels and selection.


def label(
    directory: Path, settings: Settings, data: DataModule, teachers: Sequence[Path], pool: Path, *, soft: bool = False
) -> dict[str, str]:
    """``pseudo-label`` of the pool: ``labels.parquet``, or ``labels.json`` for boxes."""
    file = f"labels{kind_of(data).LABELS}"
    words = [*_named(teachers), "--source", str(pool), "--output", str(directory / file)]
    run_command(LABEL, [*words, *trainer_flags(settings), *(["--soft=true"] if soft else [])], settings.launch)
    return {"labels": file}


def select(job: SelectionJob) -> dict[str, str]:
    """``selected.parquet`` or ``.json`` (what the student is taught) and ``selection.json`` (what was done)."""
    kind = kind_of(job.data)
    report = kind.write_selection(job)
    say(
        f"{report['kept']} of {report['pool']} {kind.UNIT} kept ({report['coverage']:.0%}),"
        f" {report['images']} images taught"
    )
    if left_out := report.get("left_out"):
        say(f"classes left out for want of validation images or of precision: {', '.join(left_out)}")
    return {"selected": f"selected{kind.LABELS}", REPORT: "selection.json"}
