"""What the units of a trained network look for: see ``docs/features.md``."""
