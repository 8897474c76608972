"""How much of an explanation lies on planted evidence: which methods find it, for all tasks.

python -m benchmarks.planted classes data/planted --train 1200 --val 200
python -m pipelines fit ... --data.source data/planted
python -m benchmarks.evidence best.ckpt data/planted --pictures 50
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pipelines
from benchmarks.planted import mass_on, read_evidence
from pipelines.explaining.pictures import Explanation
from pipelines.explaining.pictures import to_original as map_to_original

MARGIN = 4  # pixels around a patch that count in the second column: maps of stride 8 cannot be finer


def evidence_of(one: Explanation, places: NDArray[np.int64]) -> NDArray[np.int64]:
    """The patches that belong to what was explained: (P, 4), x1 y1 x2 y2.

    Those whose middle lies in the box, or in the pixels; of a class all.
    """
    middle = (places[:, :2] + places[:, 2:]) / 2
    box = one.target.box_in(one.geometry)
    if box is not None:
        x1, y1, x2, y2 = box
        inside = (middle > [x1, y1]).all(1) & (middle < [x2, y2]).all(1)
        return np.asarray(places[inside])
    if one.target.pixels is not None:
        pixels = map_to_original(one.target.pixels.float(), one.geometry) > 0.5
        columns, rows = middle.astype(int).T
        return np.asarray(places[pixels[rows, columns]])
    return places


def shares(
    model: Any, files: list[str], folder: str | Path, methods: str | None
) -> dict[str, list[tuple[float, float]]]:
    """For each method and target the share of its mass on the patches, and on these with a margin; NaN without mass.

    Args:
        model: Of ``pipelines.load``.
        files: Pictures.
        folder: Of the data set.
        methods: Names with commas; those of ``explain`` by default.
    """
    evidence, found = read_evidence(folder), defaultdict(list)
    for one in model.explain(files, method=methods, faithful=False):
        places = evidence_of(one, evidence[Path(one.path).name])
        if not len(places):
            continue  # an object that is none
        wider = np.clip(places + MARGIN * np.array([-1, -1, 1, 1]), 0, max(one.size))
        found["(the picture's own area)"].append(
            (mass_on(np.ones(one.size), places), mass_on(np.ones(one.size), wider))
        )
        for name, of in one.methods.items():
            found[name].append((mass_on(of.heat, places), mass_on(of.heat, wider)))
    return found


def main(argv: list[str] | None = None) -> int:
    """Print a table.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evidence", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("checkpoint")
    parser.add_argument("folder", help="of benchmarks.planted")
    parser.add_argument("--pictures", type=int, default=50, help="of the validation split (50)")
    parser.add_argument("--method", help="names with commas; those of `explain` by default")
    given = parser.parse_args(argv)
    root = Path(given.folder)
    files = sorted(str(path) for path in root.rglob("val_*.png") if "masks" not in path.relative_to(root).parts)
    chosen = [files[i] for i in np.linspace(0, len(files) - 1, min(given.pictures, len(files))).round().astype(int)]
    found = shares(pipelines.load(given.checkpoint, "cpu"), chosen, root, given.method)
    print(f"{'method':<26}{'on the patch':>14}{f'with {MARGIN} pixels':>16}{'at least half on':>18}{'targets':>9}")
    for name, pairs in sorted(found.items(), key=lambda item: -float(np.nanmean([pair[0] for pair in item[1]]))):
        on, around = np.nanmean(np.array(pairs), axis=0).tolist()
        half = float(np.mean([pair[0] >= 0.5 for pair in pairs]))
        print(f"{name:<26}{on:>14.2f}{around:>16.2f}{half:>18.0%}{len(pairs):>9}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
