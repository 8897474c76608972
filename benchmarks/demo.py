"""The picture of docs/demo.md: the page of ``demo`` with two detectors of digits, in a headless Chromium.

    python -m benchmarks.demo [--ckpt_path FILE FILE] [--output docs/demo.png]

Without checkpoints it trains ``detection/digits`` for one epoch and for three, below ``runs``: minutes of a CPU.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

import pipelines
from datamodules.readers.digits import digit_scenes
from pipelines.commands.demo import make_page, serve

EPOCHS = (1, 3)
SCENES, SIDE, SCALE = 6, 64, 4  # enlarged, so that names fit
#: Chromium as root in a container, without a call to anybody outside.
BROWSER = [
    "chromium",
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--virtual-time-budget=20000",
]


def checkpoints() -> list[Path]:
    """Train the two detectors."""
    wandb = {"mode": "off"}
    runs = [
        pipelines.train("detection/digits", name=f"demo_{n}_epochs", trainer={"max_epochs": n, "wandb": wandb})
        for n in EPOCHS
    ]
    return [run.checkpoint for run in runs]


def write_scenes(folder: Path) -> None:
    """Write test scenes of digits, which no training has seen, as PNG files."""
    scenes = digit_scenes(SCENES, SIDE, seed=0, split="test")
    for number in range(SCENES):
        picture = Image.fromarray(scenes[number]["image"])
        picture.resize((SIDE * SCALE, SIDE * SCALE), Image.Resampling.NEAREST).save(folder / f"scene{number}.png")


def screenshot(address: str, output: Path, size: tuple[int, int] = (1300, 690)) -> None:
    """Write what Chromium shows at an address, in 256 colors.

    Args:
        address: Of the page.
        output: The PNG file.
        size: Width and height of the window.
    """
    with tempfile.TemporaryDirectory() as profile:
        words = [*BROWSER, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}"]
        command = [*words, f"--screenshot={output.resolve()}", address]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    with Image.open(output) as taken:
        taken.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(output, optimize=True)  # a fifth of the bytes


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt_path", nargs="+", type=Path, default=[])
    parser.add_argument("--output", type=Path, default=Path("docs/demo.png"))
    parser.add_argument("--port", type=int, default=7861)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scenes:
        write_scenes(Path(scenes))
        page = make_page(given.ckpt_path or checkpoints(), source=scenes)
        screenshot(serve(page, "127.0.0.1", given.port), given.output)
        page.close()


if __name__ == "__main__":
    main()
