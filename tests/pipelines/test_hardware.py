"""What depends on the device, as far as a CPU can show it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import timm
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.plugins.layer_sync import LayerSync

from pipelines.defaults import with_own_plugins
from pipelines.hardware import AveragedWeights, SyncBatchNorm, resolve_precision
from pipelines.run.tracking import Wandb
from pipelines.trainer import Trainer
from tasks import Classification
from tests.tasks.fake_task import FakeData, FakeTask

QUIET = {"accelerator": "cpu", "devices": 1, "wandb": Wandb(mode="off"), "enable_progress_bar": False}


@pytest.mark.parametrize("backbone", ["mobilenetv2_035", "resnet10t"])
def test_synchronised_batch_norms_keep_their_activations(backbone):
    """Torch's own conversion turns timm's norms with activation into bare ones, under the same names."""
    torch.manual_seed(0)
    net = timm.create_model(backbone, num_classes=2).eval()
    image = torch.randn(1, 3, 64, 64)
    names, before = list(net.state_dict()), net(image)
    net = SyncBatchNorm().apply(net)
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in net.modules())
    assert list(net.state_dict()) == names
    assert torch.equal(net(image), before)
    assert torch.equal(SyncBatchNorm().revert(net)(image), before)


def test_the_trainer_takes_ours_and_lightning_does_not_mind():
    trainer = Trainer(sync_batchnorm=True, **QUIET)
    sync = trainer._accelerator_connector._layer_sync
    assert isinstance(sync, SyncBatchNorm)
    assert isinstance(sync, LayerSync)


def test_the_average_is_made_where_the_training_is():
    task = Classification("test_resnet", num_classes=2, in_chans=3, image_size=32)
    callback = AveragedWeights(0.9, torch.device("meta"))
    callback.setup(SimpleNamespace(), task, "fit")
    assert {p.device.type for p in callback._average_model.parameters()} == {"meta"}


def test_the_trainer_tells_the_average_its_device_and_leaves_checkpoints_last():
    own = ModelCheckpoint()
    trainer = Trainer(ema_decay=0.9, callbacks=[own], **QUIET)
    (average,) = [callback for callback in trainer.callbacks if isinstance(callback, AveragedWeights)]
    assert average._device == trainer.strategy.root_device
    assert trainer.callbacks[-1] is own


@pytest.mark.parametrize("decay", [0.999, 0.2])
def test_the_decay_of_the_average_rises_with_the_step(decay):
    """A constant 0.999 would leave the average of a short run at its first weights."""

    class Weight(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.zeros(()))

        def configure_model(self) -> None:
            pass

    module = Weight()
    callback = AveragedWeights(decay, torch.device("cpu"))
    callback.setup(SimpleNamespace(), module, "fit")
    expected = 1.0  # the first update copies the weights as they are, by definition of torch's AveragedModel
    for step, weight in enumerate([1.0, 3.0, -2.0, 5.0]):
        module.w.data.fill_(weight)
        callback.on_train_batch_end(SimpleNamespace(global_step=step + 1, current_epoch=0), module, None, None, step)
        if step:
            kept = min(decay, (1 + step) / (10 + step))
            expected = kept * expected + (1 - kept) * weight
        assert callback._average_model.module.w.item() == pytest.approx(expected)


SLURM = {
    "SLURM_JOB_ID": "1",
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "1",
    "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_NODELIST": "localhost",
    "SLURM_NODEID": "0",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}


def has_slurm(plugins):
    return any(isinstance(plugin, SLURMEnvironment) for plugin in plugins)


def test_lightning_does_not_requeue_unless_it_is_asked_to(monkeypatch):
    assert not any(
        isinstance(plugin, SLURMEnvironment) for plugin in with_own_plugins(None, None, sync_batchnorm=False)
    )
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    trainer = Trainer(**QUIET)
    environment = trainer._accelerator_connector.cluster_environment  # what Lightning's signal handlers look at
    assert isinstance(environment, SLURMEnvironment)
    assert not environment.auto_requeue
    assert trainer.handles_signals
    asked = Trainer(plugins=[SLURMEnvironment(auto_requeue=True)], **QUIET)
    assert asked._accelerator_connector.cluster_environment.auto_requeue
    assert not asked.handles_signals
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("GROUP_RANK", "0")
    assert not any(
        isinstance(plugin, SLURMEnvironment) for plugin in with_own_plugins(None, None, sync_batchnorm=False)
    )


def test_nothing_is_looked_for_in_the_working_directory():
    """In a SLURM job Lightning starts from any hpc_ckpt_*.ckpt in `default_root_dir`."""
    assert Trainer(**QUIET).default_root_dir == "runs"
    assert Trainer(default_root_dir="else", **QUIET).default_root_dir == "else"


def test_the_block_before_a_training(capsys):
    task, data = FakeTask(), FakeData([[1.0, 2.0]])
    task.chosen["model.optim.lr"] = "0.1, since this is a test"
    super(Trainer, trainer := Trainer(max_epochs=1, logger=False, **QUIET)).fit(task, datamodule=data)
    said = capsys.readouterr().out
    # 2 * (9 * 4 * 36 + 4 * 2) operations are half as many multiplications with additions, 1,304
    assert "model   FakeTask, fake: 66 parameters, 1.3 k MACs for an image of 8 x 8 x 1" in said
    assert "recipe  1 epochs, 1 batch an epoch\n          sgd, lr 0.001 (not scaled with the batch)" in said
    assert "chosen  model.optim.lr: 0.1, since this is a test" in said
    assert said.count("parameters") == 1, "printed once, whether a sanity check comes first or not"
    assert trainer.global_step == 1


def test_sums_of_a_checkpoint_go_where_the_model_is():
    """Lightning restores before it moves the model."""
    task = Classification("test_resnet", num_classes=2, in_chans=3, image_size=32)
    task.configure_model()
    task.on_load_checkpoint({"task_state": {"loss_sums": {"loss": torch.ones(2)}}})
    task.to("meta")
    task.on_train_start()
    assert task._loss_sums["loss"].device.type == "meta"


def test_determinism_is_not_undone_by_the_search_for_kernels(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = torch.backends.cudnn.benchmark
    try:
        Trainer(deterministic=True, **QUIET)
        assert not torch.backends.cudnn.benchmark
        Trainer(**QUIET)
        assert torch.backends.cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = before


def test_auto_precision_is_bf16_only_where_the_gpu_has_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for real, wanted in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True, r=real: r)
        assert resolve_precision("auto", "gpu") == wanted
    assert resolve_precision("auto", "cpu") == "32-true"
    assert resolve_precision("16-mixed", "cpu") == "16-mixed"


@pytest.mark.parametrize("accelerator", ["auto", "gpu", "cuda"])
def test_auto_precision_is_for_gpus_that_lightning_finds_itself_too(monkeypatch, accelerator):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert resolve_precision("auto", accelerator) == "bf16-mixed"
    assert resolve_precision("auto", "mps") == "32-true"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_precision("auto", accelerator) == "32-true"


def test_without_loggers_nothing_is_sent_to_wandb():
    """Whatever its own mode says."""
    settings = {**QUIET, "wandb": Wandb(mode="online")}
    assert Trainer(logger=False, **settings).wandb_mode == "off"
    assert Trainer(**settings).wandb_mode == Trainer(logger=True, **settings).wandb_mode == "online"


def test_losses_are_logged_at_least_sometimes():
    with pytest.raises(ValueError, match=r"trainer.log_every_n_steps is 0; it must be at least 1"):
        Trainer(log_every_n_steps=0, **QUIET)
