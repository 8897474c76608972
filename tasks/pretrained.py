"""Pretrained weights from a file, and what timm says about a net's weights."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import load_state_dict
from torch import nn

from datamodules.common.errors import UserError

HUB_PREFIXES = ("hf-hub:", "hf_hub:", "local-dir:")


def net_config(name: str) -> Any:
    """What timm says about a net and its weights; None for nets that are described elsewhere (`hf-hub:`)."""
    return None if name.startswith(HUB_PREFIXES) else timm.get_pretrained_cfg(name)


def classifier_names(config: Any) -> tuple[str, ...]:
    """Names of a net's classifiers, from its `pretrained_cfg`."""
    names = (config.get("classifier") if isinstance(config, dict) else getattr(config, "classifier", None)) or ()
    return (names,) if isinstance(names, str) else tuple(names)


class _UnfittingKeys(logging.Handler):
    """Collects the keys that did not fit when timm loads weights non-strictly: it only logs them.

    ``load_state_dict`` returns them to timm's own function, which gives them to nobody else
    (``load_pretrained`` in https://github.com/huggingface/pytorch-image-models/blob/main/timm/models/_builder.py).
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.missing: list[str] = []
        self.unexpected: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if found := re.match(r"(Missing|Unexpected) keys \((.*?)\)", record.getMessage()):
            (self.missing if found[1] == "Missing" else self.unexpected).extend(found[2].split(", "))

    def __enter__(self) -> _UnfittingKeys:
        self.logger = logging.getLogger("timm.models._builder")
        self.before = self.logger.level, self.logger.propagate
        self.logger.setLevel(logging.INFO)
        self.logger.propagate = False
        self.logger.addHandler(self)
        return self

    def __exit__(self, *error: object) -> None:
        self.logger.removeHandler(self)
        self.logger.level, self.logger.propagate = self.before


def _short(keys: Sequence[str]) -> str:
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")


def parts(names: Sequence[str]) -> str:
    """The parts of a network that tensors belong to, for a message: as deep as four name all, or the first of more."""
    for levels in (4, 3, 2):
        found = list(dict.fromkeys(".".join(name.split(".")[:-1][:levels]) or name for name in names))
        if len(found) <= 4:
            break
    return ", ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")


def what_was_loaded(network: nn.Module) -> str | None:
    """One line about the file that a network was built with, where there was one."""
    line: str | None = (getattr(network, "pretrained_cfg", None) or {}).get("loaded")
    return line


def _read(file: str) -> dict[str, Any]:
    """The tensors of a file by name; those below ``state_dict`` or ``model``, and an average where it has one."""
    path = Path(file).expanduser()
    if (best := path / "checkpoints" / "best.ckpt").is_file():
        raise UserError(f"model.pretrained: {file} is the folder of a run; give its checkpoint, {best}.")
    if path.is_dir():
        raise UserError(
            f"model.pretrained: {file} is a folder; model.detector: rtdetr and model.architecture: segformer take"
            " models of the package transformers, all others take a file of weights or a checkpoint."
        )
    if not path.is_file():
        raise UserError(f"model.pretrained: no such file: {file} (true loads the net's own weights from the hub).")
    try:
        weights: dict[str, Any] = load_state_dict(str(path))
        return weights
    except Exception as error:
        raise UserError(
            f"model.pretrained: {file} cannot be read as weights (.safetensors, .pth, .bin). What holds other objects"
            " than tensors is not loaded, since that would run its code: save the state_dict alone."
        ) from error


def _names(name: str) -> list[str]:
    """Of a net's tensors; without memory where it can be built so."""
    try:
        with torch.device("meta"):
            return list(timm.create_model(name).state_dict())
    except (RuntimeError, NotImplementedError, ValueError):
        return list(timm.create_model(name).state_dict())


def _of_backbone(weights: dict[str, Any], name: str) -> dict[str, Any]:
    """The tensors below the prefix where most of the net's names are: ``backbone.body.`` of torchvision's detectors."""
    ours = _names(name)
    prefixes = {key.removesuffix(ours[0]) for key in weights if key.endswith(ours[0])} or {""}
    counts = {prefix: sum(prefix + key in weights for key in ours) for prefix in sorted(prefixes)}
    best = max(counts, key=lambda prefix: counts[prefix])
    return {key.removeprefix(best): value for key, value in weights.items() if key.startswith(best)}


def create_from_file(name: str, file: str, arguments: dict[str, Any]) -> nn.Module:
    """``timm.create_model`` with the weights of a local file.

    Args:
        name: Of the net.
        file: Weights; a classifier for another number of classes is left out, and so is what lies beside a backbone
            whose names have a prefix.
        arguments: Of timm's constructor.

    Raises:
        UserError: No such file, or weights that do not fit, naming the keys.
    """
    weights = _of_backbone(_read(file), name)
    heads = tuple(f"{head}." for head in classifier_names(net_config(name)))
    classes = _classes_of(weights, heads)
    model, keys = _load(name, file, weights, classes, arguments)
    _forget_weights(model)
    is_pyramid = bool(arguments.get("features_only"))
    _refuse_unfitting(model, name, file, keys, features=is_pyramid)
    has_its_head = classes is not None and classes == arguments.get("num_classes") and not is_pyramid
    left = [] if has_its_head else [key for key in weights if key in keys.unexpected or key.startswith(heads)]
    line = f"pretrained: {len(weights) - len(left)} of {len(weights)} tensors of {file}"
    about: Any = model.pretrained_cfg
    about["loaded"] = line + (f"; not loaded: {_short(left)}" if left else "")
    return model


def _classes_of(weights: dict[str, Any], heads: tuple[str, ...]) -> int | None:
    """How many classes the classifier in a file has; None where it has none."""
    return next((len(weights[f"{head}weight"]) for head in heads if f"{head}weight" in weights), None)


def _load(
    name: str, file: str, weights: dict[str, Any], classes: int | None, arguments: dict[str, Any]
) -> tuple[nn.Module, _UnfittingKeys]:
    """The net with the weights, and the keys that did not fit; shapes that differ are refused."""
    overlay = {"state_dict": dict(weights), "num_classes": classes or -1}  # -1: it has no classifier
    with _UnfittingKeys() as keys:
        try:
            return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments), keys
        except RuntimeError as error:
            if "loading state_dict" not in str(error):
                raise
            lines = [line.strip() for line in str(error).splitlines()[1:]]
            reasons = [re.sub(r"size mismatch for (\S+): .*", r"\1 has another shape", line) for line in lines]
            raise UserError(f"model.pretrained: {file} does not fit '{name}': {_short(reasons)}") from error


def _forget_weights(model: nn.Module) -> None:
    """Remove the weights from the config that the net keeps, and each copy of it would."""
    for module in model.modules():
        if isinstance(config := getattr(module, "pretrained_cfg", None), dict):
            config.pop("state_dict", None)


def _refuse_unfitting(model: nn.Module, name: str, file: str, keys: _UnfittingKeys, *, features: bool) -> None:
    heads = tuple(f"{head}." for head in classifier_names(net_config(name) or model.pretrained_cfg))
    missing = [key for key in keys.missing if not key.startswith(heads)]
    unexpected = [key for key in keys.unexpected if not key.startswith(heads)]
    if features:
        # A pyramid has lost its head after loading, and with it what may be missing or too much.
        kept = {key.removeprefix("model.") for key in model.state_dict()}
        missing, unexpected = [key for key in missing if key in kept], []
    if _nothing_fits(model, keys):
        raise UserError(
            f"model.pretrained: {file}: none of its tensors fits '{name}'; it has {_short(keys.unexpected)}."
        )
    reasons = [f"it lacks {_short(missing)}"] if missing else []
    reasons += [f"it has also {_short(unexpected)}"] if unexpected else []
    if reasons:
        raise UserError(f"model.pretrained: {file} does not fit '{name}': {'; '.join(reasons)}.")


def _nothing_fits(model: nn.Module, keys: _UnfittingKeys) -> bool:
    parameters = {key.removeprefix("model.") for key, _ in model.named_parameters()}
    return parameters <= set(keys.missing)
