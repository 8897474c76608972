"""A fit ends with a validation, whatever ends it; a fit that goes on from there is the undisturbed one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import Callback

from pipelines.__main__ import main
from pipelines.epoch_loop import EpochLoop
from tests.tasks.fake_task import FakeData, FakeTask, quiet_trainer


class Noting(FakeTask):
    """Notes the step of each validation."""

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.called.append(str(self.trainer.global_step))


class StopAt(Callback):
    """Asks for the end behind a step, as ``max_time`` does."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.should_stop or trainer.global_step == 6


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({"max_epochs": 3}, [4, 8, 12]),
        ({"max_epochs": 3, "check_val_every_n_epoch": 2}, [8, 12]),
        ({"max_epochs": 2, "check_val_every_n_epoch": 9}, [8]),
        ({"max_epochs": 2, "val_check_interval": 3}, [3, 7, 8]),
        ({"max_epochs": 2, "val_check_interval": 3, "check_val_every_n_epoch": None}, [3, 6, 8]),
        ({"max_epochs": 9, "max_steps": 6}, [4, 6]),
        ({"max_epochs": 9, "max_steps": 8}, [4, 8]),
        ({"max_epochs": 9, "max_steps": 3, "accumulate_grad_batches": 2, "check_val_every_n_epoch": 9}, [3]),
        ({"max_epochs": 3, "callbacks": [StopAt()]}, [4, 6]),
        ({"max_epochs": 3, "callbacks": [StopAt()], "check_val_every_n_epoch": 9}, [6]),
        ({"max_epochs": 5, "min_epochs": 3, "callbacks": [StopAt()], "check_val_every_n_epoch": 9}, [12]),
        ({"max_epochs": 3, "limit_val_batches": 0}, []),
    ],
)
def test_the_final_weights_are_validated(arguments, steps):
    task = Noting()
    trainer = quiet_trainer(**arguments)
    trainer.fit_loop.epoch_loop = EpochLoop.like(trainer.fit_loop.epoch_loop)
    trainer.fit(task, datamodule=FakeData([[1.0, 2.0]] * 4))
    assert [int(step) for step in task.called if step.isdigit()] == steps


CONFIG = """
model: {{class_path: Classification, init_args: {{backbone: test_resnet, optim: {{lr: 0.01, schedule: constant}}}}}}
data: {{class_path: ClassificationData, init_args: {{source: {source}, image_size: 32, batch_size: 4, num_workers: 0}}}}
trainer: {{check_val_every_n_epoch: 3, num_sanity_val_steps: 0, ema_decay: 0.9, wandb: {{mode: "off"}}}}
"""


@pytest.mark.slow
def test_a_longer_fit_goes_on_from_the_last_validation_of_a_shorter_one(tmp_path, folder):
    Path("run.yaml").write_text(CONFIG.format(source=folder))
    fit = ["fit", "--config", "run.yaml", "--trainer.enable_progress_bar", "false", "--trainer.max_epochs"]
    assert main([*fit, "4", "--name", "short"]) == 0
    for name, checkpoint in (("of_last", "last"), ("of_best", "best")):
        start = f"runs/short/0/checkpoints/{checkpoint}.ckpt"
        assert main([*fit, "5", "--name", name, "--ckpt_path", start]) == 0
    assert main([*fit, "5", "--name", "long"]) == 0
    expected = torch.load("runs/long/0/checkpoints/last.ckpt", weights_only=True)
    for name in ("of_last", "of_best"):
        found = torch.load(f"runs/{name}/0/checkpoints/last.ckpt", weights_only=True)
        assert found["global_step"] == expected["global_step"]
        for kind in ("current_model_state", "state_dict"):
            assert all(torch.equal(found[kind][key], value) for key, value in expected[kind].items()), (name, kind)


def test_there_is_always_a_best_checkpoint(folder):
    Path("run.yaml").write_text(CONFIG.format(source=folder))
    fit = ["fit", "--config", "run.yaml", "--trainer.enable_progress_bar", "false", "--trainer.max_epochs", "2"]
    assert main([*fit, "--name", "short"]) == 0
    assert torch.load("runs/short/0/checkpoints/best.ckpt", weights_only=True)["epoch"] == 1
