"""Further methods of captum (BSD) and of grad-cam (MIT), where the extra ``explain`` is installed."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from datamodules.common.errors import UserError
from pipelines.explaining.maps import Place, as_map
from pipelines.explaining.methods import Score


class _Scored(nn.Module):
    """A network whose output is a score, (B, 1): what both packages explain."""

    def __init__(self, network: nn.Module, score: Score) -> None:
        super().__init__()
        self.network = network
        self.score = score

    def forward(self, image: Tensor) -> Tensor:
        """The scores of images."""
        return self.score(image).unsqueeze(1)


def of_captum(method: str, task: Any, score: Score, image: Tensor, baseline: Tensor) -> Tensor:
    """``guided_backprop`` or ``deeplift``: float32 (C, H, W).

    Args:
        method: Its name.
        task: In evaluation mode.
        score: See ``pipelines.explaining.methods``.
        image: float32 (1, C, H, W).
        baseline: Of deeplift, the same shape.

    Raises:
        UserError: If captum is not installed, or cannot explain the network.
    """
    attr = _imported("captum.attr", method)
    scored = _Scored(task.network, score)
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")  # on hooks that it sets
            leaf = image.detach().requires_grad_()
            if method == "deeplift":
                found = attr.DeepLift(scored).attribute(leaf, baseline, target=0)
            else:
                found = attr.GuidedBackprop(scored).attribute(leaf, target=0)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"{method} of captum cannot explain this network: {str(error).splitlines()[0]}") from error
    return found[0].detach().float()  # type: ignore[no-any-return]


def of_grad_cam(method: str, task: Any, score: Score, image: Tensor, place: Place) -> Tensor:
    """``gradcam++`` or ``scorecam``: float32 (H, W), 0 to 1.

    Args:
        method: Its name.
        task: In evaluation mode.
        score: See ``pipelines.explaining.methods``.
        image: float32 (1, C, H, W).
        place: Whose output is one map.

    Raises:
        UserError: If grad-cam is not installed, or the layer gives several maps.
    """
    package = _imported("pytorch_grad_cam", method)
    kind = package.GradCAMPlusPlus if method == "gradcam++" else package.ScoreCAM
    size = image.shape[-2:]
    cam = kind(
        model=_Scored(task.network, score),
        target_layers=[place.module],
        reshape_transform=lambda output: as_map(output, size, place.prefix, place.name),
    )
    try:
        with torch.enable_grad():
            found = cam(input_tensor=image.detach().requires_grad_(), targets=[lambda output: output[0]])
    except AttributeError as error:
        raise UserError(f"{method} needs a layer with one map: name one by --layer (`summary` lists them).") from error
    finally:
        cam.activations_and_grads.release()
    return torch.from_numpy(found[0]).to(image)


def _imported(package: str, method: str) -> Any:
    """A package, imported when it is needed.

    Raises:
        UserError: If it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as error:
        name = {"captum.attr": "captum", "pytorch_grad_cam": "grad-cam"}[package]
        raise UserError(
            f"--method {method} needs the package {name}: pip install 'vision-pipelines[explain]'."
        ) from error
