"""The command ``pseudo-label``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn

from datamodules.base import DataModule
from datamodules.cache import readable_images
from datamodules.common.errors import UserError
from datamodules.unlabeled import pool_records
from pipelines import cli
from pipelines.command import Command
from pipelines.noisy_student.kinds.protocol import Kind, kind_of
from pipelines.noisy_student.labelling import (
    Teacher,
    judge,
    label_pool,
    load_teacher,
    prepare_teacher,
)
from pipelines.noisy_student.manifest import read_json
from pipelines.noisy_student.selection import Selection
from pipelines.run.directory import find_checkpoint
from pipelines.trainer import Trainer
from tasks.base import Task


def main(words: list[str]) -> int:
    """The command ``pseudo-label``.

    Args:
        words: Its flags.

    Returns:
        The exit status, see ``cli.execute``.
    """
    return cli.execute(Command("pseudo-label", pseudo_label), words)


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
    averaged weights where it has some. Ranks share the pool; the same command goes on where a killed one ended,
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
    teacher = Teacher(find_checkpoint(trainer.runs_dir, trainer.run_name, ckpt_path), model, datamodule)
    file = Path(output)
    kind = kind_of(teacher.data)
    if file.suffix != kind.LABELS:
        raise UserError(f"--output {file} must end in {kind.LABELS}: that is what is written for {kind.UNIT}.")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch_size is {batch_size}; it must be at least 1.")
    if selection is not None:
        kind.check_selection(selection)
    records, skipped = readable_images(pool_records(source), teacher.data.on_corrupt)
    if skipped:
        rank_zero_warn(f"{len(skipped)} images cannot be read and are left out; the first is {': '.join(skipped[0])}")
    account = file.with_name("selection.json")
    of = (read_json(account) or {}).get("labels", file.name)
    if selection is not None and of != file.name:
        raise UserError(
            f"{account} says what was selected of {of}, and would be overwritten: give --output in another folder."
        )
    all_teachers = [teacher, *(load_teacher(path, trust=trainer.trust) for path in teachers)]
    needs_validation = selection is not None and selection.precision is not None
    for each in all_teachers:
        prepare_teacher(trainer, each, batch_size=batch_size, needs_validation=needs_validation)
    label_pool(trainer, all_teachers, records, file, soft=soft)
    if selection is not None:
        _select(trainer, kind, all_teachers, selection, file, len(records))
    rank_zero_info(f"{len(records)} labelled images are in {file}.")
    return file


def _select(
    trainer: Trainer, kind: Kind, teachers: Sequence[Teacher], selection: Selection, output: Path, images_: int
) -> None:
    """Write what is selected, and ``selection.json``, beside the labels."""
    data = teachers[0].data
    validation = None
    records = data.records["val"] if selection.precision is not None else []
    if selection.precision is not None:
        if not records:
            raise UserError("selection.precision needs labelled validation images: set data.val_fraction.")
        validation = output.with_name(f"validation{kind.JUDGED}")
        judge(trainer, teachers, records, data, validation)
    if trainer.is_global_zero:
        unknown = kind.truth_of({})
        truth = {
            "class_names": data.class_names,
            "val": [kind.truth_of(record) for record in records],
            "pool": [unknown] * images_,
        }
        account = kind.choose(output.parent, data, selection, output, validation, truth, 0)
        what = output.with_name(f"selected{kind.LABELS}")
        rank_zero_info(
            f"{what} teaches {account['images']} images: {account['kept']} of {account['pool']} {kind.UNIT} were kept"
            f" ({account['coverage']:.0%})."
        )
    trainer.strategy.barrier("selected")
