"""The memory of tiled prediction over large images, which must not grow with them beyond the image and its labels."""

from __future__ import annotations

import ctypes
import multiprocessing
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import Row, row
from datamodules.transforms.tiles import tile_windows
from tasks.segmentation.postprocess import labels_by_tiles

SIDES = (2_000, 10_000)
TILE = 512
TILE_CLASSES = 11


class SmallNet(nn.Module):
    """Fully convolutional, so that an image of 10,000 x 10,000 pixels takes a minute: uint8 image to scores."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 5, stride=4, padding=2)
        self.second = nn.Conv2d(16, TILE_CLASSES, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) to probabilities (B, K, H, W)."""
        logits = self.second(self.first(image.float() / 255).relu())
        return F.interpolate(logits, image.shape[2:], mode="bilinear").softmax(1)


def memory_of_tiles(sides: tuple[int, ...]) -> list[Row]:
    """Peak memory beyond image and labels for each side, and that of the last over that of the first."""
    if not Path("/proc/self/clear_refs").exists():
        return []  # only Linux tells the peak
    rows = []
    for kept, goal in ((False, "<= 1.1"), (True, "")):
        found = []
        for side in sides:
            with multiprocessing.get_context("fork").Pool(1) as pool:
                found.append(pool.apply(extra_memory, (side, kept)) / 1e6)
            what = f"tiles over {side} x {side} pixels, memory beyond image and labels"
            rows.append(row(what + (", with what malloc keeps" if kept else ""), [found[-1]], "MB"))
        rows.append(row("the last over the first", [found[-1] / found[0]], "x", goal))
    return rows


@torch.inference_mode()
def extra_memory(side: int, kept: bool = False) -> int:
    """Bytes of this process's peak while an image is predicted, beyond what it had before and the labels.

    Args:
        side: Height and width of the image.
        kept: Count freed memory that malloc keeps for later, too. In a heap of blocks of many sizes that becomes more
            the longer a process runs. Without it every block of 1 MiB or more goes back to the system at once.
    """
    if not kept:
        ctypes.CDLL(None).mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD of glibc's malloc.h
    torch.set_num_threads(1)  # a forked child has no other threads
    torch.manual_seed(0)
    net = SmallNet()
    image = torch.randint(0, 256, (3, side, side), dtype=torch.uint8)  # writes every page, so all of it is in memory
    windows = torch.from_numpy(tile_windows(side, side, (TILE, TILE), 0.25))
    Path("/proc/self/clear_refs").write_text("5")  # the peak is from now on
    before = memory_now("VmRSS")
    labels = labels_by_tiles(net, image, windows, multi_label=False)
    return memory_now("VmHWM") - before - labels.nbytes


def memory_now(key: str) -> int:
    """Bytes of an entry of Linux's status of this process: VmRSS, what it has, or VmHWM, the most it had.

    See https://docs.kernel.org/filesystems/proc.html.
    """
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024
