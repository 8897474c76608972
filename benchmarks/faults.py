"""Rows of docs/faults.md that a few lines show, under plain Lightning: what becomes of the run.

    python -m benchmarks.faults

Each row is a process of its own with a network of one layer and 66 samples in batches of 4, the trainer's defaults and
a ModelCheckpoint. It takes about two minutes on two cores, and needs no GPU.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

SAMPLES, BATCH = 66, 4


class Net(pl.LightningModule):
    """One layer.

    Args:
        kept: A hyper-parameter.
        spoiled: Where NaN comes from: ``loss``, ``gradient`` or nowhere.
    """

    def __init__(self, kept: Any = 1, spoiled: str = "") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer, self.spoiled = nn.Linear(4, 1), spoiled

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """The loss."""
        loss = nn.functional.dropout(self.layer(batch[0]), 0.3).square().mean()
        return loss * float("nan") if self.spoiled == "loss" and batch_idx == 9 else loss

    def on_after_backward(self) -> None:
        """Spoil the gradient, where that is asked for."""
        if self.spoiled == "gradient" and self.global_step == 9:
            assert self.layer.weight.grad is not None
            self.layer.weight.grad.fill_(float("nan"))

    def configure_optimizers(self) -> Any:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), 0.1)


class At(Callback):
    """Does something behind a batch of the second epoch."""

    def __init__(self, act: Callable[[], Any], batch: int = 3) -> None:
        super().__init__()
        self.act, self.batch = act, batch

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Act."""
        if trainer.current_epoch == 1 and batch_idx == self.batch:
            self.act()


def loader() -> Any:
    """Shuffled samples."""
    x = torch.randn(SAMPLES, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x), BATCH, shuffle=True)


def fit(net: Net, *callbacks: Callback, ckpt_path: str | None = None, **settings: Any) -> pl.Trainer:
    """Two epochs on the CPU, with ``ck/last.ckpt`` after each step."""
    pl.seed_everything(0)
    last = ModelCheckpoint("ck", save_last=True, every_n_train_steps=1, save_top_k=1)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", callbacks=[last, *callbacks], **{"devices": 1, **quiet, **settings}
    )
    trainer.fit(net, loader(), ckpt_path=ckpt_path)
    return trainer


def child(work: Callable[[], Any]) -> int:
    """The exit status of a forked process, negative for a signal; 1 for an exception."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def row_1() -> str:
    """Kill -9 inside an epoch."""
    whole = Net()
    fit(whole)
    os.mkdir("killed")
    os.chdir("killed")
    child(lambda: fit(Net(), At(lambda: os.kill(os.getpid(), signal.SIGKILL))))
    first = torch.load("ck/last.ckpt", weights_only=True)["global_step"]
    net = Net()
    fit(net, ckpt_path="ck/last.ckpt")
    equal = torch.equal(net.layer.weight, whole.layer.weight)
    return f"resumed at step {first} of 34, without a word; final weights {'equal' if equal else 'differ'}"


def row_8() -> str:
    """A full disk at a save."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500, -1))  # noqa: E731
    status = child(lambda: fit(Net(), At(limit)))
    broken = []
    for path in Path("ck").glob("*.ckpt"):
        try:
            torch.load(path, weights_only=True)
        except Exception:
            broken.append(path.name)
    return f"ends with status {status} at the first failed save; unreadable files: {', '.join(broken) or 'none'}"


def row_9() -> str:
    """A flipped bit in the newest checkpoint."""
    net = Net()
    fit(net)
    weight = net.layer.weight.detach().numpy().tobytes()
    data = bytearray(Path("ck/last.ckpt").read_bytes())
    data[data.index(weight) + 2] ^= 0x40
    Path("ck/last.ckpt").write_bytes(data)
    read = torch.load("ck/last.ckpt", weights_only=True)["state_dict"]["layer.weight"]
    return f"loaded without a word, weights {'equal' if torch.equal(read, net.layer.weight) else 'differ'}"


def row_12() -> str:
    """SIGTERM, with checkpoints at epochs' ends as by default."""
    work = lambda: pl.Trainer(  # noqa: E731
        max_epochs=2, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[At(lambda: os.kill(os.getpid(), signal.SIGTERM))],
    ).fit(Net(), loader())  # fmt: skip
    status = child(work)
    saved = [torch.load(p, weights_only=True)["global_step"] for p in Path().rglob("*.ckpt")]
    return f"status {status}; of 21 steps done, saved: {max(saved, default='none')}"


def _spoiled(kind: str) -> str:
    net = Net(spoiled=kind)
    status = child(lambda: _exit_by_finite(net))
    return {0: "ends with status 0 and good weights", 3: "ends with status 0 and NaN weights"}.get(status, "an error")


def _exit_by_finite(net: Net) -> None:
    fit(net)
    sys.exit(0 if bool(net.layer.weight.isfinite().all()) else 3)


def row_23() -> str:
    """A NaN loss."""
    return _spoiled("loss")


def row_24() -> str:
    """A NaN gradient with a finite loss."""
    return _spoiled("gradient")


def row_40() -> str:
    """An empty training set."""
    empty = DataLoader(TensorDataset(torch.zeros(0, 4)), BATCH)
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(Net(), empty)
    return f"`fit` returns after {trainer.global_step} steps"


def row_43() -> str:
    """A hyper-parameter that cannot be read back."""
    fit(Net(kept=Path("x")))
    try:
        fit(Net(kept=Path("x")), ckpt_path="ck/last.ckpt")
    except Exception as error:
        return f"saved; the resume fails ({type(error).__name__})"
    return "resumes"


def row_44() -> str:
    """A config that names foreign code."""
    from pytorch_lightning.cli import LightningCLI

    Path("foreign.py").write_text("open('marker', 'w').close()\n")
    sys.path.insert(0, ".")
    words = ["--model", "foreign.Thing"]
    with contextlib.suppress(SystemExit):
        LightningCLI(pl.LightningModule, subclass_mode_model=True, args=words, run=False)
    return "its module was imported" if Path("marker").exists() else "nothing was imported"


def row_52() -> str:
    """Two trainings into one directory."""
    other = os.fork()
    if other == 0:
        os._exit(child(lambda: fit(Net())))
    mine = child(lambda: fit(Net()))
    its = os.waitstatus_to_exitcode(os.waitpid(other, 0)[1])
    return f"status {mine} and {its}, {len(list(Path('ck').iterdir()))} files of both in one folder"


def row_18() -> str:
    """A hung rank of two."""
    seconds = 20.0

    def work() -> None:
        hangs = At(lambda: time.sleep(600) if os.environ.get("LOCAL_RANK") == "1" else None)
        fit(Net(), hangs, devices=2, strategy="ddp_fork")

    pid = os.fork()
    if pid == 0:
        os.setsid()
        try:
            work()
        finally:
            os._exit(1)
    deadline = time.monotonic() + 60 + seconds
    done = 0
    while not done and time.monotonic() < deadline:
        done, _ = os.waitpid(pid, os.WNOHANG)
        time.sleep(0.2)
    if done:
        return "ends"
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return f"no error in {60 + seconds:.0f} s (its time-out is half an hour)"


ROWS = {1: row_1, 8: row_8, 9: row_9, 12: row_12, 18: row_18, 23: row_23, 24: row_24, 40: row_40, 43: row_43}
ROWS |= {44: row_44, 52: row_52}


def main(numbers: list[int]) -> None:
    """Print a line for each row."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for number in numbers or list(ROWS):
        reader, writer = os.pipe()

        def work(number: int = number, writer: int = writer) -> None:
            with tempfile.TemporaryDirectory() as directory, open(os.devnull, "w") as null:
                os.chdir(directory)
                os.dup2(null.fileno(), 2)
                os.dup2(null.fileno(), 1)
                os.write(writer, ROWS[number]().encode())

        status = child(work)
        os.close(writer)
        said = os.read(reader, 4096).decode() or f"the script's own error, status {status}"
        os.close(reader)
        print(f"| {number} | {(ROWS[number].__doc__ or '').rstrip('.')} | {said} |", flush=True)


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]])
