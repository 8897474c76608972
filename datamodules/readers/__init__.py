"""Readers: one file per on-disk format, each turning it into the records of ``datamodules.annotations.records``."""
