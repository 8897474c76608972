"""``curve`` of a config of noisy student: the teacher's curve, the student's, and what that is worth in labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.base import DataModule
from datamodules.common.errors import UserError
from datamodules.fractions import first_labeled
from datamodules.unlabeled import pool_records
from pipelines.config.ready import complete
from pipelines.config.words import value_of, without
from pipelines.label_curve.budget import (
    FRACTIONS,
    MORE,
    check_counts,
    longer,
    read_fractions,
    steps,
    with_longer_model,
)
from pipelines.label_curve.fitting import REPLICATES, Point
from pipelines.label_curve.writing import Curve, Measuring, write_curves
from pipelines.noisy_student import data_stage
from pipelines.noisy_student.command import execute
from pipelines.noisy_student.kinds.base import Kind
from pipelines.noisy_student.kinds.of_data import kind_of
from pipelines.noisy_student.loop import run_seed, start
from pipelines.noisy_student.reading import read_settings
from pipelines.noisy_student.settings import Settings, StudentSettings, TeacherSettings, trainer_of
from pipelines.stages.fits import num_devices
from pipelines.stages.manifest import only_one, say
from pipelines.statistics import sampled

USAGE = """usage: python -m pipelines curve --config FILE [--fractions 0.1,0.25,0.5,1] [--more 500] [--budget steps]

FILE is a config of noisy-student: its teacher and its last student for each fraction of the labels, over its seeds.
The same command continues where it was stopped. docs/curve.md."""
HIDING = ("labels_per_class", "labeled_images", "labeled_fraction")
WHAT = {
    "teacher": "labels only, the first net",
    "student": "noisy student: the last generation, with the unlabeled images",
    "labels_only": "control: the student's net, noise and number of steps, labels only",
    "no_noise": "control: the student without noise",
}


def main(words: list[str]) -> int:
    """The command ``curve`` with such a config.

    Args:
        words: Its flags.

    Returns:
        The exit status, see ``noisy_student.command.execute``.
    """
    return execute("curve", words, USAGE, curve_of_loop)


def curve_of_loop(words: list[str]) -> dict[str, Any]:
    """Run the loop for each fraction of the labels, or go on with it.

    Args:
        words: Flags of the command.

    Returns:
        What ``curve.json`` holds.
    """
    own = {"fractions": FRACTIONS, "more": str(MORE), "budget": "steps"}
    for name in own:
        own[name] = value_of(words, f"--{name}") or own[name]
        words = without(words, f"--{name}")
    fractions = read_fractions(own["fractions"])
    if not own["more"].isdigit() or own["budget"] not in ("steps", "epochs"):
        raise UserError(f"--more is {own['more']} and --budget is {own['budget']}: a number, and steps or epochs.")
    check_counts(1, int(own["more"]))
    settings = _settings(words, fractions[0])
    if settings.teacher.model is None:
        raise UserError(
            "teacher.checkpoint has seen its labels already: a curve trains its teachers, give teacher.model."
        )
    data = data_stage.read_data(settings)
    if not data.records["test"]:
        raise UserError("curve needs test images, which say how good each model is: set data.test_fraction.")
    root = (Path(settings.runs_dir) / f"{settings.name}-curve").resolve()
    settings = replace(settings, name=root.name)
    found: dict[float, list[dict[str, Any]]] = {}
    with only_one(root, "curve"):
        for fraction in fractions:
            folder = root / f"fraction{fraction:g}"
            for seed in settings.seeds:
                own_settings = _with_fraction(settings, data, fraction, seed, own["budget"])
                found.setdefault(fraction, []).append(_models(folder / f"seed{seed}", own_settings, data, seed))
        measured = _measuring(kind_of(data), found, settings, data, own["budget"], int(own["more"]))
        return write_curves(root, measured)


def _settings(words: list[str], fraction: float) -> Settings:
    """The loop's settings, its labels hidden by fractions in place of what the config says."""
    flags = [f"--{name}=null" for name in HIDING[:2]]
    settings = read_settings(complete(["noisy-student", *words, *flags, f"--{HIDING[2]}={fraction}"]))
    say("--fractions say which labels are seen, in place of labels_per_class and the like", "curve")
    return settings


def _with_fraction(settings: Settings, data: DataModule, fraction: float, seed: int, budget: str) -> Settings:
    """The settings for one fraction; with ``steps`` each model is trained for as many steps as with all labels."""
    settings = replace(settings, labeled_fraction=fraction)
    if budget == "epochs":
        return settings
    everything, teacher = data.records["train"], settings.teacher
    world, batch = _world(settings, teacher), teacher.data.get("batch_size") or data.batch_size
    images = len(first_labeled(everything, fraction, seed))
    factor = steps(len(everything), data, batch, world) / steps(images, data, batch, world)
    trainer: Any = longer(trainer_of(settings, teacher), factor)
    model: Any = with_longer_model(teacher.model, factor)  # type: ignore[arg-type]
    students = [
        replace(student, steps_per_epoch=student.steps_per_epoch or _student_steps(settings, data, student))
        for student in settings.students
    ]
    return replace(settings, teacher=replace(teacher, trainer=trainer, model=model), students=students)


def _world(settings: Settings, part: TeacherSettings | StudentSettings) -> int:
    number = num_devices(trainer_of(settings, part))
    assert number is not None  # the settings were checked
    return number


def _student_steps(settings: Settings, data: DataModule, student: StudentSettings) -> int:
    """Batches of one pass over all images that lose or have no label, were all taught: the same for each fraction."""
    images = len(data.records["train"]) + (0 if settings.pool is None else len(pool_records(settings.pool)))
    world = _world(settings, student)
    batch = student.data.get("batch_size") or data.batch_size
    return steps(images // student.ratio, data, batch, world)


def _models(root: Path, settings: Settings, data: DataModule, seed: int) -> dict[str, Any]:
    """The models of one fraction and seed: name -> file of its test images; and the truth of these."""
    loop = start(root, settings, data, seed)
    if loop.truth["pool"]:
        run = run_seed(root, settings, data, seed)
        models = {"teacher": run.models[0], "student": run.last}
        models |= {name: run.model(name) for name in ("labels_only", "no_noise") if settings.controls}
    else:  # all labels are seen, and there are no other images
        models = {"teacher": loop.teacher()}
        if settings.controls and settings.students[-1].steps_per_epoch:
            models["labels_only"] = loop.student("labels_only", len(settings.students), {}, pseudo_labels=False)
    return {
        "labels": len(loop.truth["train"]),
        "truth": loop.truth["test"],
        "files": {name: model.outputs["test"].path for name, model in models.items()},
    }


def _measuring(
    kind: Kind, found: dict[float, list[dict[str, Any]]], settings: Settings, data: DataModule, budget: str, more: int
) -> Measuring:
    """The scores of all models, on the same resamples of the test images."""
    truth = next(iter(found.values()))[0]["truth"]

    def point(name: str, fraction: float) -> Point:
        seeds = found[fraction]

        def score(counts: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
            each = [kind.scores(seed["files"][name], seed["truth"], counts)[kind.METRIC] for seed in seeds]
            return {kind.METRIC: np.stack(each, 1)}

        number = float(np.mean([seed["labels"] for seed in seeds]))
        return Point(fraction, number, sampled(score, len(truth), REPLICATES)[kind.METRIC])

    names = next(iter(found.values()))[0]["files"]
    curves: list[Curve] = []
    for name, what in WHAT.items():
        points = [point(name, fraction) for fraction, seeds in found.items() if name in seeds[0]["files"]]
        of = tuple(other for other in ("teacher", "labels_only") if other in names) if name == "student" else ()
        curves += [Curve(name, what, points, of)] if points else []
    return Measuring(kind.METRIC, len(truth), len(data.records["train"]), settings.seeds, budget, more, curves)
