"""Detector families, one file each: a network on a timm pyramid with `losses` and `detect`."""
