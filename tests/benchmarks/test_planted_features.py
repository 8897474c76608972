"""``features`` shows planted evidence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.planted_features import covered, hits, measure


def test_how_much_of_a_patch_a_box_covers():
    patches = np.array([[0, 0, 4, 4], [10, 10, 14, 14]])
    assert covered((2, 0, 8, 8), patches) == 0.5
    assert covered((9, 9, 15, 15), patches) == 1.0
    assert covered((5, 5, 9, 9), patches) == 0.0


def test_hits_beside_chance():
    exemplar = {"path": "x/a.png", "box": [0, 0, 4, 4], "place": [6, 6, 8, 8]}
    found = {"layers": [{"name": "l", "sees": [4, 4], "channels": [{"exemplars": [exemplar]}]}]}
    evidence = {"a.png": np.array([[0, 0, 2, 2]]), "b.png": np.array([[7, 7, 9, 9]])}
    (row,) = hits(found, evidence)
    assert (row.seen, row.placed) == (1.0, 0.0)
    assert 0 < row.seen_by_chance < 1
    assert row.placed_by_chance == pytest.approx(1 - row.seen_by_chance)


@pytest.mark.slow
def test_the_exemplars_of_a_trained_network_are_its_patches(tmp_path: Path):
    rows = {row.layer: row for row in measure(tmp_path, "classes", 400, 8, 0)}
    for layer in ("layer1", "layer2", "layer3"):
        assert rows[layer].seen >= 0.9
        assert rows[layer].placed >= 0.75
        assert rows[layer].placed_by_chance <= 0.3
