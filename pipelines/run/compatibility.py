"""Whether a checkpoint fits the model and the data at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from pytorch_lightning.utilities import rank_zero_warn

from datamodules.common.errors import UserError
from pipelines.run.checkpoints import carried_text, open_checkpoint


def check_data(path: Path, datamodule: Any) -> None:
    """Compare the data that a checkpoint was trained on with the data at hand.

    Args:
        path: The checkpoint; one without a config is taken as it is.
        datamodule: Set up.

    Raises:
        UserError: If the classes, or their order, differ.
    """
    trained = _data_of(path)
    datamodule = getattr(datamodule, "labeled", datamodule)
    theirs, ours = trained.get("class_names"), getattr(datamodule, "class_names", None)
    if theirs and ours and list(theirs) != list(ours):
        raise UserError(
            f"{path} was trained on the classes {theirs}, but the data has {list(ours)}. Give data with those classes;"
            " their order is set by data.class_names."
        )
    for key, value in _view_of(datamodule).items():
        if key in trained and trained[key] != value:
            rank_zero_warn(
                f"data.{key} is {value}, but {path} was trained with {trained[key]}: this is another model of the same"
                " weights. Without --config, the checkpoint's own settings are taken."
            )


def _view_of(datamodule: Any) -> dict[str, Any]:
    """How a model sees the images: settings that change its predictions."""
    view = {key: getattr(datamodule, key, None) for key in ("resize", "crop_pct", "interpolation", "dtype")}
    if view["resize"] not in (None, "native") and hasattr(datamodule, "canvas"):
        view["image_size"] = list(datamodule.canvas())
    return view


def check_fits(path: Path, model: torch.nn.Module) -> None:
    """Compare a checkpoint's weights with a built model's, before anything is written.

    Args:
        path: The checkpoint.
        model: A task whose network is built.

    Raises:
        UserError: If the file is no checkpoint, or names or shapes of its weights differ; the settings that differ
            are named, or else some of the weights.
    """
    checkpoint = open_checkpoint(path)
    if "state_dict" not in checkpoint:
        raise UserError(
            f"--ckpt_path {path} holds no training state, only weights or something else. Weights to start from are"
            " given as --model.pretrained FILE."
        )
    theirs = {name: tuple(tensor.shape) for name, tensor in checkpoint["state_dict"].items()}
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if theirs == ours:
        return
    _refuse_other_settings(path, checkpoint.get("hyper_parameters", {}), model)
    names = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    more = " and others" if len(names) > 3 else ""
    raise UserError(
        f"--ckpt_path {path} does not fit the model: {', '.join(names[:3])}{more} differ."
        " Use the config of that run, or another checkpoint."
    )


def check_optimizer(path: Path, model: Any) -> None:
    """Compare the optimizer whose state a checkpoint holds with the one that is to go on with it.

    Raises:
        UserError: If it is another.
    """
    trained = (open_checkpoint(path).get("hyper_parameters", {}).get("optim") or {}).get("name")
    ours = getattr(getattr(model, "optim", None), "name", None)
    if trained and ours and trained != ours:
        raise UserError(
            f"model.optim.name is '{ours}', but {path} was trained with '{trained}', whose state is no {ours}'s."
            f" Continue with {trained}, or begin a new run from those weights: --model.pretrained {path}."
        )


def _refuse_other_settings(path: Path, trained: dict[str, Any], model: torch.nn.Module) -> None:
    for key in ("backbone", "num_classes", "in_chans", "image_size", "backbone_args"):
        theirs, ours = trained.get(key), getattr(model, key, None)
        if theirs is not None and theirs != ours:
            raise UserError(
                f"model.{key} is {ours}, but {path} was trained with {theirs}. Use the config and data of that run"
                " (without --config they are taken from the checkpoint), or another checkpoint."
            )


def _data_of(path: Path) -> dict[str, Any]:
    """The arguments of the data that a checkpoint was trained on; none where it carries no config."""
    text = carried_text(path)
    config = {} if text is None else yaml.safe_load(text)
    arguments: dict[str, Any] = (config.get("data") or {}).get("init_args", {})
    # A student's data are two: the labeled half is what it is evaluated on.
    return (arguments.get("labeled") or {}).get("init_args", arguments)  # type: ignore[no-any-return]
