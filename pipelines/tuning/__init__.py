"""The command ``tune``: a search over keys of a config, and repeats of its last candidates."""
