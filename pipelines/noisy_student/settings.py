"""The config of the loop: what it may say."""

from __future__ import annotations

import copy
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from datamodules.base import DataModule
from datamodules.common.errors import UserError
from pipelines.config.errors import Keys, Mistake, has, place_of, sources
from pipelines.config.mistakes import Context, check_keys
from pipelines.config.signatures import find_class
from pipelines.noisy_student.kinds import images
from pipelines.noisy_student.kinds.protocol import kind_of
from pipelines.noisy_student.selection import Selection
from pipelines.trainer import Trainer
from tasks.base import Task


@dataclass(frozen=True)
class Teacher:
    """The first teacher.

    Attributes:
        model: The task, as in any config.
        data: Arguments of the data that differ from those of the loop, for example `augment`.
        trainer: Arguments of the trainer that differ.
        checkpoint: A trained teacher, in place of all of these.
    """

    model: Task | None = None
    data: dict[str, Any] = field(default_factory=dict)
    trainer: Trainer = field(default_factory=dict)  # type: ignore[assignment]
    checkpoint: str | None = None


@dataclass(frozen=True)
class Student:
    """One generation.

    Attributes:
        model: The task, with its noise; as large as the teacher, or larger.
        data: Arguments of the data that differ from those of the loop: the noise on the input in `augment`.
        trainer: Arguments of the trainer that differ.
        ratio: Unlabelled images for each labelled one of a batch.
        steps_per_epoch: Optimiser batches an epoch; one pass over the selected images by default.
        loss: See `tasks.NoisyStudent`; so are the others.
        unlabeled_weight: The same.
        labels: The same; by default `soft` for images with one label each, `hard` for pixels, and boxes have no other.
        temperature: The same.
        smoothing: The same.
    """

    model: Task
    data: dict[str, Any] = field(default_factory=dict)
    trainer: Trainer = field(default_factory=dict)  # type: ignore[assignment]
    ratio: int = 1
    steps_per_epoch: int | None = None
    loss: Literal["paper", "code"] = "paper"
    unlabeled_weight: float = 1.0
    labels: Literal["soft", "hard"] | None = None
    temperature: float = 1.0
    smoothing: float = 0.0


@dataclass(frozen=True)
class Settings:
    """All of the loop.

    Attributes:
        data: The labelled images, as in any config.
        teacher: The first teacher.
        students: One generation each.
        pool: The unlabelled images: a folder, or a list with a column `path`.
        labels_per_class: Only so many training images of each class keep their labels, the others join the pool; to
            see on a labelled set what unlabelled images would be worth. For images with one label each.
        labeled_images: In place of it, for all tasks: only so many training images keep their annotations, drawn by
            the seed.
        selection: Which pseudo-labels are taught.
        trainer: Arguments of the trainer for all trainings.
        checkpoint: Which checkpoint of a training goes on: `last`, or `best` on the validation split.
        controls: Also train the last student on labels only, and without noise, for as many steps.
        seeds: The whole loop is run for each; the account has their mean and spread.
        overlap: What to do with validation and test images in the pool: `error`, `remove` or `allow`.
        min_gain: A generation that gains no more than this on validation (accuracy, mAP or mIoU) is the last.
        launch: Words before the command of a training or labelling, which then runs in a process of its own, for
            example `[srun]` or `[torchrun, --nproc-per-node, '8']`.
        name: Name of the run directory; the config's stem by default.
        runs_dir: Folder of all runs.
    """

    data: DataModule
    teacher: Teacher
    students: list[Student]
    pool: str | None = None
    labels_per_class: int | None = None
    labeled_images: int | None = None
    selection: Selection = field(default_factory=Selection)
    trainer: Trainer = field(default_factory=dict)  # type: ignore[assignment]
    checkpoint: Literal["last", "best"] = "last"
    controls: bool = False
    seeds: list[int] = field(default_factory=lambda: [0])
    overlap: Literal["error", "remove", "allow"] = "error"
    min_gain: float = 0.0
    launch: list[str] | None = None
    name: str | None = None
    runs_dir: str = "runs"


HINTS = typing.get_type_hints(Settings)


def read_settings(args: list[str]) -> Settings:
    """Read configs and flags (``--teacher.trainer.max_steps 100``), later ones over earlier ones.

    Args:
        args: The command ``noisy-student`` and its words.

    Raises:
        UserError: Naming file, line, key, value and fix.
    """
    values: dict[str, Any] = {}
    source = None
    classes: dict[Keys, type] = {}  # named so far: flags speak of them
    try:
        found = sources(args[1:])
        if not any(s.file for s in found):
            raise UserError("noisy-student needs a config: --config FILE, for example noisy_student/digits.")
        for source in found:
            check_keys(source.values, HINTS, (), Context(HINTS, classes, "" if source.file else "--"))
            _check_parts(source.values)
            values = merged(values, source.values if source.file else _nested(source.values))
    except Mistake as mistake:
        where = "" if source is None else place_of(source, mistake.keys)
        raise UserError(f"{where}{mistake}") from None
    first = next(s.file for s in found if s.file)
    _check_overruled([s.values["trainer"] for s in found if s.file is None and "trainer" in s.values], values)
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
            "teacher": Teacher(**values["teacher"]),
            "students": [Student(**student) for student in values["students"]],
            "selection": Selection(**values.get("selection") or {}),
        }
    )
    _check_settings(settings)
    return settings


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


def first_generation(settings: Settings) -> Settings:
    """One student of one seed; its stages are those of the whole loop, which later takes them as they are."""
    return replace(settings, students=settings.students[:1], seeds=settings.seeds[:1], controls=False)


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


def _check_settings(settings: Settings) -> None:
    if settings.pool is None and settings.labels_per_class is None and settings.labeled_images is None:
        raise UserError(
            "pool is not set: give the folder or the list of the unlabelled images, or labeled_images (for images with"
            " one label each also labels_per_class) to hide a part of the labels."
        )
    if settings.labels_per_class is not None and settings.labeled_images is not None:
        raise UserError(
            f"labels_per_class is {settings.labels_per_class} and labeled_images is {settings.labeled_images}: both say"
            " which labels are seen, so leave one of them out."
        )
    if settings.labeled_images is not None and settings.labeled_images < 1:
        raise UserError(f"labeled_images is {settings.labeled_images}; it must be at least 1.")
    _check_kind(settings)
    if settings.pool is not None and not Path(settings.pool).exists():
        raise UserError(f"pool '{settings.pool}' does not exist in {Path.cwd()}. Give a folder or a list of images.")
    if settings.labels_per_class is not None and settings.labels_per_class < 1:
        raise UserError(f"labels_per_class is {settings.labels_per_class}; it must be at least 1.")
    if not settings.seeds or len(set(settings.seeds)) < len(settings.seeds):
        raise UserError(f"seeds is {settings.seeds}; give at least one, and none twice.")
    if (settings.teacher.model is None) == (settings.teacher.checkpoint is None):
        raise UserError("teacher needs either model: (it is trained) or checkpoint: FILE (it is trained already).")
    if settings.teacher.checkpoint is not None and not Path(settings.teacher.checkpoint).is_file():
        raise UserError(f"teacher.checkpoint {settings.teacher.checkpoint} does not exist.")
    taught = _pretrained(settings.teacher.model)
    for i, student in enumerate(settings.students):
        if student.ratio < 1:
            raise UserError(f"students.{i}.ratio is {student.ratio}; it must be a whole number of at least 1.")
        mine = _pretrained(student.model)
        if settings.teacher.model is not None and mine not in (False, taught):
            raise UserError(
                f"students.{i}.model.pretrained is {mine!r}, but the teacher's is {taught!r}: a student starts from"
                " scratch (false) or from the same weights as the teacher did, never from the teacher."
            )
    _check_devices(settings)


def _check_devices(settings: Settings) -> None:
    """Refuse several devices without a launcher, and a launcher without their number."""
    parts: dict[str, Teacher | Student | None] = {"trainer": None, "teacher.trainer": settings.teacher}
    parts |= {f"students.{i}.trainer": student for i, student in enumerate(settings.students)}
    for key, part in parts.items():
        number = num_devices(trainer := trainer_of(settings, part))
        if settings.launch is None and number != 1:
            raise UserError(
                f"{key} asks for devices: {trainer['devices']} and num_nodes: {trainer.get('num_nodes', 1)}, but"
                " noisy-student is one process: for several devices give it a launcher of its trainings, for example"
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
    kind = images if cls is None else kind_of(cls)
    kind.check_selection(settings.selection)
    if kind is images:
        return
    if settings.labels_per_class is not None:
        raise UserError(
            f"labels_per_class is {settings.labels_per_class}, but an image has {kind.UNIT} of several classes: give"
            " labeled_images, the number of images that keep their annotations."
        )
    for i, student in enumerate(settings.students):
        if student.labels == "soft" and not kind.SOFT_FILES:
            raise UserError(f"students.{i}.labels is 'soft', but {kind.UNIT} have a class and a score: leave it out.")
        for key, default in (("temperature", 1.0), ("smoothing", 0.0)):
            if getattr(student, key) != default:
                raise UserError(
                    f"students.{i}.{key} is {getattr(student, key)!r}, but only labels of whole images have it:"
                    f" for {kind.UNIT} leave it out."
                )


def _pretrained(model: Any) -> Any:
    return (model or {}).get("init_args", {}).get("pretrained", False)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values, those of ``over`` before those of ``base``; lists are replaced."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        out[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out


def plain(settings: Any) -> dict[str, Any]:
    """The settings as nested plain values, for manifests and the saved config."""
    if is_dataclass(settings) and not isinstance(settings, type):
        return {f.name: plain(getattr(settings, f.name)) for f in fields(settings)}
    if isinstance(settings, list):
        return [plain(value) for value in settings]  # type: ignore[return-value]
    return copy.deepcopy(settings)  # type: ignore[no-any-return]


def trainer_of(settings: Settings, part: Teacher | Student | None = None) -> dict[str, Any]:
    """The trainer of one training, or of the labelling; without a launcher it has one device.

    All trainings of the loop are one group in W&B.
    """
    base: dict[str, Any] = {"wandb": {"group": settings.name}} | ({} if settings.launch else {"devices": 1})
    return merged(merged(base, settings.trainer), {} if part is None else part.trainer)  # type: ignore[arg-type]


def num_devices(trainer: Mapping[str, Any]) -> int | None:
    """How many devices a trainer's settings ask for, over all nodes; None where Lightning is to find out."""
    devices, nodes = trainer.get("devices", "auto"), int(trainer.get("num_nodes", 1))
    if isinstance(devices, list):
        return len(devices) * nodes
    return int(devices) * nodes if str(devices).isdigit() else None
