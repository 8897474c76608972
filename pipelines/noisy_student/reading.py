"""Reads the config of the loop, and refuses what is wrong with it before anything is trained."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datamodules.base import DataModule
from datamodules.common.errors import UserError
from pipelines.config.allowed import check_names
from pipelines.config.errors import Keys, Mistake, Source, has, place_of, sources
from pipelines.config.mistakes import Context, check_keys
from pipelines.config.signatures import find_class
from pipelines.config.values import merged
from pipelines.noisy_student.kinds.base import Kind
from pipelines.noisy_student.kinds.images import IMAGES
from pipelines.noisy_student.kinds.of_data import kind_of
from pipelines.noisy_student.selection import Selection
from pipelines.noisy_student.settings import Settings, StudentSettings, TeacherSettings, trainer_of
from pipelines.stages.fits import num_devices

HINTS = typing.get_type_hints(Settings)


def read_settings(args: list[str]) -> Settings:
    """Read configs and flags (``--teacher.trainer.max_steps 100``), later ones over earlier ones.

    Args:
        args: The command ``noisy-student`` and its words.

    Raises:
        UserError: Naming file, line, key, value and fix.
    """
    found, values = _read(args)
    first = next(source.file for source in found if source.file)
    trainer_flags = [source.values["trainer"] for source in found if source.file is None and "trainer" in source.values]
    _check_overruled(trainer_flags, values)
    values.setdefault("name", Path(str(first)).stem)
    for key in ("data", "teacher", "students"):
        if not values.get(key):
            raise UserError(f"{first} has no '{key}:'; noisy-student needs data, teacher and students.")
    for i, student in enumerate(values["students"]):
        if not student.get("model"):
            raise UserError(f"{first}: students.{i} has no 'model:'; a student is a task, as in any config.")
    settings = Settings(
        **{
            **values,
            "teacher": TeacherSettings(**values["teacher"]),
            "students": [StudentSettings(**student) for student in values["students"]],
            "selection": Selection(**values.get("selection") or {}),
        }
    )
    check_settings(settings)
    return settings


def _read(args: list[str]) -> tuple[list[Source], dict[str, Any]]:
    """What was written, and the values of all of it."""
    values: dict[str, Any] = {}
    source = None
    classes: dict[Keys, type] = {}  # named so far: flags speak of them
    try:
        found = sources(args[1:])
        if not any(source.file for source in found):
            raise UserError("noisy-student needs a config: --config FILE, for example noisy_student/digits.")
        check_names(found)
        for source in found:
            check_keys(source.values, HINTS, (), Context(HINTS, classes, "" if source.file else "--"))
            _check_parts(source.values)
            values = merged(values, source.values if source.file else _nested(source.values))
    except Mistake as mistake:
        where = "" if source is None else place_of(source, mistake.keys)
        raise UserError(f"{where}{mistake}") from None
    return found, values


def _check_overruled(flags: Sequence[dict[str, Any]], values: Mapping[str, Any]) -> None:
    """Refuse ``--trainer.KEY`` where a part has a KEY of its own, which goes before."""
    parts = {"teacher": values.get("teacher") or {}}
    parts |= {f"students.{i}": student for i, student in enumerate(values.get("students") or [])}
    for flag in flags:
        keys: tuple[str, ...] = ()
        value: Any = flag
        while isinstance(value, dict) and len(value) == 1:  # a flag has one key
            keys, value = (*keys, next(iter(value))), next(iter(value.values()))
        own = [f"{name}.trainer" for name, part in parts.items() if has(part.get("trainer"), keys)]
        if own:
            raise UserError(
                f"--trainer.{'.'.join(keys)} is {value}, but {' and '.join(own)} in the config say otherwise, and go"
                " before it. Change it there (the teacher's also by --teacher.trainer), or give a second --config."
            )


def _nested(flag: dict[str, Any]) -> dict[str, Any]:
    """``--data.batch_size 8`` speaks of the arguments of the class that the config names."""

    def inside(value: Any) -> Any:
        is_part = isinstance(value, dict) and not {"class_path", "init_args"} & value.keys()
        return {"init_args": value} if is_part else value

    out = dict(flag)
    if "data" in out:
        out["data"] = inside(out["data"])
    if isinstance(out.get("teacher"), dict) and "model" in out["teacher"]:
        out["teacher"] = {**out["teacher"], "model": inside(out["teacher"]["model"])}
    return out


def _check_parts(values: Mapping[str, Any]) -> None:
    """The data arguments of teacher and students are those of the data's class."""
    data = values.get("data")
    named = data.get("class_path") if isinstance(data, dict) else None
    cls = find_class(str(named), DataModule) if named else None
    parts: list[tuple[Keys, Any]] = [(("teacher",), values.get("teacher"))]
    parts += [(("students", i), part) for i, part in enumerate(values.get("students") or ())]
    for keys, part in parts:
        if cls is not None and isinstance(part, dict) and isinstance(part.get("data"), dict):
            check_keys(part["data"], cls, (*keys, "data"), Context(HINTS, {}))


def check_settings(settings: Settings) -> None:
    """Refuse what is wrong with the settings as a whole.

    Raises:
        UserError: Naming key, value and fix.
    """
    _check_labels(settings)
    _check_kind(settings)
    if settings.pool is not None and not Path(settings.pool).exists():
        raise UserError(f"pool '{settings.pool}' does not exist in {Path.cwd()}. Give a folder or a list of images.")
    if not settings.seeds or len(set(settings.seeds)) < len(settings.seeds):
        raise UserError(f"seeds is {settings.seeds}; give at least one, and none twice.")
    if (settings.teacher.model is None) == (not settings.teacher.checkpoints):
        raise UserError("teacher needs either model: (it is trained) or checkpoint: FILE (it is trained already).")
    if missing := next((file for file in settings.teacher.checkpoints if not file.is_file()), None):
        raise UserError(f"teacher.checkpoint {missing} does not exist.")
    _check_batches(settings)
    _check_students(settings)
    _check_devices(settings)


def _check_labels(settings: Settings) -> None:
    """Where the unlabeled images come from."""
    hiding = {key: getattr(settings, key) for key in ("labels_per_class", "labeled_images", "labeled_fraction")}
    given = {key: value for key, value in hiding.items() if value is not None}
    if settings.pool is None and not given and not settings.distil:
        raise UserError(
            "pool is not set: give the folder or the list of the unlabeled images, or labeled_images (for images with"
            " one label each also labels_per_class) to hide some of the labels."
        )
    if len(given) > 1:
        raise UserError(
            f"{' and '.join(f'{key} is {value}' for key, value in given.items())}: both say which labels are seen, so"
            " leave one of them out."
        )
    for key in ("labels_per_class", "labeled_images"):
        if given.get(key, 1) < 1:
            raise UserError(f"{key} is {given[key]}; it must be at least 1.")
    fraction = given.get("labeled_fraction", 0.5)
    if not 0 < fraction <= 1:
        raise UserError(f"labeled_fraction is {fraction:g}; it must be above 0 and at most 1.")
    if fraction == 1 and settings.pool is None and not settings.distil:
        raise UserError(
            "labeled_fraction is 1 and pool is not set: no image is without a label. Lower it, or give pool."
        )


def _check_batches(settings: Settings) -> None:
    """Refuse batch sizes that are not known before a training: the steps of students and controls follow from them."""
    parts: dict[str, Any] = {"data": settings.data.get("init_args", {})}  # type: ignore[attr-defined]
    parts |= {f"students.{i}.data": student.data for i, student in enumerate(settings.students)}
    for key, arguments in {**parts, "teacher.data": settings.teacher.data}.items():
        if arguments.get("batch_size") == "auto":
            raise UserError(
                f"{key}.batch_size is auto, but the steps of students and controls follow from it: give a number; one"
                " that fits is found by fit with the teacher's model."
            )


def _check_students(settings: Settings) -> None:
    """Batches have unlabeled images, and no student starts from its teacher."""
    of_teacher = _pretrained(settings.teacher.model)
    for i, student in enumerate(settings.students):
        if student.ratio < 1:
            raise UserError(f"students.{i}.ratio is {student.ratio}; it must be a whole number of at least 1.")
        mine = _pretrained(student.model)
        if settings.teacher.model is not None and mine not in (False, of_teacher):
            raise UserError(
                f"students.{i}.model.pretrained is {mine!r}, but the teacher's is {of_teacher!r}: a student starts from"
                " scratch (false) or from the same weights as the teacher did, never from the teacher."
            )


def _check_devices(settings: Settings) -> None:
    """Refuse several devices without a launcher, and a launcher without their number."""
    parts: dict[str, TeacherSettings | StudentSettings | None] = {"trainer": None, "teacher.trainer": settings.teacher}
    parts |= {f"students.{i}.trainer": student for i, student in enumerate(settings.students)}
    for key, part in parts.items():
        number = num_devices(trainer := trainer_of(settings, part))
        if settings.launch is None and number != 1:
            raise UserError(
                f"{key} asks for devices: {trainer['devices']} and num_nodes: {trainer.get('num_nodes', 1)}, but"
                " noisy-student is one process: for several devices give it a launcher of its commands, for example"
                " launch: [torchrun, --nproc-per-node, '2'] with trainer: {devices: 2}."
            )
        if settings.launch is not None and number is None:
            raise UserError(
                f"{key}.devices is {trainer.get('devices', 'not set')}, but launch is {settings.launch}: give the"
                " number of devices on each node, which the length of an epoch depends on (1 for one)."
            )


def _check_kind(settings: Settings) -> None:
    """Refuse what is for images with one label each, where the data has another kind of label."""
    cls = find_class(str(settings.data["class_path"]), DataModule)  # type: ignore[index]
    kind = IMAGES if cls is None else kind_of(cls)
    kind.check_selection(settings.selection)
    if kind.ONE_LABEL:
        return
    if settings.labels_per_class is not None:
        raise UserError(
            f"labels_per_class is {settings.labels_per_class}, but an image has {kind.UNIT} of several classes: give"
            " labeled_images, the number of images that keep their annotations."
        )
    for i, student in enumerate(settings.students):
        _check_student_of(kind, student, f"students.{i}")


def _check_student_of(kind: Kind, student: StudentSettings, key: str) -> None:
    if student.labels == "soft" and not kind.SOFT_FILES:
        raise UserError(f"{key}.labels is 'soft', but {kind.UNIT} have a class and a score: leave it out.")
    for name, default in (("temperature", 1.0), ("smoothing", 0.0)):
        if getattr(student, name) != default:
            raise UserError(
                f"{key}.{name} is {getattr(student, name)!r}, but only labels of whole images have it: for {kind.UNIT}"
                " leave it out."
            )


def _pretrained(model: Any) -> Any:
    return (model or {}).get("init_args", {}).get("pretrained", False)
