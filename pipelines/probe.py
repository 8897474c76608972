"""A linear probe: scikit-learn's logistic regression on frozen features, folded into the network's own head."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning.utilities import rank_zero_info
from torch import nn

from datamodules.common.errors import UserError


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


def fit_head(trainer: Any, model: Any, datamodule: Any, C: float) -> None:
    """Fit the regression on standardised features and write the equivalent weights and bias into the head.

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
    rank_zero_info(f"probe: {x.shape[0]} images, {x.shape[1]} features, training accuracy {score:.4f}")
