"""The ready configs against careful scripts of the bare libraries: ``python -m benchmarks.recipes --help``."""
