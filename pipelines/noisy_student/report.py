"""The report: what each model reached, and what of it came from size, unlabeled data, noise and iteration."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.base import DataModule
from datamodules.common.files import read_json, write_json
from datamodules.unlabeled import pool_records
from pipelines.callbacks.ending import command_line
from pipelines.noisy_student.data_stage import read_truth
from pipelines.noisy_student.kinds.base import Kind
from pipelines.noisy_student.kinds.of_data import kind_of
from pipelines.noisy_student.page import write_page
from pipelines.noisy_student.results import REPORT, SeedRun
from pipelines.noisy_student.settings import Settings, trainer_of
from pipelines.outputs.sheets import contact_sheet
from pipelines.stages.manifest import digest_of_values
from pipelines.statistics import Sampled, interval, sampled

SUSPECTS = 40  # on the sheet
SHEET = "suspects.png"


class Words(NamedTuple):
    """What a report calls things.

    Attributes:
        title: Of the page.
        what: Model -> what it is.
        differences: Difference -> (minuend, subtrahend, what it means).
    """

    title: str
    what: dict[str, str]
    differences: dict[str, tuple[str, str, str]]


LOOP = Words(
    "What the unlabeled images were worth",
    {
        "teacher": "labels only, the first net",
        "last": "noisy student of each seed's last generation",
        "labels_only": "control: the last student's net, noise and number of steps, labels only",
        "no_noise": "control: the last student without noise, the same steps and pseudo-labels",
    },
    {
        "gain": ("last", "teacher", "all of it: the last student over the teacher"),
        "unlabeled data": ("last", "labels_only", "the last student over the same net and noise on labels only"),
        "noise": ("last", "no_noise", "the last student over the one without noise"),
        "size, noise, steps": (
            *("labels_only", "teacher"),
            "the student's net and training over the teacher's, labels only",
        ),
        "iterations": ("last", "student1", "the last student over the first"),
    },
)
DISTILLED = Words(
    "What the teacher was worth to the student",
    {
        "teacher": "one or several networks together",
        "student1": "the small net, taught by labels and teacher",
        "labels_only": "the student alone: the same net and number of steps, labels only",
    },
    {
        "distillation": ("last", "labels_only", "the student over the student alone"),
        "student": ("last", "teacher", "the student over its teacher"),
        "student alone": ("labels_only", "teacher", "the student alone over the teacher"),
    },
)


def write_report(root: Path, settings: Settings, data: DataModule, runs: list[SeedRun]) -> None:
    """Write ``report.json``, and from it ``report.html`` and a W&B table.

    Args:
        root: The loop's run directory.
        settings: The loop's.
        data: The labeled data.
        runs: What each seed left.
    """
    kind = kind_of(data)
    truths = [read_truth(run.data["truth"].path) for run in runs]
    split = "test" if truths[0]["test"] else "val"
    words = DISTILLED if settings.distil else LOOP
    report = {
        "title": words.title,
        **_scores(kind, runs, split, [truth[split] for truth in truths], words),
        "unit": kind.UNIT,
        "split": split,
        "images": len(truths[0][split]),
        "labelled": len(truths[0]["train"]),
        "pool": len(truths[0]["pool"]),
        "seeds": [run.seed for run in runs],
        "generations": [len(run.selections) for run in runs],
        "best_generation_on_validation": [run.best for run in runs],
        "validation": [{model.name: model.score for model in run.models} for run in runs],
        "pseudo_labels": [[read_json(outputs[REPORT].path) for outputs in run.selections] for run in runs],
        "suspects": _doubtful(root, kind, data, runs[0], truths[0]),
        "seconds": [_seconds(root / f"seed{run.seed}") for run in runs],
    }
    write_json(root / "report.json", report)
    write_page(root / "report.json", root / "report.html")
    _to_wandb(root, settings, report)
    print("\n".join(["", *summary(report), "", *_use(runs, report["metric"])]), flush=True)


def summary(report: Mapping[str, Any]) -> list[str]:
    """The table of what the models reached and of the differences, with the metric's name."""
    seeds = f"{len(report['seeds'])} seeds" if len(report["seeds"]) > 1 else "one seed"
    head = f"{report['metric']} on {report['images']:,} {report['split']} images, {seeds}, intervals of 95 %"
    rows = [(row, "") for row in report["rows"]] + [(row, "+") for row in report["differences"]]
    width = max(len(row["name"]) for row, _ in rows)
    lines = []
    for row, sign in rows:
        mean, low, high = (f"{row[key]:{sign}.4f}" for key in ("mean", "low", "high"))
        lines.append(f"  {row['name']:<{width}}  {mean:>7}  [{low}, {high}]  {row['what']}")
    return [head, *lines[: len(report["rows"])], "differences", *lines[len(report["rows"]) :]]


def _use(runs: Sequence[SeedRun], metric: str) -> list[str]:
    """How to use the last student, that of the seed which is best on validation."""
    best = max(runs, key=lambda run: run.last.score)
    checkpoint = best.last.outputs["student"].path
    near = checkpoint.relative_to(Path.cwd()) if checkpoint.is_relative_to(Path.cwd()) else checkpoint
    of_seed = f", of {len(runs)} seeds the best on validation" if len(runs) > 1 else ""
    words = ["predict", "--ckpt_path", str(near), "--source", "PICTURES"]
    return [f"use it: {command_line(words)}", f"({metric} {best.last.score:.4f} on validation{of_seed})"]


def _scores(
    kind: Kind, runs: list[SeedRun], split: str, truths: Sequence[Sequence[Any]], words: Words
) -> dict[str, Any]:
    """Tables of what the models reached, by the main metric and by others."""
    files = {name: [run.model(name).outputs[split].path for run in runs] for name in _common_names(runs)}
    files["last"] = [run.last.outputs[split].path for run in runs]
    found = {name: _sampled(kind, of_seeds, truths) for name, of_seeds in files.items()}
    first, *others = [_tables(metric, found, runs, words) for metric in found["last"]]
    return {**first, "other_metrics": others}


def _tables(
    metric: str, found: Mapping[str, Mapping[str, Sampled]], runs: list[SeedRun], words: Words
) -> dict[str, Any]:
    """What each model reached by one metric, and the differences."""
    one_generation = max(len(run.selections) for run in runs) == 1
    return {
        "metric": metric,
        "rows": [
            {"name": name, "what": _what(name, words), **interval(values[metric])}
            for name, values in found.items()
            if name != "last"
        ],
        "differences": [
            {"name": name, "of": [a, b], "what": what, **interval(found[a][metric] - found[b][metric])}
            for name, (a, b, what) in words.differences.items()
            if a in found and b in found and not (name == "iterations" and one_generation)
        ],
    }


def _sampled(kind: Kind, files: list[Path], truths: Sequence[Sequence[Any]]) -> dict[str, Sampled]:
    """A model's scores, by name: of each seed, and on resamples of the images."""

    def score(counts: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
        each = [kind.scores(file, truth, counts) for file, truth in zip(files, truths, strict=True)]
        return {name: np.stack([values[name] for values in each], 1) for name in each[0]}

    return sampled(score, len(truths[0]), kind.REPLICATES)


def _common_names(runs: list[SeedRun]) -> list[str]:
    """Models that all seeds have; a seed that stopped early has fewer generations."""
    names = [model.name for run in runs[:1] for model in run.models]
    return [name for name in names if all(name in [m.name for m in run.models] for run in runs)]


def _what(name: str, words: Words) -> str:
    return words.what.get(name) or f"noisy student of generation {name.removeprefix('student')}"


def _doubtful(root: Path, kind: Kind, data: DataModule, run: SeedRun, truth: dict[str, Any]) -> list[dict[str, Any]]:
    """Taught labels with which the last student disagrees, the most doubtful first; and a sheet, if there are any."""
    selected, relabeled = run.selections[-1]["selected"].path, run.relabeled["labels"].path
    pool = pool_records(run.data["pool"].path)
    doubtful = kind.doubtful(selected, relabeled, pool, truth, data, SUSPECTS)
    sheet = root / SHEET
    sheet.unlink(missing_ok=True)
    if doubtful.pictures:
        contact_sheet(doubtful.pictures, doubtful.captions, sheet, tile=kind.TILE)
    return doubtful.found


def _seconds(directory: Path) -> dict[str, float]:
    manifests = {path.parent.name: read_json(path) for path in sorted(directory.glob("*/manifest.json"))}
    return {name: manifest["seconds"] for name, manifest in manifests.items() if not name.endswith(".replaced")}


def _to_wandb(root: Path, settings: Settings, report: dict[str, Any]) -> None:
    """One table a report, in the project of the trainings."""
    from pipelines.run.directory import wandb_id
    from pipelines.run.tracking import Wandb, wandb_logger
    from pipelines.run.wandb_media import log_image, log_table

    of_trainings = trainer_of(settings)["wandb"]  # its group, too
    chosen = {key: value for key, value in of_trainings.items() if key != "job_type"}
    told = digest_of_values({k: v for k, v in report.items() if k != "seconds"})
    marker = root / "wandb_report.txt"
    if marker.is_file() and marker.read_text() == told:
        return  # the same command again; nothing new to tell
    logger = wandb_logger(
        root,
        Wandb(**chosen, job_type="summary"),
        name=f"{root.name}/report",
        run_id=wandb_id(root),
        config={"settings": json.loads((root / "settings.json").read_text())},
    )
    if logger is None:
        return
    columns = ["name", "what", "mean", "sd", "low", "high", "t_low", "t_high"]
    table = [[row[c] for c in columns] for row in [*report["rows"], *report["differences"]]]
    log_table([logger], "noisy_student/report", columns, table, 0)
    if (root / SHEET).is_file():
        log_image([logger], "noisy_student/suspects", root / SHEET, 0)
    logger.finish()
    marker.write_text(told)
