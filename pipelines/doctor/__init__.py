"""The command ``doctor``: installation and machine, and a training tried out."""
