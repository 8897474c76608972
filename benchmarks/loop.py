"""What a training step costs beyond a bare PyTorch loop, in milliseconds.

The net is so small (LeNet-5, eight images of 28 x 28) that the milliseconds are visible; they are the same for any net.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Row, alternate, per_round, row
from benchmarks.training import MarkedData, bare, ours, usual, write_arrays
from datamodules.transforms.augment import Augment

BACKBONE = "lenet5"
BATCH = 8


def run(repeats: int, warm_up: int = 30, steps: int = 200) -> tuple[dict[str, Any], list[Row]]:
    """Measure.

    Args:
        repeats: Rounds.
        warm_up: Steps before the clock starts.
        steps: Steps that are timed.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            source = write_arrays(Path(folder), (warm_up + steps + 2) * BATCH, 28)
            data = MarkedData(
                str(source), in_chans=1, val_fraction=0.0, batch_size=BATCH, augment=Augment("none"), cache="tensor"
            )
            data.mark(warm_up, steps)
            variants = {
                "bare loop": bare(data, BACKBONE),
                "ours": ours(data, BACKBONE),
                "usual Lightning script": usual(data, BACKBONE),
            }
            seconds = alternate(variants, repeats)
    finally:
        torch.set_num_threads(threads)
    times = {name: [1000 * s for s in values] for name, values in seconds.items()}
    rows = [row(name, values, "ms/step") for name, values in times.items()]
    for name, goal in (("ours", "<= 1.2"), ("usual Lightning script", "")):
        over = per_round(lambda a, b: a - b, times[name], times["bare loop"])
        rows.append(row(f"{name}, over the bare loop", over, "ms/step", goal))
    return {"backbone": BACKBONE, "batch": BATCH, "steps": steps, "threads": 1, "clock": "cpu"}, rows
