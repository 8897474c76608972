"""The filters of a network's first convolution as pictures."""

from __future__ import annotations

from PIL import Image
from PIL.Image import Resampling
from torch import nn

from pipelines.outputs.sheets import Picture, rgb, sheet
from tasks.base import Task

MOST = 96  # filters of a sheet
COLORS = 3
COLUMNS = 16
FILTER_SIDE = 42  # pixels


def first_filters(task: Task) -> tuple[str, Picture] | None:
    """The name of the first convolution over the picture, and a sheet of its filters; None where there is none.

    Filters of three channels are shown in color, gray in the middle, each as bright as it goes; those of other numbers
    channel by channel.

    Args:
        task: Its network is built.
    """
    for name, module in task.network.named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.shape[1] == task.in_chans and module.groups == 1:
            weights = module.weight.detach().float().cpu()
            shown = weights.flatten(0, 1)[:, None] if weights.shape[1] != COLORS else weights
            largest = shown.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-12)
            pixels = (127.5 + 127.5 * shown / largest).round().byte().permute(0, 2, 3, 1).numpy()
            factor = max(1, FILTER_SIDE // max(pixels.shape[1:3]))
            tiles = [Image.fromarray(rgb(one)) for one in pixels[:MOST]]
            large = [tile.resize((tile.width * factor, tile.height * factor), Resampling.NEAREST) for tile in tiles]
            return name, sheet(large, None, COLUMNS)
    return None
