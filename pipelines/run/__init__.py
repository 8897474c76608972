"""A run directory: its configs, checkpoints, metrics file and trackers."""
