"""The key of a step's randomness: the run's seed, the rank and the batches seen."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tasks.reproducibility import broadcast_buffers, same_buffers_on_all_ranks, seed_step


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


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_ddp_leaves_the_buffers_alone_in_an_evaluation(one_process, monkeypatch):
    """Fails when torch's private attribute changes: ranks with different numbers of batches would hang then."""
    norm = nn.BatchNorm1d(2)
    wrapper, calls = DistributedDataParallel(norm), []
    monkeypatch.setattr(wrapper, "_sync_buffers", lambda: calls.append(1))
    norm.trainer = SimpleNamespace(strategy=SimpleNamespace(model=wrapper))
    expected = []
    for start in (None, True, False):
        if start is not None:
            same_buffers_on_all_ranks(norm, start=start)
        wrapper(torch.rand(4, 2))
        expected.append(len(calls))
    assert expected == [1, 1, 2]


def test_buffers_of_several_dtypes_are_broadcast_in_place(one_process):
    buffers = [torch.arange(3.0), torch.tensor(7), torch.ones(2, 2)]
    broadcast_buffers(buffers)
    assert [buffer.tolist() for buffer in buffers] == [[0, 1, 2], 7, [[1, 1], [1, 1]]]
