"""The ready configs, shipped in the wheel."""
