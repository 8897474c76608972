"""Train a ready config and its peer script on the same pictures, and print both sides' figures."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.recipes.peer import Lists
from benchmarks.recipes.scores import MEASURES, interval
from datamodules.classification import ClassificationData
from datamodules.detection import DetectionData
from datamodules.segmentation import SegmentationData

DATA: dict[str, Any] = {
    "classification": ClassificationData,
    "detection": DetectionData,
    "segmentation": SegmentationData,
}
Done = tuple[list[Any], dict[str, float]]
"""Results and costs of one training."""

PROJECT = Path(__file__).resolve().parents[2]


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recipes", description=__doc__, epilog="After -- more flags of our fit."
    )
    parser.add_argument("task", choices=MEASURES)
    parser.add_argument("--source", required=True, help="the data set, as data.source takes it")
    parser.add_argument("--weights", required=True, help="file of the backbone's weights")
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--size", type=int, nargs=2, required=True, metavar=("H", "W"))
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--test_fraction", type=float, default=0.0, help="where the set has no test split")
    parser.add_argument("--data", type=json.loads, default={}, help='more of both sides\' data, as {"masks": "..."}')
    parser.add_argument("--sides", nargs="+", choices=("ours", "peer"), default=("ours", "peer"))
    parser.add_argument("--validate", action="store_true", help="score validation pictures: to choose defaults")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, of one thread each if several")
    parser.add_argument("--output", help="folder that keeps runs and results; a temporary one by default")
    return parser


def read_lists(given: argparse.Namespace) -> Lists:
    """The pictures, read by our datamodule for both sides."""
    data = DATA[given.task](given.source, test_fraction=given.test_fraction, **given.data)
    data.setup()
    return Lists(data.records, data.class_names, data.make_reader())


def run_job(folder: Path, job: dict[str, Any], lists: Lists) -> Done:
    """One training in a child process; one that is done already is not done again.

    Raises:
        SystemExit: It failed; the last lines of its log are printed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "costs.json").exists():
        (folder / "job.json").write_text(json.dumps(job))
        (folder / "lists.pkl").write_bytes(pickle.dumps(lists))
        environment = os.environ | {"PYTHONPATH": str(PROJECT)}
        environment["OMP_NUM_THREADS"] = str(job["threads"])
        command = [sys.executable, "-m", "benchmarks.recipes.run", str(folder / "job.json")]
        if status := run_logged(command, environment, folder / "log.txt"):
            print((folder / "log.txt").read_text()[-2000:], file=sys.stderr)
            raise SystemExit(f"{folder / 'log.txt'}: status {status}")
    return torch.load(folder / "results.pt", weights_only=True), json.loads((folder / "costs.json").read_text())


def run_logged(command: list[str], environment: dict[str, str], log: Path) -> int:
    """Run a command with its output in a file, and return its status."""
    with log.open("w") as file:
        return subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False).returncode


def main(argv: list[str] | None = None) -> None:
    """Run all sides and seeds, print the table."""
    words = sys.argv[1:] if argv is None else argv
    cut = words.index("--") if "--" in words else len(words)
    given = arguments().parse_args(words[:cut])
    given.flags = words[cut + 1 :]
    root = Path(given.output or tempfile.mkdtemp(prefix="recipes-")).resolve()
    threads = 1 if given.jobs > 1 else torch.get_num_threads()
    given.source, given.weights = (str(Path(path).resolve()) for path in (given.source, given.weights))
    lists = read_lists(given)
    keys = ("task", "source", "weights", "backbone", "size", "epochs", "test_fraction", "data", "flags")
    shared = {key: getattr(given, key) for key in keys} | {"threads": threads}
    shared["split"] = "test" if lists.records["test"] and not given.validate else "val"
    runs = [(seed, side) for seed in given.seeds for side in given.sides]  # in turns: neighbors disturb both alike
    with ThreadPoolExecutor(given.jobs) as pool:
        jobs = [(root / f"{side}-{seed}", shared | {"side": side, "seed": seed}) for seed, side in runs]
        done = dict(zip(runs, pool.map(lambda job: run_job(job[0], job[1], lists), jobs), strict=True))
    report(given, shared["split"], done)
    if not given.output:
        print(f"runs and logs: {root}")


def report(
    given: argparse.Namespace, split: str, done: dict[tuple[int, str], tuple[list[Any], dict[str, float]]]
) -> None:
    """Print one line a side, and the difference."""
    name, measure = MEASURES[given.task]
    print(f"{given.task} {given.source}: {given.backbone}, {given.size}, {given.epochs} epochs, {split} {name}")
    for side in given.sides:
        of_side = [done[seed, side] for seed in given.seeds]
        scores = [measure(results) for results, _ in of_side]
        cpu, memory = (np.median([cost[key] for _, cost in of_side]) for key in ("cpu", "memory"))
        each = ", ".join(f"{score:.4f}" for score in scores)
        print(
            f"  {side:<5} {np.mean(scores):.4f} ({each})  {cpu:6.0f} CPU s  {memory:5.0f} MiB  n={len(of_side[0][0])}"
        )
    if len(given.sides) > 1:
        ours, peers = ([done[seed, side] for seed in given.seeds] for side in ("ours", "peer"))
        difference = np.mean([measure(a[0]) - measure(b[0]) for a, b in zip(ours, peers, strict=True)])
        low, high = interval(given.task, [results for results, _ in ours], [results for results, _ in peers])
        ratio = np.median([a[1]["cpu"] / b[1]["cpu"] for a, b in zip(ours, peers, strict=True)])
        print(f"  ours - peer {difference:+.4f} [{low:+.4f}, {high:+.4f}]  CPU {ratio:.2f} times the peer's")


if __name__ == "__main__":
    main()
