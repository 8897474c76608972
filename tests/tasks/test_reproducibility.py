"""The key of a step's randomness: the run's seed, the rank and the batches seen."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from tasks.reproducibility import seed_step


def draws(rank: int, batches_seen: int) -> tuple[float, float, float]:
    seed_step(rank, batches_seen)
    return torch.rand(()).item(), float(np.random.rand()), random.random()


def test_each_part_of_the_key_counts(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    first = draws(0, 0)
    assert draws(0, 0) == first
    others = [draws(1, 0), draws(0, 1), draws(1, 1)]
    monkeypatch.setenv("PL_GLOBAL_SEED", "2")
    others.append(draws(0, 0))
    for generator in range(3):
        assert len({values[generator] for values in (first, *others)}) == 5


def test_the_words_of_the_key_stay(monkeypatch):
    """Of commit 93d963b: another order would change the draws of every resumed run."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    seed = int(np.random.SeedSequence([7, 2, 3]).generate_state(1)[0])
    assert draws(2, 3)[1] == pytest.approx(float(np.random.RandomState(seed).rand()))
