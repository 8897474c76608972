"""The loop itself: for each seed teacher, labels, selection, student, and so on; then the controls and the report."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.base import DataModule
from pipelines.noisy_student import stages
from pipelines.noisy_student.configs import outcome, student_config, teacher_config
from pipelines.noisy_student.kinds.protocol import kind_of, score
from pipelines.noisy_student.manifest import (
    Output,
    Outputs,
    digest_of,
    digest_of_values,
    only_one,
    read_json,
    run_stage,
    say,
    write_json,
)
from pipelines.noisy_student.report import write_report
from pipelines.noisy_student.settings import Settings, Student, num_devices, plain, trainer_of
from pipelines.run.checkpoints import read_checkpoint_config


class Model(NamedTuple):
    """A trained model of the account."""

    name: str
    outputs: Outputs
    says: dict[str, Any]  # its settings, which its labels depend on beside its weights
    score: float  # on validation: accuracy, mAP or mIoU


class SeedRun(NamedTuple):
    """What one seed left."""

    seed: int
    data: Outputs
    models: list[Model]  # the teacher, the generations, the controls
    selections: list[Outputs]  # one a generation
    final: int  # the generation that is best on validation, from 1; 0 where none beats the teacher
    relabelled: Outputs  # the last student's labels of the pool


def run(settings: Settings) -> Path:
    """Run the loop, or go on with it.

    Args:
        settings: What the config says.

    Returns:
        The run directory, with ``report.json`` and ``report.html``.
    """
    root = (Path(settings.runs_dir) / str(settings.name)).resolve()
    with only_one(root):
        write_json(root / "settings.json", plain(settings))
        data = stages.read_data(settings)
        runs = [run_seed(root / f"seed{seed}", settings, data, seed) for seed in settings.seeds]
        write_report(root, settings, data, runs)
    say(f"the account is in {root / 'report.html'}")
    return root


def run_seed(root: Path, settings: Settings, data: DataModule, seed: int) -> SeedRun:
    """All stages of one seed."""
    stage = partial(_stage, root)
    made = stages.data_settings(settings, data, seed)
    digests = root.parent / "pixels.json"  # one file for all seeds
    found = with_content(stage("data", made, {}, stages.make_data, settings, data, seed, digests), made)
    truth = stages.read_truth(found["truth"].path)
    models = [_teacher(root, settings, data, found, truth, seed)]
    selections: list[Outputs] = []
    for number, student in enumerate(settings.students, 1):
        teacher = models[-1]
        name = "teacher" if number == 1 else "student"
        soft = student.labels == "soft" and kind_of(data).SOFT_FILES
        labels = stage(
            f"labels{number}",
            teacher.says | ({"soft": True} if soft else {}),
            {"teacher": teacher.outputs[name], "pool": found["pool"]},
            partial(stages.label, soft=soft),
            settings,
            data,
            teacher.outputs[name].path,
            found["pool"].path,
        )
        selected = stage(
            f"selection{number}",
            {**_selection(settings), "seed": seed},
            {"labels": labels["labels"], "validation": teacher.outputs["val"], "truth": found["truth"]},
            stages.choose,
            data,
            settings.selection,
            labels["labels"].path,
            teacher.outputs["val"].path,
            truth,
            seed,
        )
        selections.append(selected)
        name = f"student{number}"
        trained = _student(root, settings, data, student, name, found, truth, selected, stage_seed(seed, number))
        models.append(trained)
        gain = models[-1].score - models[-2].score
        if number < len(settings.students) and gain <= settings.min_gain:
            say(f"{root.name}: generation {number} gained {gain:+.4f} on validation: it is the last")
            break
    final = best_generation([model.score for model in models])
    last = len(selections)
    student = settings.students[last - 1]
    controls = []
    if settings.controls:
        known: dict[str, Any] = {"found": found, "truth": truth, "seed": stage_seed(seed, last)}
        again = partial(_student, root, settings, data, student, **known)
        controls.append(again(name="labels_only", selected=None, steps_of=selections[-1]))
        controls.append(again(name="no_noise", selected=selections[-1], noise=False))
    relabelled = stage(
        "relabelled",
        models[last].says,
        {"teacher": models[last].outputs["student"], "pool": found["pool"]},
        stages.label,
        settings,
        data,
        models[last].outputs["student"].path,
        found["pool"].path,
    )
    return SeedRun(seed, found, [*models, *controls], selections, final, relabelled)


def with_content(found: Outputs, made: dict[str, Any]) -> Outputs:
    """The data stage's files, their digests with what is in the images and annotations that they name."""
    content = {"pool": [made["images"], made["pool"]]}
    return {
        name: Output(output.path, digest_of_values([output.digest, *content.get(name, [made["images"]])]))
        for name, output in found.items()
    }


def best_generation(scores: Sequence[float]) -> int:
    """The generation with the best score on validation, 0 for the teacher; of equal ones the earliest."""
    return max(range(len(scores)), key=lambda generation: scores[generation])


def stage_seed(seed: int, generation: int) -> int:
    """The seed of a training: another one for each generation, the same for a student and its controls."""
    return zlib.crc32(f"{seed}/{generation}".encode()) & 0x7FFFFFFF


def _stage(root: Path, name: str, settings: dict[str, Any], inputs: Outputs, work: Any, *arguments: Any) -> Outputs:
    return run_stage(root / name, settings, inputs, lambda directory: work(directory, *arguments))


def _part(settings: Settings, *names: str) -> dict[str, Any]:
    values = plain(settings)
    return {name: values[name] for name in names}


def _selection(settings: Settings) -> dict[str, Any]:
    """What a selection depends on; keys that came later are left out where they are not set, for older runs."""
    values = plain(settings)["selection"]
    return {"selection": {k: v for k, v in values.items() if k != "ignore" or v is not None}}


def _teacher(
    root: Path, settings: Settings, data: DataModule, found: Outputs, truth: dict[str, Any], seed: int
) -> Model:
    given = settings.teacher.checkpoint
    if given is not None:
        read = {"checkpoint": Output(Path(given), digest_of(Path(given))), "split": found["split"]}
        known: dict[str, Any] = dict(read_checkpoint_config(Path(given)))
        outputs = _stage(root, "teacher", _says(known), read, stages.take_teacher, settings, data, Path(given))
    else:
        config = teacher_config(settings, found["split"].path, stage_seed(seed, 0))
        known = outcome(config) | _part(settings, "checkpoint")
        read = {"split": found["split"]}
        outputs = _stage(root, "teacher", known, read, stages.train, settings, data, config, "teacher")
    return Model("teacher", outputs, _says(known), score(kind_of(data), outputs["val"].path, truth["val"]))


def _says(config: dict[str, Any]) -> dict[str, Any]:
    return {"teacher": {key: config[key] for key in ("model", "data")}}


def _student(
    root: Path,
    settings: Settings,
    data: DataModule,
    student: Student,
    name: str,
    found: Outputs,
    truth: dict[str, Any],
    selected: Outputs | None,
    seed: int,
    *,
    noise: bool = True,
    steps_of: Outputs | None = None,
) -> Model:
    """A student, or with ``steps_of`` or without ``noise`` one of its controls."""
    pseudo = selected or steps_of
    assert pseudo is not None
    steps = student.steps_per_epoch or steps_per_epoch(settings, data, student, pseudo)
    config = student_config(
        settings,
        kind_of(data),
        student,
        found["split"].path,
        None if selected is None else selected["selected"].path,
        truth["class_names"],
        steps,
        seed,
        noise=noise,
    )
    known = outcome(config) | _part(settings, "checkpoint")
    read = {"split": found["split"]} | ({} if selected is None else {"selected": selected["selected"]})
    outputs = _stage(root, name, known, read, stages.train, settings, data, config, "student")
    return Model(name, outputs, _says(known), score(kind_of(data), outputs["val"].path, truth["val"]))


def steps_per_epoch(settings: Settings, data: DataModule, student: Student, selected: Outputs) -> int:
    """Batches of one pass over the selected images, over all devices."""
    batch_size = int(student.data.get("batch_size", data.batch_size))
    world = num_devices(trainer_of(settings, student))
    assert world is not None  # the settings were checked
    return max(1, int(read_json(selected["account"].path)["images"]) // (batch_size * student.ratio * world))
