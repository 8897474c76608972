"""Whether two processes of this machine train as one does; torch only, so that the processes start in seconds."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, multiprocessing, nn
from torch.distributed import destroy_process_group, init_process_group
from torch.nn.parallel import DistributedDataParallel

RANKS, STEPS = 2, 3
TOLERANCE = 1e-5


def difference(limit_seconds: float) -> float:
    """Train a small net in one process and by two connected ones (gloo); the largest difference of the weights.

    Raises:
        TimeoutError: If the two are not done in time, as where they cannot connect.
        ProcessRaisedException: If one of them fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        started = multiprocessing.spawn(  # type: ignore[attr-defined]
            _rank, (folder,), nprocs=RANKS, join=False
        )
        deadline = time.monotonic() + limit_seconds
        try:
            while not started.join(timeout=0.2):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not done after {limit_seconds:.0f} s")
        finally:
            for process in started.processes:
                if process.is_alive():
                    process.kill()
        of_two = torch.load(Path(folder) / "weights.pt", weights_only=True)
    return float((of_two - trained(0, 1)).abs().max())


def trained(rank: int, ranks: int) -> Tensor:
    """The weights after three steps on a rank's part of each batch, float32 (N,)."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(STEPS, 8, 3, 8, 8, generator=generator), torch.arange(8) % 4
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net: nn.Module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
    net = DistributedDataParallel(net) if ranks > 1 else net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for batch in images:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(batch[rank::ranks]), labels[rank::ranks]).backward()
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    weights = trained(rank, RANKS)
    if rank == 0:
        torch.save(weights, Path(folder) / "weights.pt")
    destroy_process_group()
