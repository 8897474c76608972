"""Which pictures of a pool to label next: see ``docs/select.md``."""
