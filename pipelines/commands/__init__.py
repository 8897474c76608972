"""One file per command that is more than a method of the Trainer."""
