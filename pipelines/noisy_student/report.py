"""The account: what each model reached, and what of it came from size, unlabelled data, noise and iteration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.noisy_student import stages
from pipelines.noisy_student.labelling import pool_records, read_labels
from pipelines.noisy_student.machine import digest_of_values, read_json, say, write_json
from pipelines.noisy_student.page import write_page
from pipelines.noisy_student.settings import Settings
from pipelines.noisy_student.statistics import estimate
from pipelines.pictures import contact_sheet

if TYPE_CHECKING:
    from pipelines.noisy_student.loop import SeedRun

SUSPECTS = 40
WHAT = {
    "teacher": "labels only, the first net",
    "last": "noisy student of each seed's last generation",
    "labels_only": "control: the last student's net, noise and number of steps, labels only",
    "no_noise": "control: the last student without noise, the same steps and pseudo-labels",
}
# Difference -> (minuend, subtrahend, what it says).
DIFFERENCES = {
    "gain": ("last", "teacher", "all of it: the last student over the teacher"),
    "unlabelled data": ("last", "labels_only", "the last student over the same net and noise on labels only"),
    "noise": ("last", "no_noise", "the last student over the one without noise"),
    "size, noise, steps": ("labels_only", "teacher", "the student's net and training over the teacher's, labels only"),
    "iterations": ("last", "student1", "the last student over the first"),
}


def write_report(root: Path, settings: Settings, runs: list[SeedRun]) -> None:
    """Write ``report.json``, and from it ``report.html`` and a W&B table.

    Args:
        root: The loop's run directory.
        settings: The loop's.
        runs: What each seed left.
    """
    truths = [stages.read_truth(run.data["truth"].path) for run in runs]
    split = "test" if truths[0]["test"] else "val"
    right = {name: _right(name, runs, truths, split) for name in _common_names(runs)}
    right["last"] = np.stack([stages.right(_last(r)[split].path, t[split]) for r, t in zip(runs, truths, strict=True)])
    rows = [{"name": name, "what": _what(name), **estimate(values)} for name, values in right.items() if name != "last"]
    generations = [len(run.selections) for run in runs]
    differences = [
        {"name": name, "of": [a, b], "what": what, **estimate(right[a].astype(np.int8) - right[b])}
        for name, (a, b, what) in DIFFERENCES.items()
        if a in right and b in right and not (name == "iterations" and max(generations) == 1)
    ]
    report = {
        "metric": "accuracy",
        "split": split,
        "images": len(truths[0][split]),
        "labelled": len(truths[0]["train"]),
        "pool": len(truths[0]["pool"]),
        "seeds": [run.seed for run in runs],
        "generations": generations,
        "best_generation_on_validation": [run.final for run in runs],
        "rows": rows,
        "differences": differences,
        "validation": [{model.name: model.accuracy for model in run.models} for run in runs],
        "pseudo_labels": [[read_json(s["account"].path) for s in run.selections] for run in runs],
        "suspects": _suspects(root, runs[0], truths[0]),
        "seconds": [_seconds(root / f"seed{run.seed}") for run in runs],
    }
    write_json(root / "report.json", report)
    write_page(root / "report.json", root / "report.html")
    _to_wandb(root, settings, report)
    for row in [*rows, *differences]:
        say(f"{row['name']:<20} {row['mean']:+.4f}  [{row['low']:+.4f}, {row['high']:+.4f}]")


def _common_names(runs: list[SeedRun]) -> list[str]:
    """Models that all seeds have; a seed that stopped early has fewer generations."""
    names = [model.name for run in runs[:1] for model in run.models]
    return [name for name in names if all(name in [m.name for m in run.models] for run in runs)]


def _last(run: SeedRun) -> Any:
    return run.models[len(run.selections)].outputs


def _right(name: str, runs: list[SeedRun], truths: list[dict[str, Any]], split: str) -> NDArray[np.bool_]:
    """Whether each image is classified rightly: bool (seeds, images)."""
    files = [next(m.outputs[split].path for m in run.models if m.name == name) for run in runs]
    return np.stack([stages.right(file, truth[split]) for file, truth in zip(files, truths, strict=True)])


def _what(name: str) -> str:
    return WHAT.get(name) or f"noisy student of generation {name.removeprefix('student')}"


def _suspects(root: Path, run: SeedRun, truth: dict[str, Any]) -> list[dict[str, Any]]:
    """Taught labels that the last student believes least, the most doubtful first; and their pictures as a sheet."""
    taught = read_labels(run.selections[-1]["selected"].path, truth["class_names"])
    judged = read_labels(run.relabelled["labels"].path, truth["class_names"])
    places = {path: i for i, path in enumerate(judged.paths)}
    label_of = dict(zip(taught.paths, taught.probabilities.argmax(1).tolist(), strict=True))
    known = {path: truth["pool"][places[path]] for path in label_of}
    order = sorted(label_of, key=lambda path: (float(judged.probabilities[places[path], label_of[path]]), path))
    names = truth["class_names"]
    found = [
        {
            "path": path,
            "taught": names[label_of[path]],
            "student": names[int(judged.probabilities[places[path]].argmax())],
            "probability": float(judged.probabilities[places[path], label_of[path]]),
            "truth": names[known[path]] if known[path] >= 0 else None,
        }
        for path in order[:SUSPECTS]
    ]
    records = {record["path"]: record["image"] for record in pool_records(run.data["pool"].path)}
    captions = [
        f"{s['taught']}? student: {s['student']}" + (f", truth: {s['truth']}" if s["truth"] is not None else "")
        for s in found
    ]
    contact_sheet([records[s["path"]] for s in found], captions, root / "suspects.png", tile=96)
    return found


def _seconds(directory: Path) -> dict[str, float]:
    manifests = {path.parent.name: read_json(path) for path in sorted(directory.glob("*/manifest.json"))}
    return {name: manifest["seconds"] for name, manifest in manifests.items() if not name.endswith(".replaced")}


def _to_wandb(root: Path, settings: Settings, report: dict[str, Any]) -> None:
    """One table a report, in the project of the trainings."""
    from pipelines.loggers import log_image, log_table, wandb_logger
    from pipelines.run import wandb_id

    chosen: dict[str, Any] = dict(settings.trainer.get("wandb") or {})  # type: ignore[attr-defined]
    told = digest_of_values({k: v for k, v in report.items() if k != "seconds"})
    marker = root / "wandb_report.txt"
    if marker.is_file() and marker.read_text() == told:
        return  # the same command again; nothing new to tell
    logger = wandb_logger(
        root,
        mode=chosen.get("mode", "auto"),
        project=chosen.get("project", "pipelines"),
        name=f"{root.name}/report",
        run_id=wandb_id(root),
        config={"settings": json.loads((root / "settings.json").read_text())},
        entity=chosen.get("entity"),
        group=chosen.get("group"),
        tags=chosen.get("tags"),
    )
    if logger is None:
        return
    columns = ["name", "what", "mean", "sd", "low", "high", "t_low", "t_high"]
    table = [[row[c] for c in columns] for row in [*report["rows"], *report["differences"]]]
    log_table([logger], "noisy_student/account", columns, table, 0)
    log_image([logger], "noisy_student/suspects", root / "suspects.png", 0)
    logger.finish()
    marker.write_text(told)
