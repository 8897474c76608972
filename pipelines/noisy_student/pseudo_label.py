"""The command ``pseudo-label``."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn

from datamodules.base import DataModule
from datamodules.cache import readable_images
from datamodules.common.errors import UserError
from datamodules.common.files import read_json
from datamodules.unlabeled import pool_records
from pipelines import cli
from pipelines.command import Command
from pipelines.noisy_student.kinds.base import Kind, SelectionJob
from pipelines.noisy_student.kinds.of_data import kind_of
from pipelines.noisy_student.labeling import evaluate, label_pool, load_teacher, prepare_teacher
from pipelines.noisy_student.selection import Selection
from pipelines.run.directory import find_checkpoint
from pipelines.run.loading import Loaded
from pipelines.trainer import Trainer
from tasks.base import Task


def pseudo_label(
    trainer: Trainer,
    model: Task,
    datamodule: DataModule,
    source: str,
    output: str,
    ckpt_path: str | None = None,
    teachers: list[str] = [],  # noqa: B006 - never changed
    selection: Selection | None = None,
    batch_size: int | None = None,
    soft: bool = False,
) -> Path:
    """Label a pool of images with a teacher, as an ordinary annotation file that any run can read.

    Class probabilities become a ``.parquet`` list, boxes a COCO ``.json`` file with scores, masks index PNGs with
    maps of confidence and a ``.parquet`` list of them. The teacher sees clean images in evaluation mode, with its
    averaged weights where it has some. Ranks share the pool; the same command continues where a killed one ended,
    and does nothing where the file is complete.

    Args:
        trainer: Where to run.
        model: The teacher.
        datamodule: Its data: how it reads and resizes images.
        source: The pool: a folder with its sub-folders, or a ``.csv`` or ``.parquet`` list with a column ``path``.
        output: The file to write, ``.parquet``, or ``.json`` for boxes.
        ckpt_path: The teacher: a file, ``best`` or ``last``; ``best`` of the newest run of this name by default.
        teachers: Further checkpoints; the labels are the mean of all teachers' probabilities.
        selection: Also write the labels worth teaching, as ``selected`` beside the output.
        batch_size: Images a step; that of the data by default.
        soft: For masks, also write the two most probable classes of each pixel with their probabilities, which a
            student then learns in place of the one class. Probabilities of whole images are soft in any case.

    Returns:
        The file of labels.

    Raises:
        UserError: If an argument is wrong, naming it, or the pool or a checkpoint is not there.
    """
    checkpoint = find_checkpoint(trainer.runs_dir, trainer.run_name, ckpt_path)
    file, kind = Path(output), kind_of(datamodule)
    _check(kind, file, selection, batch_size)
    records, skipped = readable_images(pool_records(source), datamodule.on_corrupt)
    if skipped:
        rank_zero_warn(f"{len(skipped)} images cannot be read and are left out; the first is {': '.join(skipped[0])}")
    further = [load_teacher(path, trust=trainer.trust) for path in teachers]
    all_teachers = [Loaded(checkpoint, model, datamodule, {}), *further]
    needs_validation = selection is not None and selection.precision is not None
    for teacher in all_teachers:
        prepare_teacher(trainer, teacher, batch_size=batch_size, needs_validation=needs_validation)
    label_pool(trainer, all_teachers, records, file, soft=soft)
    if selection is not None:
        _select(trainer, all_teachers, selection, file, len(records))
    rank_zero_info(f"{len(records)} labeled images are in {file}.")
    return file


main = functools.partial(cli.execute, Command("pseudo-label", pseudo_label))


def _check(kind: Kind, output: Path, selection: Selection | None, batch_size: int | None) -> None:
    """Refuse what would fail, or overwrite something, after hours."""
    if output.suffix != kind.LABELS:
        raise UserError(f"--output {output} must end in {kind.LABELS}: that is what is written for {kind.UNIT}.")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch_size is {batch_size}; it must be at least 1.")
    if selection is None:
        return
    kind.check_selection(selection)
    report = output.with_name("selection.json")
    labels = (read_json(report) or {}).get("labels", output.name)
    if labels != output.name:
        raise UserError(
            f"{report} is the report of a selection from {labels}, and would be overwritten: give --output in another"
            " folder."
        )


def _select(trainer: Trainer, teachers: Sequence[Loaded], selection: Selection, output: Path, num_images: int) -> None:
    """Write what is selected, and ``selection.json``, beside the labels."""
    data = teachers[0].data
    kind = kind_of(data)
    validation, records = None, []
    if selection.precision is not None:
        records = data.records["val"]
        if not records:
            raise UserError("selection.precision needs labeled validation images: set data.val_fraction.")
        validation = output.with_name(f"validation{kind.EVALUATION}")
        evaluate(trainer, teachers, records, data, validation)
    if trainer.is_global_zero:
        truth = {
            "class_names": data.class_names,
            "val": [kind.truth_of(record) for record in records],
            "pool": [kind.truth_of({})] * num_images,  # nothing is known of them
        }
        report = kind.write_selection(SelectionJob(output.parent, data, selection, output, validation, truth, 0))
        rank_zero_info(
            f"{output.with_name(f'selected{kind.LABELS}')} teaches {report['images']} images: {report['kept']} of"
            f" {report['pool']} {kind.UNIT} were kept ({report['coverage']:.0%})."
        )
    trainer.strategy.barrier("selected")
