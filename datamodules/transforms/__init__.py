"""From a decoded picture and its annotation to a training sample: resizing, augmentation, mixing, tiles."""
