"""``python -m benchmarks NAME [--json FILE] [--repeats N]``; ``--help`` lists the names."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

from benchmarks.common import Unavailable, table, write_json

BENCHMARKS = {
    "startup": ("what --help, --version and list cost", 5),
    "loop": ("what a training step costs beyond a bare PyTorch loop", 7),
    "input": ("images per second and core, against timm's transform and collate", 7),
    "large": ("the same from 8-megapixel photographs, with and without cache: resized", 3),
    "files": ("check against decoding alone, and tar shards against files", 3),
    "tiny": ("an epoch over 60,000 small images, against a bare loop over one tensor", 5),
    "gpu": ("a training step on a GPU, synthetic and fed from JPEG, against a bare loop", 5),
    "noisy_student": ("labeling a pool, against a bare inference loop", 5),
    "detection": ("a training step against torchvision's own detectors, the evaluation of boxes", 5),
    "segmentation": ("a training step, the metrics, the memory of tiled prediction; with a GPU also compile", 7),
}


def main(argv: list[str] | None = None) -> int:
    """Run one benchmark, print its table, write its JSON.

    Returns:
        The exit status: 0 whether goals are met or not, 2 for wrong usage or a machine that cannot run it.
    """
    listed = "\n".join(f"  {name:<15}{text} (repeats: {repeats})" for name, (text, repeats) in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure this project against named peers, in turns within one run; medians over the repeats.",
        epilog=f"benchmarks:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("benchmark", choices=BENCHMARKS)
    parser.add_argument("--json", metavar="FILE", help="also write all figures, with machine and versions, to FILE")
    parser.add_argument("--repeats", type=int, metavar="N", help="rounds; the default is in the list below")
    args = parser.parse_args(argv)
    repeats = BENCHMARKS[args.benchmark][1] if args.repeats is None else args.repeats
    if repeats < 1:
        parser.error(f"--repeats is {repeats}; it must be at least 1")
    if args.json and not Path(args.json).resolve().parent.is_dir():
        parser.error(f"--json {args.json}: the folder {Path(args.json).resolve().parent} does not exist")
    started = time.perf_counter()
    try:
        settings, rows = importlib.import_module(f"benchmarks.{args.benchmark}").run(repeats)
    except Unavailable as error:
        print(f"{args.benchmark}: {error}", file=sys.stderr)
        return 2
    settings = {**settings, "repeats": repeats}
    print(f"{args.benchmark}: {', '.join(f'{key} {value}' for key, value in settings.items())}")
    print(table(rows))
    print(f"  ({time.perf_counter() - started:.0f} s; median, least to most of the rounds)")
    if args.json:
        write_json(args.json, args.benchmark, settings, rows)
        print(f"  written to {args.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
