"""Whole pretrained models of the package transformers, from a folder or the hub: what they are, and their weights.

What is built is written into the task's own arguments, so that a checkpoint needs neither the folder nor the hub.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datamodules.common.errors import UserError
from tasks.pretrained import parts

FILES = (".pth", ".pt", ".bin", ".safetensors", ".ckpt", ".npz")
#: Keys of a model's configuration that say nothing about the network.
NOT_KEPT = ("id2label", "label2id", "architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path")


def names_whole_model(pretrained: bool | str) -> bool:
    """Whether ``model.pretrained`` names a folder, or ``OWNER/NAME`` on the hub, and not a file of weights."""
    if not isinstance(pretrained, str):
        return False
    path = Path(pretrained).expanduser()
    if path.exists() or path.suffix in FILES:
        return path.is_dir()
    return re.fullmatch(r"[\w.-]+/[\w.-]+", pretrained) is not None


def import_transformers(key: str) -> Any:
    """The package.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            f'{key} needs the package transformers: pip install "vision-pipelines[transformers]".'
        ) from error
    return transformers


def adopt_whole_model(task: Any, name: str, key: str, kinds: Sequence[str]) -> None:
    """Write the configuration of the model that a task starts from into its arguments, as ``transformers``.

    The model is the task's ``backbone`` then.

    Args:
        task: Its ``pretrained`` names such a model, or a checkpoint of one; else nothing is done.
        name: Of the arguments, ``detector_args`` or ``decoder_args``.
        key: What decides that there is one, for messages: ``model.detector: rtdetr``.
        kinds: Transformers' names of the models that the task can be.

    Raises:
        UserError: No such model, or one of another kind.
    """
    given = dict(getattr(task, name) or {})
    if "transformers" not in given:
        of_start = {} if task.start is None else task.start.arguments.get(name) or {}
        if names_whole_model(task.pretrained):
            given["transformers"] = _read_config(task.pretrained, key, kinds)
        elif "transformers" in of_start:
            given["transformers"] = of_start["transformers"]
        else:
            return
    kind = given["transformers"].get("model_type")
    if task.backbone != kind:  # that of a checkpoint is the model itself
        refuse_set("model.backbone", task.backbone, "resnet18")
    task.backbone = kind
    setattr(task, name, given)
    task.hparams.update({name: given, "backbone": kind})


def _read_config(source: str, key: str, kinds: Sequence[str]) -> dict[str, Any]:
    """A model's configuration as plain values, without its classes."""
    transformers = import_transformers(f"model.pretrained, {source},")
    try:
        config = transformers.AutoConfig.from_pretrained(str(Path(source).expanduser()))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"model.pretrained: {source} is neither a file, nor a folder with a model of transformers (config.json and"
            " model.safetensors), nor can such a model be had from the hub: " + str(error).strip().partition("\n")[0]
        ) from error
    if config.model_type not in kinds:
        raise UserError(
            f"model.pretrained: {source} is a model of the kind '{config.model_type}'; {key} takes {', '.join(kinds)}."
        )
    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=True))
    return {name: value for name, value in values.items() if name not in NOT_KEPT}


def configuration(values: dict[str, Any], num_labels: int, **changes: Any) -> Any:
    """The configuration of plain values.

    Raises:
        UserError: If they are none.
    """
    transformers = import_transformers("A whole model")
    values = {**values, **changes}
    try:
        return transformers.AutoConfig.for_model(values.pop("model_type"), num_labels=num_labels, **values)
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"'transformers' is no configuration of a model of the package transformers: {error}"
        ) from error


def make_whole_model(auto: str, pretrained: bool | str, config: Any) -> tuple[nn.Module, str | None]:
    """A model, with its weights where they are wanted.

    Args:
        auto: Transformers' class that knows the kinds, ``AutoModelForObjectDetection``.
        pretrained: The folder, the hub's name, or false.
        config: What it is to be; parts that have another shape in the weights start anew.

    Returns:
        The model, and one line that says what was loaded.

    Raises:
        UserError: Weights that cannot be read, or of which nothing fits.
    """
    transformers = import_transformers("A whole model")
    if not pretrained:
        return getattr(transformers, auto).from_config(config), None
    if not names_whole_model(pretrained):
        raise UserError(
            f"model.pretrained is {pretrained!r}, but this is a whole model of transformers: give a folder or a name on"
            " the hub, a checkpoint of one, or false."
        )
    source = str(Path(str(pretrained)).expanduser())
    level, shows_progress = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        model, info = getattr(transformers, auto).from_pretrained(
            source, config=config, ignore_mismatched_sizes=True, output_loading_info=True, dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"model.pretrained: the weights in {pretrained} cannot be loaded: {reason}") from error
    finally:
        transformers.logging.set_verbosity(level)
        if shows_progress:
            transformers.logging.enable_progress_bar()
    names = set(model.state_dict())
    other = {entry if isinstance(entry, str) else entry[0] for entry in info["mismatched_keys"]}
    new = sorted((set(info["missing_keys"]) | other) & names)
    if not names - set(new):
        raise UserError(f"model.pretrained: none of the tensors in {pretrained} fits a {config.model_type}.")
    line = f"pretrained: {len(names) - len(new)} of {len(names)} tensors of {pretrained} ({config.model_type})"
    return model, line + (f"; new: {parts(new)}" if new else "")


def description(pretrained: bool | str, mean: Sequence[float], std: Sequence[float], loaded: str | None) -> Any:
    """What `tasks.backbones.normalization` reads: the model's own mean and deviation, or else these."""
    found: dict[str, Any] = {}
    if pretrained:
        transformers = import_transformers("A whole model")
        try:
            found, _ = transformers.ImageProcessingMixin.get_image_processor_dict(
                str(Path(str(pretrained)).expanduser())
            )
        except (OSError, ValueError):
            found = {}
    if found.get("do_normalize") is False:
        mean, std = [0.0] * 3, [1.0] * 3
    elif found.get("do_normalize"):
        mean, std = found.get("image_mean", mean), found.get("image_std", std)
    return {"mean": list(mean), "std": list(std), "loaded": loaded}


def refuse_set(key: str, value: object, default: object) -> None:
    """Refuse an argument that a whole model brings along itself.

    Raises:
        UserError: If it is set.
    """
    if value != default:
        advice = "leave it out" if default is None else f"leave it out, or set it to {default}"
        raise UserError(f"{key} is {value!r}, but the model of model.pretrained brings its own: {advice}.")
