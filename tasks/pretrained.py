"""Pretrained weights from a file, and what timm says about a net's weights."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
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


def _file_overlay(name: str, file: str) -> dict[str, Any]:
    """What makes timm load a local file: its path, and the number of classes in it (-1: it has no classifier)."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"model.pretrained: no such file: {file} (true loads the net's own weights from the hub).")
    try:
        weights = load_state_dict(str(path))
    except Exception as error:
        raise UserError(
            f"model.pretrained: {file} cannot be read as weights (.safetensors, .pth, .bin). What holds other objects"
            " than tensors is not loaded, since that would run its code: save the state_dict alone."
        ) from error
    config = net_config(name)
    rows = [len(weights[f"{head}.weight"]) for head in classifier_names(config) if f"{head}.weight" in weights]
    return {"file": str(path), "num_classes": rows[0] if rows else -1}


def create_from_file(name: str, file: str, arguments: dict[str, Any]) -> nn.Module:
    """``timm.create_model`` with the weights of a local file.

    Args:
        name: Of the net.
        file: Weights; a classifier for another number of classes is left out.
        arguments: Of timm's constructor.

    Raises:
        UserError: No such file, or weights that do not fit, naming the keys.
    """
    overlay = _file_overlay(name, file)
    with _UnfittingKeys() as keys:
        try:
            model: nn.Module = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
        except RuntimeError as error:
            if "loading state_dict" not in str(error):
                raise
            reasons = [line.strip() for line in str(error).splitlines()[1:]]
            raise UserError(f"model.pretrained: {file} does not fit '{name}': {_short(reasons)}") from error
    _refuse_unfitting(model, name, file, keys, features=bool(arguments.get("features_only")))
    return model


def _refuse_unfitting(model: nn.Module, name: str, file: str, keys: _UnfittingKeys, *, features: bool) -> None:
    heads = tuple(f"{head}." for head in classifier_names(net_config(name) or model.pretrained_cfg))
    missing = [key for key in keys.missing if not key.startswith(heads)]
    unexpected = [key for key in keys.unexpected if not key.startswith(heads)]
    if features:
        # A pyramid has lost its head after loading, and with it what may be missing or too much.
        kept = {key.removeprefix("model.") for key in model.state_dict()}
        missing, unexpected = [key for key in missing if key in kept], []
    reasons = [f"it lacks {_short(missing)}"] if missing else []
    reasons += [f"it has also {_short(unexpected)}"] if unexpected else []
    if reasons:
        raise UserError(f"model.pretrained: {file} does not fit '{name}': {'; '.join(reasons)}.")
