"""Models that left as a file: what is written beside them, and running them in place of a network."""
