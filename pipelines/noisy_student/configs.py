"""The configs of single commands that follow from the loop's settings."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from pipelines.config.allowed import trust_flags
from pipelines.config.carried import packages_of
from pipelines.noisy_student.kinds.base import Kind
from pipelines.noisy_student.settings import Settings, StudentSettings, TeacherSettings, plain, trainer_of

#: Arguments of a student that are noise; without noise they are 0.
MODEL_NOISE = ("drop_rate", "drop_path_rate", "mixup", "cutmix", "erasing", "color_jitter")
#: Settings of the trainer for a command that trains nothing.
PLACEMENT = ("accelerator", "devices", "num_nodes", "strategy")


def labeled_data(settings: Settings, part: TeacherSettings | StudentSettings, split_file: Path) -> dict[str, Any]:
    """The labeled images of one training."""
    data = copy.deepcopy(dict(settings.data))  # type: ignore[call-overload]
    arguments = {**data.get("init_args", {}), **part.data, "split_file": str(split_file)}
    return {"class_path": data["class_path"], "init_args": arguments}


def teacher_config(settings: Settings, split_file: Path, seed: int) -> dict[str, Any]:
    """``fit`` of the first teacher."""
    return {
        "seed_everything": seed,
        "model": settings.teacher.model,
        "data": labeled_data(settings, settings.teacher, split_file),
        "trainer": trainer_of(settings, settings.teacher),
    }


def student_config(
    settings: Settings,
    kind: Kind,
    student: StudentSettings,
    split_file: Path,
    selected: Path | None,
    class_names: list[str],
    steps_per_epoch: int,
    seed: int,
    *,
    noise: bool = True,
) -> dict[str, Any]:
    """``fit`` of a student; without ``selected`` of the control on labels only, for as many steps.

    Args:
        settings: The loop's.
        kind: The data's.
        student: The generation.
        split_file: Splits of the labeled images.
        selected: The file of pseudo-labels.
        class_names: In the order of the labeled data.
        steps_per_epoch: The same for a student and its controls.
        seed: The run's.
        noise: False removes all noise: from the model's arguments and the augmentation of both halves.
    """
    model: dict[str, Any] = copy.deepcopy(dict(student.model))  # type: ignore[call-overload]
    labeled = labeled_data(settings, student, split_file)
    if not noise:
        arguments = model.setdefault("init_args", {})
        arguments.update({key: 0.0 for key in MODEL_NOISE if key in arguments})
        labeled["init_args"]["augment"] = {"preset": "none"}
    data: dict[str, Any] = {"labeled": labeled, "ratio": student.ratio, "steps_per_epoch": steps_per_epoch}
    if selected is not None:
        arguments = {k: v for k, v in labeled["init_args"].items() if k not in kind.SOURCE_ARGUMENTS}
        arguments |= {"source": str(selected), **kind.unlabeled_arguments(class_names)}
        data["unlabeled"] = {"class_path": labeled["class_path"], "init_args": arguments}
    how = {k: getattr(student, k) for k in ("loss", "unlabeled_weight", "temperature", "smoothing")}
    if not noise:
        how["noise"] = False
    how["labels"] = (student.labels if kind.ONE_LABEL else None) or "soft"  # soft masks are so in their file
    return {
        "seed_everything": seed,
        "model": {"class_path": "NoisyStudent", "init_args": {"student": model, **how}},
        "data": {"class_path": "SemiSupervised", "init_args": data},
        "trainer": trainer_of(settings, student),
    }


def trainer_flags(settings: Settings, *more: str) -> list[str]:
    """Flags of a command that trains nothing: where it runs, quietly, and whose classes a checkpoint may name.

    Args:
        settings: The loop's.
        more: Further keys of the trainer that count.
    """
    trainer: dict[str, Any] = trainer_of(settings)
    flags = [f"--trainer.{key}={trainer[key]}" for key in (*PLACEMENT, *more) if key in trainer]
    flags += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    return flags + trust_flags(packages_of(plain(settings)))
