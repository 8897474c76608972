"""Measurements of this project against named peers; ``python -m benchmarks --help`` lists them."""
