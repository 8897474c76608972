"""What depends on the device, as far as a CPU can show it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import timm
import torch
from pytorch_lightning.plugins.layer_sync import LayerSync

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
    callback = AveragedWeights(0.9)
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("meta")))
    callback.setup(trainer, task, "fit")
    assert {p.device.type for p in callback._average_model.parameters()} == {"meta"}


def test_the_average_is_mostly_the_old_one():
    """decay * old + (1 - decay) * new; the first step copies."""
    task = Classification("test_resnet", num_classes=2, in_chans=3, image_size=32)
    callback = AveragedWeights(0.9)
    callback.setup(SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu"))), task, "fit")
    task.configure_model()
    bias = task.network.fc.bias
    for value in (1.0, 2.0, 7.0):
        torch.nn.init.constant_(bias, value)
        callback._average_model.update_parameters(task)
    average = next(p for name, p in callback._average_model.named_parameters() if name.endswith("fc.bias"))
    assert average.tolist() == pytest.approx([0.9 * (0.9 * 1 + 0.1 * 2) + 0.1 * 7] * 2)


def test_the_summary_shows_the_operations_of_one_image(caplog):
    task = FakeTask()
    trainer = Trainer(max_epochs=1, logger=False, num_sanity_val_steps=0, **QUIET)
    with caplog.at_level("INFO"):
        super(Trainer, trainer).fit(task, datamodule=FakeData([[1.0, 2.0]]))
    assert "2.6 K     Total Flops" in caplog.text  # 2 * (9 * 4 * 36 + 4 * 2) = 2,608
    assert "FLOPs" not in caplog.text, "a column that Lightning fills with zeros"


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


def test_losses_are_logged_at_least_sometimes():
    with pytest.raises(ValueError, match=r"trainer.log_every_n_steps is 0; it must be at least 1"):
        Trainer(log_every_n_steps=0, **QUIET)
