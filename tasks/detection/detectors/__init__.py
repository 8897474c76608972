"""Detector families, one file each, behind `protocol.Detector`; `families` knows them by name."""
