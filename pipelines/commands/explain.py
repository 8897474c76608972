"""``explain``: which pixels a network answers by, and which method to believe about it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning.utilities import rank_zero_info

from datamodules.base import DataModule
from datamodules.common.errors import UserError
from datamodules.common.files import write_json
from datamodules.decoding.images import read_image
from datamodules.loaders import Record
from datamodules.readers.pictures import find_pictures
from pipelines import cli
from pipelines.command import Command
from pipelines.commands.verify import checkpoints_of, load_weights
from pipelines.explaining.attribution import Fill, Settings, methods_of
from pipelines.explaining.page import write_explanations
from pipelines.explaining.pictures import Explanation, Plan, explain_records
from pipelines.explaining.scores import as_text, as_values, method_scores
from pipelines.explaining.targets import Wanted, label_of
from pipelines.inference import Predictor
from pipelines.outputs.names import output_names
from pipelines.run.directory import run_of_checkpoint
from pipelines.trainer import Trainer
from tasks.hooks import TaskHooks


def explain(
    trainer: Trainer,
    model: TaskHooks,
    datamodule: DataModule,
    ckpt_path: str | None = None,
    source: str | list[str] | None = None,
    method: str | None = None,
    target: str | None = None,
    at: list[int] | None = None,
    boxes: int = 1,
    layer: str | None = None,
    fill: Fill = "mean",
    steps: int = 32,
    samples: int = 16,
    noise: float = 0.1,
    window: int | None = None,
    faithful: bool = True,
    limit: int = 16,
    seed: int = 0,
    output: str | None = None,
) -> dict[str, Any]:
    """Show which pixels a network answers by, with several methods, and measure which of them to believe.

    Each method is measured by what hiding and showing its pixels does to the answer, beside random explanations, and by
    whether it changes when the weights are shuffled. ``explain.html``, ``explain.json`` and ``overlays/`` are written.

    Args:
        trainer: Knows the run and the device.
        model: The task.
        datamodule: The data: how the network sees pictures.
        ckpt_path: A file, ``best`` or ``last``; ``best`` of the newest run of this name by default.
        source: As for ``predict``: a folder, a file, a pattern, a list of files, or several of these; the test split by
            default, or the validation split where there is none.
        method: One or several with commas: gradient, integrated_gradients, smoothgrad, occlusion, gradcam, layercam,
            lrp; with the extra ``explain`` also guided_backprop, deeplift, gradcam++ and scorecam. The first seven by
            default, without those that the network cannot be explained by.
        target: The class, by name or number; by default what the network says.
        at: A point [x, y] or a rectangle [x1, y1, x2, y2] in original pixels: the box there, or these pixels of a mask.
        boxes: Of a detector's picture, the surest ones.
        layer: Of gradcam and layercam: a name that ``summary`` shows.
        fill: What hidden pixels look like, and the baseline of integrated gradients: the network's mean color, black,
            or the blurred picture.
        steps: Of integrated_gradients.
        samples: Of smoothgrad.
        noise: Of smoothgrad, in parts of the range from black to white.
        window: Side of occlusion's windows in pixels of the network's input; a sixth of its shorter side by default.
        faithful: Measure the methods; without it only the pictures are made.
        limit: Pictures at most, spread evenly over the source.
        seed: Of all that is random.
        output: Folder; ``explain`` in the checkpoint's run directory by default.

    Returns:
        What ``explain.json`` holds.

    Raises:
        UserError: If the model cannot be explained, or a value makes no sense, naming it.
    """
    if limit < 1 or boxes < 1:
        raise UserError(f"--limit is {limit} and --boxes {boxes}; both must be at least 1.")
    if at is not None and len(at) not in (2, 4):
        raise UserError(f"--at is {at}; it takes a point [x, y] or a rectangle [x1, y1, x2, y2].")
    if at is not None and len(at) == 4 and (at[0] >= at[2] or at[1] >= at[3]):
        raise UserError(f"--at is {at}; a rectangle is [x1, y1, x2, y2] with x1 below x2 and y1 below y2.")
    if output is not None and Path(output).is_file():
        raise UserError(f"--output {output} is a file: give a folder.")
    settings = Settings(layer, fill, steps, samples, noise, window, seed)
    methods = methods_of(method)
    settings.check_used_by(methods)
    checkpoints = checkpoints_of(trainer, model, ckpt_path)
    folder = _folder(checkpoints[0], output)
    if source is not None and datamodule.class_names is not None:  # else the data are read, and say it
        model.taught.resolve(datamodule.spec(), type(datamodule).__name__)
    task = load_weights(trainer, model, datamodule, checkpoints, "predict", needs_data=source is None)
    device = trainer.strategy.root_device
    predictor = Predictor(task.to(device), datamodule, device, "32-true")
    names = list(datamodule.class_names or ())
    wanted = Wanted(label_of(target, names), at, boxes)
    records = _spread(_records(datamodule, source), limit)
    plan = Plan(methods, settings, wanted, faithful)
    explanations = list(explain_records(predictor, records, names, plan, skip_refused=method is None, tell=_tell))
    if not explanations:
        raise UserError(f"The network finds nothing to explain on {len(records)} picture(s).")
    scores = method_scores(explanations)
    values = {
        "checkpoint": str(checkpoints[0]),
        "fill": fill,
        "seed": seed,
        **as_values(scores, explanations),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "explain.json", values)
    files = _file_names(explanations)
    images = {record["path"]: record["image"] for record in records}  # a data set's may be arrays
    title = f"explain {checkpoints[0]}"
    write_explanations(folder, title, explanations, scores, files, lambda one: read_image(images[one.path]))
    if scores:
        print(as_text(scores), flush=True)
    print(f"{len(explanations)} explained; written to {folder}/explain.html", flush=True)
    return values


main = functools.partial(cli.execute, Command("explain", explain))


def _folder(checkpoint: Path, output: str | None) -> Path:
    if output is not None:
        return Path(output)
    return (run_of_checkpoint(checkpoint) or checkpoint.parent) / "explain"


def _records(datamodule: DataModule, source: str | list[str] | None) -> list[Record]:
    if source is None:
        return list(datamodule.records["test"] or datamodule.records["val"])
    given = [source] if isinstance(source, str) else source
    return [{"image": path, "path": path} for one in given for path in find_pictures(one)]


def _spread(records: Sequence[Record], limit: int) -> list[Record]:
    """At most so many records, evenly from the whole list, whose neighbors are often alike."""
    if len(records) <= limit:
        return list(records)
    rank_zero_info(f"{limit} of {len(records)} pictures are explained; --limit changes that.")
    return [records[i] for i in np.linspace(0, len(records) - 1, limit).round().astype(int)]


def _tell(text: str) -> None:
    print(text, flush=True)


def _file_names(explanations: Sequence[Explanation]) -> list[str]:
    """A name for each explanation; a number for the second one of a picture, and so on."""
    paths = [one.path for one in explanations]
    different = list(dict.fromkeys(paths))
    name_of = dict(zip(different, output_names(different), strict=True))
    return [
        name_of[path] if (before := paths[:i].count(path)) == 0 else f"{name_of[path]}_{before + 1}"
        for i, path in enumerate(paths)
    ]
