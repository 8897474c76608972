"""Pseudo-labels of pixels: index PNGs with maps of confidence beside them, and a list of the pairs, which is ordinary.

``labels.parquet`` has the columns ``path`` and ``mask``, which ``SegmentationData`` reads, and ``confidence_map``,
``confidence`` (the map's mean) and ``digest`` (of the PNGs). The PNGs are in the folder of the list's name. Where soft
labels were asked for, the column ``soft_mask`` names them, too; see ``datamodules.annotations.soft_masks``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.annotations.mask_files import load_mask
from datamodules.annotations.soft_masks import write_soft_mask
from datamodules.common.batch import IGNORE
from datamodules.common.errors import UserError
from datamodules.decoding.images import read_image
from pipelines.fusion import averaged_scores
from pipelines.noisy_student.manifest import write_json
from pipelines.noisy_student.paths import beside, listed, resolved
from pipelines.noisy_student.scorers import mean_iou
from pipelines.noisy_student.selection import Selection, by_class, fixed_thresholds
from pipelines.outputs.drawing import overlay, rescaled, resized
from pipelines.outputs.label_maps import label_png
from pipelines.outputs.palettes import class_palette
from pipelines.outputs.panels import display_size

if TYPE_CHECKING:
    from datamodules.annotations.records import Record
    from pipelines.noisy_student.labelling import Pool, Teacher

METRIC = "mIoU"
UNIT = "pixels"
LABELS = ".parquet"
PART = ".json"
JUDGED = ".npz"
REPLICATES = 10_000  # of the bootstrap
TILE = 320  # two pictures side by side
SOFT_FILES = True
SOURCE_ARGUMENTS: tuple[str, ...] = (
    *("source", "images", "masks", "mask_format", "colors", "class_values", "ignore_values", "num_scenes"),
    *("val_fraction", "test_fraction", "split_seed", "split_file"),
)
MASKS, MAPS, SOFT = "masks", "confidence", "soft"
PNGS = "pngs"  # folder of both while they are made
STEPS = 255  # a confidence of 1 in a map

Mask = NDArray[np.uint8]


class Pixels(NamedTuple):
    """A list's columns: images, masks, maps of confidence and soft masks, where it has some; all absolute paths."""

    paths: list[str]
    masks: list[str]
    maps: list[str]
    soft: list[str] | None


# What is refused.


def check_data(data: Any) -> None:
    """Refuse several labels a pixel.

    Raises:
        UserError: Naming the key.
    """
    if data.multi_label:
        raise UserError(
            "data.multi_label is true, but pseudo-labels have one class a pixel: give masks of one class a pixel"
            " (mask_format: index)."
        )


def check_selection(selection: Selection) -> None:
    """Refuse what has no meaning for pixels.

    Raises:
        UserError: Naming the key and what to do in its place.
    """
    if selection.precision is not None:
        raise UserError(
            f"selection.precision is {selection.precision}, but the pixels of an image are not independent samples: the"
            " bound would promise too much. Set selection.threshold, and see the precision that the report states."
        )
    if selection.balance:
        raise UserError(
            "selection.balance is true, but an image has pixels of several classes: set data.balance: sampler (or loss)"
            " for the student, which favours rare classes."
        )
    if selection.ignore is not None:
        raise UserError(
            f"selection.ignore is {selection.ignore}, but only boxes have it: pixels below the threshold are ignored."
        )


def annotation(record: Record) -> Any:
    """What tells one annotation from another, as a plain value: the mask files and their sizes on the disk."""
    if "scene" in record:
        return list(record["scene"])
    mask = record["mask"]
    files = mask if isinstance(mask, list) else [mask]
    return [[file, os.path.getsize(file)] if isinstance(file, str) else str(file) for file in files]


def truth_of(record: Record) -> str | None:
    """What ``truth.json`` holds of an image: the path of the annotated record; None where nothing is known."""
    return str(record["path"]) if "mask" in record or "scene" in record else None


def unlabelled_arguments(class_names: list[str]) -> dict[str, Any]:
    """Arguments of the data that reads the selected masks, beside ``source``."""
    return {"class_names": class_names, "mask_format": "index", "val_fraction": 0.0}


# Labelling.


def prepare(task: Any, *, soft: bool) -> None:
    """Make a teacher say how sure it is of each pixel; with ``soft`` of the next class, too.

    Raises:
        UserError: If it gives several labels a pixel.
    """
    if getattr(task, "multi_label", False):
        raise UserError("The teacher gives several labels a pixel (model.multi_label), but pseudo-labels have one.")
    task.with_confidence = 2 if soft else 1


@contextmanager
def together(teachers: Sequence[Teacher]) -> Iterator[Sequence[Teacher]]:
    """One teacher gives the mean of all: maps of every class's probability are too large to be kept for it."""
    with averaged_scores(teachers) as mean:
        yield [mean]


def rows_of(outputs: Mapping[str, Any], batch: Mapping[str, Any], pool: Pool) -> list[Any]:
    """Write the PNGs of a batch, and keep what the list says of each image."""
    palette = class_palette(pool.data.class_names or [], getattr(pool.data, "class_colors", None))

    def write(number: int, mask: Any, sure: Any, second: Any) -> dict[str, Any]:
        name, labels, levels = pool.names[number], np.asarray(mask.cpu()), np.asarray(sure.cpu())
        places = [pool.parts / PNGS / folder / f"{name}.png" for folder in (MASKS, MAPS, SOFT)]
        for place in places[:2]:
            place.parent.mkdir(parents=True, exist_ok=True)
        label_png(labels, palette, places[0])
        places[1].write_bytes(cv2.imencode(".png", levels)[1].tobytes())
        digest = hashlib.sha256(labels.tobytes() + levels.tobytes())
        if second is not None:
            planes = np.concatenate([labels[None], levels[None], np.asarray(second.cpu())])
            write_soft_mask(planes, places[2])
            digest.update(planes.tobytes())
        return {"name": name, "confidence": float(levels.mean()) / STEPS, "digest": digest.hexdigest()[:32]}

    second = outputs.get("second", [None] * len(outputs["mask"]))
    with ThreadPoolExecutor(4) as threads:
        return list(threads.map(write, batch["id"].tolist(), outputs["mask"], outputs["confidence"], second))


def write_part(file: Any, rows: list[Any]) -> None:
    """Write a chunk into an open file."""
    file.write(json.dumps(rows).encode())


def merge(output: Path, pools: Sequence[Pool], class_names: list[str], digest: str, *, every: bool) -> None:
    """Move the PNGs into the list's folder, and write the list."""
    (pool,) = pools
    rows = [row for file in pool.files() for row in json.loads(file.read_text())]
    folder = output.with_suffix("")
    if (pool.parts / PNGS).is_dir():  # else a merge was killed behind this move
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(pool.parts / PNGS, folder)
    columns = {
        "path": [listed(record["path"], output) for record in pool.records],
        "split": ["train"] * len(rows),
        "mask": [f"{folder.name}/{MASKS}/{row['name']}.png" for row in rows],
        "confidence_map": [f"{folder.name}/{MAPS}/{row['name']}.png" for row in rows],
        "confidence": [row["confidence"] for row in rows],
        "digest": [row["digest"] for row in rows],
    }
    if (folder / SOFT).is_dir():
        columns["soft_mask"] = [f"{folder.name}/{SOFT}/{row['name']}.png" for row in rows]
    _write_list(columns, output, digest)


def _write_list(columns: Mapping[str, Sequence[Any]], output: Path, digest: str = "") -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(dict(columns)).replace_schema_metadata({"pseudo_label": json.dumps({"digest": digest})})
    output.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, beside(output))
    os.replace(beside(output), output)


def digest_in(file: Path) -> str | None:
    """The digest that a list of labels carries; None where its PNGs are gone."""
    import pyarrow.parquet as pq

    if not file.is_file() or not file.with_suffix("").is_dir():
        return None
    note = json.loads((pq.read_schema(file).metadata or {}).get(b"pseudo_label", b"{}"))
    digest: str | None = note.get("digest")
    return digest


def read_pixels(file: Path) -> Pixels:
    """Read what ``merge`` wrote, corrected by hand or not."""
    import pyarrow.parquet as pq

    table = pq.read_table(file).to_pydict()
    maps = table.get("confidence_map", table["mask"])
    paths, masks, maps = ([resolved(n, file) for n in column] for column in (table["path"], table["mask"], maps))
    return Pixels(paths, masks, maps, [resolved(n, file) for n in table["soft_mask"]] if "soft_mask" in table else None)


def _indices(path: str) -> Mask:
    return load_mask(path).pixels.astype(np.uint8, copy=False)


# Scores.


def judge(labels: Path, records: Sequence[Record], data: Any, task: Any, output: Path) -> None:
    """Compare masks with the truth, and write each image's confusion matrix.

    Args:
        labels: A model's masks of the records.
        records: Annotated images.
        data: Whose they are.
        task: The model.
        output: An ``.npz`` file: ``confusion`` int64 (N, K, K), rows the true classes.
    """
    classes, read = len(data.class_names), data.make_reader()

    def compare(record: Record, mask: str) -> NDArray[np.int64]:
        return _confusion(read(record)["mask"], _indices(mask), classes)

    with ThreadPoolExecutor(4) as threads:
        each = list(threads.map(compare, records, read_pixels(labels).masks))
    with open(beside(output), "wb") as file:
        np.savez(file, confusion=np.stack(each))
    os.replace(beside(output), output)


def _confusion(truth: Mask, mask: Mask, classes: int) -> NDArray[np.int64]:
    """Pixels of each true and given class, int64 (K, K); those that either ignores are left out."""
    known = (truth != IGNORE) & (mask != IGNORE)
    cells = truth[known].astype(np.int64) * classes + mask[known]
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def scores(file: Path, truth: Sequence[Any], counts: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """Scores of a model on resamples (R, N) of the images, each (R,)."""
    with np.load(file) as known:
        return {METRIC: mean_iou(counts, known["confusion"])}


# Selection.


def choose(
    directory: Path,
    data: Any,
    selection: Selection,
    labels_file: Path,
    validation_file: Path | None,
    truth: Mapping[str, Any],
    seed: int,
) -> dict[str, Any]:
    """Write ``selected.parquet`` with its folder, and ``selection.json``; see ``images.choose``.

    Pixels below the threshold of their class become 255. Images without any other pixel are left out.

    Raises:
        UserError: If nothing is kept.
    """
    names, pixels = list(truth["class_names"]), read_pixels(labels_file)
    thresholds = fixed_thresholds(names, selection.threshold)
    # The least level of each class that reaches its threshold; ignored pixels of a corrected mask never do.
    least = np.full(256, STEPS + 1, np.int64)
    least[: len(names)] = np.ceil(thresholds * STEPS - 1e-9)
    records = {record["path"]: record for record in data.records["train"]} if any(truth["pool"]) else {}
    read, palette = data.make_reader(), class_palette(names, getattr(data, "class_colors", None))
    output = directory / "selected.parquet"
    shutil.rmtree(output.with_suffix(""), ignore_errors=True)  # of a run that was killed
    folder = Path(os.path.commonpath([os.path.dirname(mask) for mask in pixels.masks]))

    def work(
        mask_file: str, map_file: str, soft_file: str | None, known: str | None
    ) -> tuple[str, str, NDArray[np.int64]]:
        """Where the new mask is, its digest, and counts: pixels, and true and given classes of all and of kept ones."""
        mask, levels = _indices(mask_file), _indices(map_file) if map_file != mask_file else None
        kept = mask if levels is None else np.where(levels >= least[mask], mask, IGNORE).astype(np.uint8)
        target = output.with_suffix("") / Path(mask_file).relative_to(folder)
        if (kept != IGNORE).any():
            label_png(kept, palette, target)
        true = np.full_like(mask, IGNORE) if known is None else read(records[known])["mask"]
        counts = [np.bincount(part.ravel(), minlength=256)[: len(names)] for part in (mask, kept)]
        tables = [_confusion(true, part, len(names)) for part in (mask, kept)]
        taught = kept.tobytes() + (b"" if soft_file is None else Path(soft_file).read_bytes())
        digest = hashlib.sha256(taught).hexdigest()[:32]
        return str(target.relative_to(directory)), digest, np.concatenate([np.stack(counts), *tables])

    with ThreadPoolExecutor(4) as threads:
        soft: Sequence[str | None] = pixels.soft or [None] * len(pixels.masks)
        done = list(threads.map(work, pixels.masks, pixels.maps, soft, truth["pool"]))
    taught = [i for i, (_, _, counts) in enumerate(done) if counts[1].any()]
    if not taught:
        raise UserError(
            f"selection keeps none of the pixels of {len(done)} images. Lower selection.threshold, or train a better"
            " teacher."
        )
    columns = {
        "path": [listed(pixels.paths[i], output) for i in taught],
        "split": ["train"] * len(taught),
        "mask": [done[i][0] for i in taught],
        "digest": [done[i][1] for i in taught],
    }
    if pixels.soft is not None:  # as the teacher wrote them: where the mask is 255 they do not count
        columns["soft_mask"] = [listed(pixels.soft[i], output) for i in taught]
    _write_list(columns, output)
    account = _describe(np.sum([counts for _, _, counts in done], axis=0), names, thresholds)
    account |= {"pool_images": len(done), "images": len(taught), "distinct_images": len(taught)}
    account["labels"] = labels_file.name
    write_json(directory / "selection.json", account)
    return account


def _describe(sums: NDArray[np.int64], names: list[str], thresholds: NDArray[np.float64]) -> dict[str, Any]:
    """Counts of the account from the sums of what ``choose`` counts for each image."""
    size = len(names)
    labelled, kept = sums[0], sums[1]
    everything, taught = sums[2 : 2 + size], sums[2 + size :]
    account: dict[str, Any] = {
        "unit": UNIT,
        "pool": int(labelled.sum()),
        "kept": int(kept.sum()),
        "coverage": float(kept.sum() / max(1, labelled.sum())),
        "thresholds": by_class(names, thresholds.tolist()),
        "labelled_as": by_class(names, labelled.tolist()),
        "kept_as": by_class(names, kept.tolist()),
        "taught_as": by_class(names, kept.tolist()),
    }
    if everything.any():
        right, given = taught.diagonal(), taught.sum(0)
        account |= {
            "precision_of_all": float(everything.trace() / everything.sum()),
            "precision": float(taught.trace() / taught.sum()) if taught.any() else None,
            "precision_by_class": by_class(
                names, [float(r / g) if g else None for r, g in zip(right, given, strict=True)]
            ),
            "truth_of_taught": by_class(names, taught.sum(1).tolist()),
        }
    return account


# What is most likely wrong.


def suspects(
    selected: Path, judged: Path, pool: Sequence[Record], truth: Mapping[str, Any], data: Any, count: int
) -> tuple[list[dict[str, Any]], list[Any], list[str]]:
    """Images whose taught pixels and those of the last student agree least; see ``images``.

    Pictures show the taught labels and the student's side by side.
    """
    names = list(truth["class_names"])
    taught, student = read_pixels(selected), read_pixels(judged)
    student_of = dict(zip(student.paths, student.masks, strict=True))

    def agreement(path: str, mask: str) -> float:
        given, other = _indices(mask), _indices(student_of[path])
        known = given != IGNORE
        return float((given == other)[known].mean())

    with ThreadPoolExecutor(4) as threads:
        agreed = list(threads.map(agreement, taught.paths, taught.masks))
    palette = class_palette(names, getattr(data, "class_colors", None))
    files = {record["path"]: record["image"] for record in pool}
    found, pictures, captions = [], [], []
    for i in sorted(range(len(agreed)), key=lambda i: (agreed[i], taught.paths[i]))[:count]:
        path = taught.paths[i]
        found.append({"path": path, "agreement": agreed[i]})
        image = read_image(files.get(path, path))
        new = display_size(image.shape[:2])
        masks = [rescaled({"mask": _indices(m)}, image.shape[:2], new) for m in (taught.masks[i], student_of[path])]
        shown = resized(image, new)
        pictures.append(np.concatenate([overlay(shown, mask["mask"], palette) for mask in masks], axis=1))
        captions.append(f"taught | student: they agree to {agreed[i]:.0%}")
    return found, pictures, captions
