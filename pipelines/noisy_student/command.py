"""The command ``pseudo-label``, a method of the Trainer whose work is done here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn

from datamodules.cache import readable_images
from datamodules.common.errors import UserError
from datamodules.unlabeled import pool_records
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

if TYPE_CHECKING:
    from pipelines.trainer import Trainer


def pseudo_label(
    trainer: Trainer,
    teacher: Teacher,
    further: Sequence[str],
    source: str,
    output: Path,
    selection: Selection | None,
    batch_size: int | None,
    *,
    soft: bool = False,
) -> None:
    """Label a pool, and select where that is asked for; see ``Trainer.pseudo_label``.

    Args:
        trainer: Where to run.
        teacher: The first.
        further: Checkpoints of the others.
        source: The pool.
        output: The file of labels.
        selection: Which labels are taught.
        batch_size: Images a step.
        soft: Also write soft labels of pixels.

    Raises:
        UserError: If an argument is wrong, naming it.
        UserError: If the pool or a checkpoint is not there.
    """
    kind = kind_of(teacher.data)
    if output.suffix != kind.LABELS:
        raise UserError(f"--output {output} must end in {kind.LABELS}: that is what is written for {kind.UNIT}.")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch_size is {batch_size}; it must be at least 1.")
    if selection is not None:
        kind.check_selection(selection)
    records, skipped = readable_images(pool_records(source), teacher.data.on_corrupt)
    if skipped:
        rank_zero_warn(f"{len(skipped)} images cannot be read and are left out; the first is {': '.join(skipped[0])}")
    account = output.with_name("selection.json")
    of = (read_json(account) or {}).get("labels", output.name)
    if selection is not None and of != output.name:
        raise UserError(
            f"{account} says what was selected of {of}, and would be overwritten: give --output in another folder."
        )
    teachers = [teacher, *(load_teacher(path) for path in further)]
    needs_validation = selection is not None and selection.precision is not None
    for each in teachers:
        prepare_teacher(trainer, each, batch_size=batch_size, needs_validation=needs_validation)
    label_pool(trainer, teachers, records, output, soft=soft)
    if selection is not None:
        _select(trainer, kind, teachers, selection, output, len(records))
    rank_zero_info(f"{len(records)} labelled images are in {output}.")


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
