"""The one writer of each format of annotations; ``datamodules.readers`` has the readers."""
