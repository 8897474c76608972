"""How many pixels an image may have: one number for a whole process, as Pillow has it.

Every reader of images, masks and headers asks for it, so it is not an argument of each; a datamodule sets it from its
``max_pixels`` before it reads, and loader processes take it from the process that starts them.
"""

from __future__ import annotations

from PIL import Image

#: Height times width above which no file is decoded by default: 2/3 GiB of RGB pixels. Pillow's own limit for an error.
MAX_PIXELS = 178_956_970
#: OpenCV decodes no larger image, whatever is asked for.
MOST_PIXELS = 1 << 30

_limit = MAX_PIXELS


def max_pixels() -> int:
    """Height times width above which this process decodes no file."""
    return _limit


def limit_pixels(limit: int) -> None:
    """Set ``max_pixels`` for this process.

    ``check_pixels`` refuses such files first. Pillow's own limit warns from half of ours on, and refuses twice its
    value: it stays as a second net, also for other users of Pillow in this process, and is never below its default.
    """
    global _limit
    _limit = limit
    Image.MAX_IMAGE_PIXELS = max(MAX_PIXELS, limit)


limit_pixels(MAX_PIXELS)
