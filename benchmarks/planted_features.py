"""Whether ``features`` shows what a network goes by, where that is known: patches that give the class away.

    python -m benchmarks.planted_features planted --tasks classes boxes masks

trains a small network on each task's pictures (``benchmarks.planted``) and tells how often the unit that an exemplar
names lies on a patch, beside how often the same places lie on patches of other pictures: chance.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.planted import NAMES, read_evidence, write_planted
from datamodules.common.files import read_json
from pipelines.__main__ import main as pipelines

OTHERS = 20  # pictures for each exemplar, for chance
DATA = {"classes": "ClassificationData", "boxes": "DetectionData", "masks": "SegmentationData"}
MODELS = {
    "classes": ["Classification", "--data.augment.preset=none"],
    "boxes": ["Detection", "--model.detector_args={head_channels: 32, head_depth: 1}"],
    "masks": ["Segmentation", f"--data.class_names=[background,{','.join(NAMES)}]"],
}


@dataclass(frozen=True)
class Hits:
    """Of a layer's exemplars, fractions.

    Attributes:
        layer: Its name.
        sees: Side in pixels of what a unit sees; None for the whole picture.
        seen: Exemplars in which the unit sees at least half of a patch.
        seen_by_chance: The same, with the patches of other pictures.
        placed: Exemplars whose unit's own place touches a patch.
        placed_by_chance: The same.
    """

    layer: str
    sees: float | None
    seen: float
    seen_by_chance: float
    placed: float
    placed_by_chance: float


def hits(found: Mapping[str, Any], evidence: Mapping[str, NDArray[np.int64]], seed: int = 0) -> list[Hits]:
    """How often exemplars are of patches.

    Args:
        found: Contents of ``features.json``.
        evidence: Of ``benchmarks.planted.read_evidence``.
        seed: Of the other pictures.
    """
    rng, names = np.random.default_rng(seed), list(evidence)
    rows = []
    for layer in found["layers"]:
        exemplars = [one for channel in layer["channels"] for one in channel["exemplars"]]
        own = [evidence[Path(one["path"]).name] for one in exemplars]
        others = [[evidence[names[i]] for i in rng.integers(len(names), size=OTHERS)] for _ in exemplars]
        values = []
        for key, least in (("box", 0.5), ("place", 1e-9)):
            mine = [covered(one[key], patches) >= least for one, patches in zip(exemplars, own, strict=True)]
            theirs = [
                covered(one[key], patches) >= least
                for one, sets in zip(exemplars, others, strict=True)
                for patches in sets
            ]
            values += [float(np.mean(mine)), float(np.mean(theirs))]
        rows.append(Hits(layer["name"], layer["sees"] and layer["sees"][0], *values))
    return rows


def covered(box: Sequence[float], patches: NDArray[np.int64]) -> float:
    """The largest part of a patch, 0 to 1, that lies in a box x1 y1 x2 y2."""
    low, high = np.maximum(patches[:, :2], box[:2]), np.minimum(patches[:, 2:], box[2:])
    areas = (patches[:, 2:] - patches[:, :2]).prod(1)
    return float((np.clip(high - low, 0, None).prod(1) / areas).max(initial=0))


def measure(folder: Path, task: str, pictures: int, epochs: int, seed: int) -> list[Hits]:
    """Write the pictures, train, run ``features``.

    Args:
        folder: Where to.
        task: ``classes``, ``boxes`` or ``masks``.
        pictures: For training.
        epochs: Of training.
        seed: Of pictures, weights and order.
    """
    source = write_planted(folder / task, task, {"train": pictures, "val": 100}, seed=seed)  # type: ignore[arg-type]
    run = [f"--name={task}", f"--runs_dir={folder / 'runs'}", f"--seed_everything={seed}", "--trainer.accelerator=cpu"]
    data = [f"--data={DATA[task]}", f"--data.source={source}", "--data.image_size=64"]
    train = [f"--trainer.max_epochs={epochs}", f"--trainer.check_val_every_n_epoch={epochs}", "--model.optim.lr=2e-3"]
    model, *more = MODELS[task]
    words = [f"--model={model}", *data, *more, "--model.backbone=test_resnet", *train, *run, "--trainer.report=false"]
    if pipelines(["fit", *words]):
        raise SystemExit(1)
    output = folder / f"{task}_features"
    asked = ["--parts=[exemplars]", "--num_channels=8", f"--output={output}"]
    if pipelines(["features", "--ckpt_path=best", *run, *asked]):
        raise SystemExit(1)
    return hits(read_json(output / "features.json"), read_evidence(source))


def main(argv: list[str] | None = None) -> int:
    """Measure and print a table.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.planted_features", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", nargs="+", choices=tuple(DATA), default=list(DATA))
    parser.add_argument("--pictures", type=int, default=600, help="for training (600)")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    head = ["task", "layer", "sees", "sees a patch", "by chance", "lies on a patch", "by chance"]
    rows = [head]
    for task in given.tasks:
        for one in measure(given.folder, task, given.pictures, given.epochs, given.seed):
            parts = [one.seen, one.seen_by_chance, one.placed, one.placed_by_chance]
            names = [task, one.layer.rpartition(".")[2], f"{one.sees:g}" if one.sees else "all"]
            rows.append([*names, *(f"{part:.2f}" for part in parts)])
    for row in rows:
        print(f"| {' | '.join(row)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
