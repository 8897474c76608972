"""The memory of scoring a picture by windows: beyond picture and labels it does not grow with the picture."""

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from datamodules.transforms.tiles import tile_windows
from tasks.segmentation.postprocess import labels_by_tiles

CLASSES = 5
TILE = 64


class Peak:
    """The most bytes that torch's CPU allocator had given out at once, temporaries inside operations included.

    Counted by the allocator itself, so it is the same in every run, where a process's memory is not.
    """

    def __enter__(self):
        self.profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self.profile.__enter__()
        return self

    def __exit__(self, *error):
        self.profile.__exit__(*error)
        events = [e for e in self.profile.profiler.kineto_results.events() if e.name() == "[memory]"]
        now = self.bytes = 0
        for event in sorted(events, key=lambda e: e.start_ns()):
            now += event.nbytes()
            self.bytes = max(self.bytes, now)


def extra_bytes(height, width, several=False):
    torch.manual_seed(0)
    net = nn.Conv2d(1, CLASSES, 3, padding=1)
    image = torch.randint(0, 256, (1, height, width), dtype=torch.uint8)
    windows = torch.from_numpy(tile_windows(height, width, (TILE, TILE), 0.25))
    with torch.inference_mode(), Peak() as peak:
        labels = labels_by_tiles(lambda part: net(part.float() / 255).softmax(1), image, windows, several)
    assert labels.shape == ((CLASSES, height, width) if several else (height, width))
    return peak.bytes - labels.nbytes


def test_the_peak_is_counted():
    with Peak() as peak:
        held = torch.zeros(3000, 1000)
        for _ in range(3):
            held + 1  # freed at once
    assert peak.bytes == pytest.approx(2 * held.nbytes, rel=0.01)


@pytest.mark.parametrize("several", [False, True])
def test_memory_does_not_grow_with_the_picture(several):
    small = extra_bytes(192, 192, several)  # five windows a side, as 2,000 pixels have with windows of 512
    assert extra_bytes(192, 2048, several) <= 1.02 * small
    if not several:
        assert extra_bytes(2048, 384) <= 1.02 * small
