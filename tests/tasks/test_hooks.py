"""The hooks around a task: what is logged and kept, the optimizer's steps, and the same for a student."""

from __future__ import annotations

import pytest
import torch

from datamodules import ClassificationData, SemiSupervised
from tasks import Detection, NoisyStudent
from tasks.hooks import TaskHooks
from tasks.optim import Optim
from tests.tasks.fake_task import FakeData, FakeTask, quiet_trainer


def alone(task: FakeTask) -> TaskHooks:
    return task


@pytest.mark.parametrize("wrap", [alone, NoisyStudent])
def test_what_a_task_does_at_hooks_it_also_does_as_a_student(wrap, tmp_path):
    task = FakeTask()
    model, data = wrap(task), FakeData([[1.0, 2.0]], semi_supervised=wrap is NoisyStudent)
    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(model, datamodule=data)
    assert task.called == ["after_validation", "after_validation"]
    trainer.validate(model, datamodule=data, verbose=False)
    assert len(task.called) == 2, "an evaluation of its own is none of a training"
    trainer.save_checkpoint(tmp_path / "student.ckpt")
    trainer.test(model, datamodule=data, verbose=False)
    assert task.called[2:] == ["before_test"]

    later = FakeTask()  # an ordinary task: a student's checkpoint is its own
    later.configure_model()
    later.on_load_checkpoint(torch.load(tmp_path / "student.ckpt", weights_only=True))
    assert later.kept == task.kept
    assert len(later.kept) == 2


def test_the_sanity_check_is_no_validation():
    task = FakeTask()
    quiet_trainer(num_sanity_val_steps=1).fit(task, datamodule=FakeData([[1.0, 2.0]]))
    assert task.called == ["after_validation"]


def test_a_detector_keeps_its_thresholds_as_a_student(tmp_path, monkeypatch):
    """The thresholds of the last validation are in the checkpoint, and decide the test's F1."""
    student = Detection("fcos", "test_resnet", num_classes=2, in_chans=3, image_size=64, optim=Optim(lr=1e-6))
    model = NoisyStudent(student)
    image = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    boxes, labels = torch.tensor([[[4.0, 4, 40, 40]]]), torch.tensor([[1]])
    geometry = torch.tensor([[64.0, 64, 1, 1, 0, 0]])
    record = {"boxes": boxes[0], "labels": labels[0], "iscrowd": torch.zeros(1, dtype=torch.uint8)}
    batch = {"image": image, "geometry": geometry, "target": [record], "id": torch.tensor([0]), "path": [""]}
    found = {"boxes": boxes[0], "scores": torch.tensor([0.25]), "labels": labels[0]}
    monkeypatch.setattr(student, "find", lambda image: [found])
    data = FakeData([[0.0]])
    data.batches = [{"labeled": {"image": image, "boxes": boxes, "labels": labels}}]
    data.batch = lambda losses: batch
    trainer = quiet_trainer()
    trainer.fit(model, datamodule=data)
    assert student.best_thresholds["bbox"]["per_class"][1] == pytest.approx(0.25, abs=0.01)
    trainer.save_checkpoint(tmp_path / "student.ckpt")

    found["scores"] = torch.tensor([0.2])  # below the threshold now; at the best of the test F1 would be 1
    tested = Detection("fcos", "test_resnet", num_classes=2, in_chans=3, image_size=64)
    monkeypatch.setattr(tested, "find", lambda image: [found])
    trainer = quiet_trainer()
    trainer.test(tested, datamodule=data, ckpt_path=str(tmp_path / "student.ckpt"), verbose=False)
    assert trainer.callback_metrics["test/map_50"] == pytest.approx(1)
    assert trainer.callback_metrics["test/f1"] == 0
    assert tested.shown(tested.predict(batch))["scores"][0].tolist() == []


def test_a_student_with_a_hook_of_its_own_is_refused():
    class Own(FakeTask):
        def on_train_epoch_end(self) -> None:
            super().on_train_epoch_end()

    with pytest.raises(ValueError, match=r"student is a Own, which overrides on_train_epoch_end: .* after_validation"):
        NoisyStudent(Own())


def test_a_flush_is_the_mean_over_images_since_the_last(monkeypatch):
    """Batches of different size: (1 + 1 + 4 + 3 + 0 + 0) / 6, then the rest of the epoch."""
    task, rows = FakeTask(), []
    monkeypatch.setattr(task, "_to_loggers", lambda metrics, step: rows.append((step, metrics.get("train/loss"))))
    data = FakeData([[1.0, 1.0, 4.0, 3.0], [0.0, 0.0], [7.0, 5.0]])
    quiet_trainer(log_every_n_steps=2, limit_val_batches=0).fit(task, datamodule=data)
    assert rows == [(1, 1.5), (2, 6.0)]


def rates(accumulate: int, **optim) -> list[float]:
    """The learning rate of each optimizer step of an epoch of eight batches of two images."""
    found = []

    class Noting(FakeTask):
        def optimizer_step(self, *args, **kwargs) -> None:
            found.append(self.trainer.optimizers[0].param_groups[0]["lr"])
            super().optimizer_step(*args, **kwargs)

    task = Noting(Optim(name="sgd", lr=0.8, **optim))
    data = FakeData([[1.0, 2.0]] * 8)
    quiet_trainer(accumulate_grad_batches=accumulate, limit_val_batches=0).fit(task, datamodule=data)
    assert task.global_batch() == 2 * accumulate
    return found


def test_rate_and_warm_up_count_optimizer_steps_and_the_global_batch():
    scaled = {"lr_scaling": "linear", "lr_base_batch": 16, "schedule": "constant", "warmup": 0.0}
    assert rates(1, **scaled) == pytest.approx([0.1] * 8)
    assert rates(4, **scaled) == pytest.approx([0.4] * 2)
    # Half the steps as warm-up are four steps of one batch, or two of two.
    assert rates(1, schedule="constant", warmup=0.5)[:5] == pytest.approx([0.16, 0.32, 0.48, 0.64, 0.8])
    assert rates(2, schedule="constant", warmup=0.5) == pytest.approx([0.8 / 3, 1.6 / 3, 0.8, 0.8])
    assert rates(2, schedule="constant", warmup_epochs=0.25) == pytest.approx([0.4, 0.8, 0.8, 0.8])


def test_the_rate_that_is_logged_is_the_highest_of_the_groups():
    logged = []

    class Noting(FakeTask):
        def _to_loggers(self, metrics, step):
            logged.append(metrics["train/lr"])

    optim = Optim(name="sgd", lr=0.8, schedule="constant", backbone_lr_scale=0.1)
    trainer = quiet_trainer(log_every_n_steps=1, limit_val_batches=0)
    trainer.fit(Noting(optim), datamodule=FakeData([[1.0, 2.0]]))
    assert logged == [pytest.approx(0.8)]


def test_rates_are_scaled_by_the_labeled_half_of_a_semi_supervised_batch():
    labeled = ClassificationData("digits", batch_size=6)
    data = SemiSupervised(labeled, labels_per_class=2, ratio=3)
    assert data.batch_size == 6
    model = NoisyStudent(FakeTask())
    trainer = quiet_trainer(accumulate_grad_batches=2)
    trainer.datamodule = data
    model.trainer = trainer
    assert model.global_batch() == 12


def test_the_plateau_schedule_goes_on_where_it_was(tmp_path):
    optim = Optim(name="sgd", lr=0.8, schedule="plateau", plateau_patience=1)
    first, data = FakeTask(optim), FakeData([[1.0, 2.0]])
    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(first, datamodule=data)  # the score stays: the first validation sets the best, the second is not better
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert first._plateau.num_bad_epochs == 1
    resumed, trainer = FakeTask(optim), quiet_trainer(max_epochs=3)
    trainer.fit(resumed, datamodule=data, ckpt_path=str(tmp_path / "last.ckpt"))
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.08)


def test_frozen_norms_are_the_backbones():
    task = FakeTask(freeze_norm=True)
    task.configure_model()
    task.train()
    assert not task.network.backbone[1].training
    assert task.network.backbone[0].training
    assert task.network.head[0].training


def test_a_backbone_that_is_unfrozen_later_stays_until_then():
    class Learning(FakeTask):
        def loss(self, batch):
            return {"loss": self(batch["image"])[:, 0].sum()}

    optim = Optim(name="sgd", lr=0.1, schedule="constant")
    task, before = Learning(optim, freeze_backbone=True, unfreeze_at_epoch=1), {}

    def moved() -> dict[str, bool]:
        return {name: not torch.equal(value, before[name]) for name, value in task.network.named_parameters()}

    task.configure_model()
    before.update({name: value.detach().clone() for name, value in task.network.named_parameters()})
    quiet_trainer(max_epochs=1, limit_val_batches=0).fit(task, datamodule=FakeData([[0.0] * 4]))
    assert {name for name, changed in moved().items() if changed} <= task.head_names()
    assert moved()["head.1.bias"]
    assert not task.network.backbone.training
    quiet_trainer(max_epochs=2, limit_val_batches=0).fit(task, datamodule=FakeData([[0.0] * 4]))
    assert moved()["backbone.0.weight"]
