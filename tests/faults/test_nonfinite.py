"""Rows 23 and 24: a NaN or infinite loss or gradient changes nothing, is told, and is never saved."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.__main__ import main
from pipelines.run.checkpoints import AtomicCheckpointIO, newest_good_checkpoint
from tasks.finite import NonFiniteLossError, first_spoiled, poisoned
from tasks.optim import Optim
from tests.conftest import in_child
from tests.ranks import in_ranks
from tests.tasks.fake_task import FakeData, FakeTask, quiet_trainer

NAN, INF = float("nan"), float("inf")


class BadGradient(torch.autograd.Function):
    """Hands its input on; its gradient is NaN."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * NAN


class Learns(FakeTask):
    """Its loss depends on the weights; a "loss" of -1 in the batch spoils the gradient alone."""

    def __init__(self, **opt_args: Any) -> None:
        optim = Optim(name="sgd", lr=0.1, momentum=0.9, weight_decay=0.1, schedule="constant", opt_args=opt_args)
        super().__init__(optim)

    def loss(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        image = batch["image"] * 1.0
        if not batch["loss"].isfinite().all():
            image = image + batch["loss"].mean()  # as a bad picture: the batch norms see it, too
        found = self(image).square().mean()
        return {"loss": BadGradient.apply(found) if (batch["loss"] == -1).any() else found}


def fitted(losses: list[float], limit: int = 3, accumulate: int = 1, **opt_args: Any) -> Learns:
    torch.manual_seed(0)
    task = Learns(**opt_args)
    trainer = quiet_trainer(accumulate_grad_batches=accumulate)
    trainer.max_skipped_steps = limit
    data = FakeData([[value] * 2 for value in losses])
    for number, batch in enumerate(data.batches):
        batch["path"] = [f"{number}/a.jpg", f"{number}/b.jpg"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        trainer.fit(task, datamodule=data)
    return task


@pytest.mark.parametrize("fused", [False, True])  # fused kernels skip by themselves, as on a GPU
@pytest.mark.parametrize("bad", [NAN, INF, -1.0])
def test_a_skipped_step_is_as_if_its_batch_had_not_come(bad, fused):
    skipped, without = (fitted(losses, fused=fused) for losses in ([1.0, bad, 1.0, bad], [1.0, 1.0]))
    state = without.state_dict()
    for name, value in skipped.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, state[name]), name
    assert skipped._last_train == without._last_train
    assert skipped._guard.skipped == 2
    assert skipped.skipped_in_a_row == 1
    off = fitted([1.0, -1.0], limit=0)  # without the guard the model is lost
    assert first_spoiled(off.state_dict()) == "network.backbone.0.weight"
    with pytest.raises(NonFiniteLossError, match=r"weights became NaN or infinite \(network\.backbone\.0\.weight\)"):
        off.trainer.save_checkpoint("spoiled.ckpt")
    assert not Path("spoiled.ckpt").exists()


def test_of_an_accumulated_step_all_batches_are_skipped():
    skipped, without = (fitted(losses, accumulate=2) for losses in ([1.0, 1.0, NAN, 1.0, 1.0, 1.0], [1.0] * 4))
    assert torch.equal(skipped.network.head[1].weight, without.network.head[1].weight)
    assert torch.equal(skipped.network.head[0].running_mean, without.network.head[0].running_mean)


@pytest.mark.parametrize("fused", [False, True])
def test_too_many_in_a_row_end_the_run_and_name_the_files(fused):
    fitted([NAN, NAN, 1.0, NAN], fused=fused)
    with pytest.raises(NonFiniteLossError, match=r"in 3 optimizer steps in a row.*files: 3/a\.jpg, 3/b\.jpg\."):
        fitted([1.0, NAN, NAN, NAN, 1.0], fused=fused)
    with pytest.raises(NonFiniteLossError, match="in 2 optimizer steps in a row;"):
        fitted([1.0, NAN, NAN], fused=fused)  # at the end


def test_a_poisoned_loss_is_the_same_or_spoils_its_gradient():
    x = torch.tensor([3.1, 1e30], requires_grad=True)
    poisoned(x[0] / 7).backward()
    assert x.grad[0] == torch.tensor(1.0) / 7
    poisoned(x[1].square()).backward()  # infinite, with a finite gradient
    assert x.grad[1].isnan()


def test_masks_may_be_infinite():
    assert first_spoiled({"attn_mask": torch.tensor([-INF]), "n": torch.tensor(1), "w.weight": torch.ones(1)}) is None
    assert first_spoiled({"a.weight": torch.tensor([INF])}) == "a.weight"
    assert first_spoiled({"mask": torch.tensor([NAN])}) == "mask"


def test_a_spoiled_checkpoint_of_old_is_passed_over(tmp_path):
    for name, step, value in (("best", 3, 1.0), ("last", 5, NAN)):
        state = {"global_step": step, "state_dict": {"w.weight": torch.full((2,), value)}}
        AtomicCheckpointIO().save_checkpoint(state, tmp_path / f"{name}.ckpt")
    with pytest.warns(UserWarning, match=r"last\.ckpt .*w\.weight is NaN or infinite"):
        assert newest_good_checkpoint(tmp_path) == tmp_path / "best.ckpt"


CONFIG = """
model: {class_path: Classification, init_args: {backbone: lenet5, optim: {name: sgd, lr: 0.01}}}
data: {class_path: ClassificationData, init_args: {source: digits, image_size: 28, in_chans: 1, batch_size: 64,
  num_workers: 0}}
trainer: {accelerator: cpu, max_epochs: 2, limit_train_batches: 8, limit_val_batches: 1, log_every_n_steps: 1,
  enable_progress_bar: false, enable_model_summary: false, wandb: {mode: "off"}}
"""


def test_a_burst_model_is_not_saved(capfd):
    """A rate at which everything bursts: what `--resume auto` goes on from is the last good step."""
    Path("run.yaml").write_text(CONFIG)
    fit = ["fit", "--config", "run.yaml", "--resume", "auto"]
    assert in_child(lambda: main([*fit, "--trainer.max_epochs", "1"])) == 0
    high = ["--model.optim.lr", "1e36", "--trainer.max_skipped_steps", "4"]
    assert in_child(lambda: main([*fit, *high])) == 1
    assert "4 optimizer steps in a row" in capfd.readouterr().err
    assert torch.load("runs/run/0/checkpoints/last.ckpt")["global_step"] == 8


@pytest.mark.slow
def test_all_ranks_skip_the_step_of_one_rank():
    """Rank 1 has the second and fourth of the batches; only its second is bad, and its files are named to all."""

    def work() -> None:
        torch.manual_seed(0)
        task, trainer = Learns(), quiet_trainer(devices=2, strategy="ddp")
        trainer.max_skipped_steps = 3
        data = FakeData([[value] * 2 for value in (1.0, 1.0, 1.0, NAN, 1.0, 1.0)])
        for number, batch in enumerate(data.batches):
            batch["path"] = [f"{number}.jpg"]
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            trainer.fit(task, datamodule=data)
        if trainer.is_global_zero:
            assert any("Step 1 is skipped" in str(one.message) and "3.jpg" in str(one.message) for one in said)
        state = {key: value for key, value in task.state_dict().items() if "running" not in key}
        torch.save((task._guard.skipped, state), f"{trainer.global_rank}.pt")

    assert in_ranks(work) == [0, 0]
    (skipped, state), (also, other) = (torch.load(f"{rank}.pt") for rank in (0, 1))
    assert skipped == also == 1
    assert first_spoiled(state) is None
    assert all(torch.equal(value, other[name]) for name, value in state.items())
