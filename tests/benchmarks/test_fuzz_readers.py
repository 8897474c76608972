"""Damaged files of every format give our own errors only."""

from __future__ import annotations

import pytest

from benchmarks.fuzz_readers import main


@pytest.mark.slow
def test_readers_of_damaged_files(capfd):
    assert main(inputs=400, seed=7) == 0, capfd.readouterr().out
