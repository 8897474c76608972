"""What stands in a batch beside the pixels: the values that mean "nothing here", and how short lists are filled up.

The keys, shapes and dtypes of a batch are described in ``datamodules.base``.
"""

from __future__ import annotations

#: Pixels of a mask that no annotation covers, or that the annotator left open: no loss, no metric.
IGNORE = 255
#: Class of a place in ``labels`` where an image has no box.
NO_LABEL = -1
#: Number in ``masks`` of a pixel that belongs to no object.
NO_OBJECT = 0
