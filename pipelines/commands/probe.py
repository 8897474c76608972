"""``probe``: scikit-learn's logistic regression on frozen features, folded into the network's own head."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import nn

from datamodules.common.errors import UserError
from pipelines import cli
from pipelines.command import Command
from pipelines.evaluation import print_metrics
from pipelines.preparation import prepare, start_run
from pipelines.run.checkpoints import open_checkpoint
from pipelines.run.compatibility import check_fits
from pipelines.run.directory import find_checkpoint
from pipelines.trainer import Trainer
from tasks.hooks import TaskHooks


def probe(
    trainer: Trainer,
    model: TaskHooks,
    datamodule: pl.LightningDataModule,
    C: float = 0.1,
    ckpt_path: str | None = None,
) -> list[Mapping[str, float]]:
    """Fit a logistic regression on frozen features, fold it into the head, evaluate and save it.

    Args:
        trainer: Where to run, on one device.
        model: A classification task, usually with pretrained weights.
        datamodule: The data; its training images are taken without augmentation.
        C: Inverse of the regularization's strength, scikit-learn's.
        ckpt_path: Take the features of this checkpoint, such as a ``student.ckpt``; the model's own by default.

    Returns:
        The metrics of the validation split, as Lightning returns them.
    """
    if trainer.world_size > 1:
        raise UserError(
            f"probe runs on one device, but there are {trainer.world_size} (trainer.devices times num_nodes). Add"
            " --trainer.devices 1 --trainer.num_nodes 1."
        )
    checkpoint = None if ckpt_path is None else find_checkpoint(trainer.runs_dir, trainer.run_name, ckpt_path)
    prepare(trainer, model, datamodule, "probe", weights_follow=checkpoint is not None)
    if checkpoint is not None:
        check_fits(checkpoint, model)
        model.load_state_dict(open_checkpoint(checkpoint)["state_dict"])
    with trainer.one_command():
        files = start_run(trainer, model, datamodule, None, None)
        fitted = fit_head(trainer, model, datamodule, C)
        # Lightning's own: ours of that name evaluates a checkpoint.
        results: list[Mapping[str, float]] = pl.Trainer.validate(trainer, model, datamodule=datamodule, verbose=False)
        print_metrics(trainer)
        assert trainer.run_dir is not None
        (trainer.run_dir / "checkpoints").mkdir(exist_ok=True)
        for name in ("best", "last"):
            trainer.save_checkpoint(trainer.run_dir / "checkpoints" / f"{name}.ckpt")
        files.summary(trainer, did=fitted)
    return results


main = functools.partial(cli.execute, Command("probe", probe, optionally=True))


@torch.inference_mode()
def features(model: Any, loader: Any, device: torch.device) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The inputs of the classifier, and the labels: float64 (N, D) and int64 (N,).

    Args:
        model: A classification task whose network is built.
        loader: Batches of the training split, without augmentation.
        device: Where to run.
    """
    captured: list[torch.Tensor] = []
    head = classifier(model)
    handle = head.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0].float().cpu()))
    labels = []
    try:
        for batch in loader:
            model(batch["image"].to(device))
            labels.append(batch["label"])
    finally:
        handle.remove()
    return torch.cat(captured).double().numpy(), torch.cat(labels).numpy()


def classifier(model: Any) -> nn.Linear:
    """The network's last linear layer.

    Raises:
        UserError: If the network's classifier is not one linear layer.
    """
    head = model.network.get_classifier()
    if not isinstance(head, nn.Linear):
        raise UserError(
            f"probe needs a network whose classifier is one linear layer; that of model.backbone '{model.backbone}' is"
            f" {type(head).__name__}. Use fit with model.freeze_backbone: true instead."
        )
    return head


def fit_head(trainer: Any, model: Any, datamodule: Any, C: float) -> str:
    """Fit the regression on standardised features and write the equivalent weights and bias into the head.

    Returns:
        A sentence that says what was fitted.

    Raises:
        UserError: If the labels are not single classes.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    device = trainer.strategy.root_device
    model.to(device).eval()
    x, y = features(model, datamodule.train_features_dataloader(), device)
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise UserError("probe needs one label an image; the data has several or soft labels. Use fit instead.")
    scaler = StandardScaler().fit(x)
    regression = LogisticRegression(C=C, max_iter=5000).fit(scaler.transform(x), y)
    coef, intercept = regression.coef_, regression.intercept_
    if len(coef) == 1:  # two classes: one row; softmax of (-z/2, z/2) is the sigmoid of z
        coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
    weight = coef / scaler.scale_
    bias = intercept - weight @ scaler.mean_
    head = classifier(model)
    full_weight = np.zeros(tuple(head.weight.shape))
    full_bias = np.full(head.weight.shape[0], -1e4)  # a class without training images is never predicted
    full_weight[regression.classes_], full_bias[regression.classes_] = weight, bias
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(full_weight))
        head.bias.copy_(torch.from_numpy(full_bias))
    score = regression.score(scaler.transform(x), y)
    return (
        f"logistic regression (C {C:g}) of {len(regression.classes_)} classes on the {x.shape[1]:,} frozen features of"
        f" {model.backbone}, {x.shape[0]:,} images, training accuracy {score:.4f}"
    )
