"""``python -m benchmarks.display`` writes ``docs/display.md``: what a training shows, from runs of the quickstart."""

from __future__ import annotations

import os
import pty
import shutil
import sys
import tempfile
import time
from pathlib import Path

HOUSE = Path(__file__).resolve().parents[1]
WIDTH = 112  # of the terminal, in letters
FIT = ["fit", "--config", "quickstart", "--trainer.max_epochs", "6", "--trainer.wandb.mode", "off"]


def on_terminal(words: list[str], directory: Path, interrupt_at: str | None = None) -> str:
    """What a command shows on a terminal.

    Args:
        words: The command and its flags.
        directory: Where it is given.
        interrupt_at: Ctrl-C is pressed half a second after this has appeared.
    """
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(directory)
        os.environ |= {"COLUMNS": str(WIDTH), "PYTHONPATH": str(HOUSE)}
        os.execv(sys.executable, [sys.executable, "-m", "pipelines", *words])
    shown = b""
    while True:
        try:
            read = os.read(terminal, 4096)
        except OSError:  # how Linux says that the other side is closed
            break
        if not read:
            break
        shown += read
        if interrupt_at is not None and interrupt_at.encode() in shown:
            time.sleep(0.5)
            os.write(terminal, b"\x03")
            interrupt_at = None
    os.waitpid(pid, 0)
    return shown.decode().replace("\r\n", "\n")


def parts(shown: str) -> dict[str, str]:
    """A training's block before, its living line at some times, what it leaves of each epoch, and its end."""
    lines = [line for text in shown.split("\n") for line in [text.rpartition("\r")[2].replace("\x1b[K", "").rstrip()]]
    alive = [piece.partition("\x1b")[0].rstrip() for text in shown.split("\n") for piece in text.split("\r")[1:]]
    alive = [piece for piece in alive if "[" in piece]
    epochs = [i for i, line in enumerate(lines) if line.startswith("epoch ") and "[" not in line]
    return {
        "before": "\n".join(lines[: epochs[0]]).rstrip(),
        "alive": "\n".join(alive[:: max(1, len(alive) // 5)][:5]),
        "left": "\n".join(lines[i] for i in epochs),
        "end": "\n".join(line for line in lines[epochs[-1] + 1 :] if line and "images/s" not in line),
    }


PAGE = """# What a run shows

Written by `python -m benchmarks.display`; the training is `pipelines {fit}` on a CPU.

## Before

The first line is there at once; the block follows when the data are read and the model is built, before the first step.
Doubts about the data (few validation pictures, none with an object, more objects than `max_detections`) stand above it.

```text
{before}
```

## During

On a terminal the last line is written over twice a second:

```text
{alive}
```

Each epoch leaves one line, in a log file too:

```text
{left}
```

`pictures/curves.png` grows with the training:

![losses, metric and learning rate over the epochs](display_curves.png)

## At the end

```text
{end}
```

## After Ctrl-C

```text
{interrupted}
```

Wrong predictions are red on sheets; these are test images of that interrupted training (`test --ckpt_path last`):

![images with captions, the wrong ones in red](display_wrong.png)
"""


def main() -> int:
    """Write the page and its pictures."""
    docs = HOUSE / "docs"
    with tempfile.TemporaryDirectory() as folder:
        place, early = Path(folder), ["--name", "interrupted"]
        whole = parts(on_terminal(FIT, place))
        interrupted = parts(on_terminal([*FIT, *early], place, interrupt_at="epoch 2/6"))
        on_terminal(["test", *early, "--ckpt_path", "last"], place)
        pictures = {"curves": "quickstart/0/pictures/curves", "wrong": "interrupted/0/pictures/test_predictions"}
        for name, picture in pictures.items():
            shutil.copyfile(place / "runs" / f"{picture}.png", docs / f"display_{name}.png")
    page = PAGE.format(**whole, fit=" ".join(FIT), interrupted=interrupted["end"])
    (docs / "display.md").write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
