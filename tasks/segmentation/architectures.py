"""The architectures of segmentation-models-pytorch (SMP) by name, what each needs, and checks of their arguments."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

import segmentation_models_pytorch as smp

from datamodules.common.errors import UserError

SMP: dict[str, Any] = {
    "unet": smp.Unet,
    "unetplusplus": smp.UnetPlusPlus,
    "manet": smp.MAnet,
    "linknet": smp.Linknet,
    "fpn": smp.FPN,
    "pspnet": smp.PSPNet,
    "deeplabv3": smp.DeepLabV3,
    "deeplabv3plus": smp.DeepLabV3Plus,
    "pan": smp.PAN,
    "upernet": smp.UPerNet,
    "segformer": smp.Segformer,
    "dpt": smp.DPT,
}
ARCHITECTURES = (*SMP, "segnet")
# What is set here and not by `decoder_args`.
OURS = {"self", "encoder_name", "encoder_weights", "in_channels", "classes", "activation", "aux_params", "upsampling"}
# Maps that each architecture needs at least, from stride 2 on.
LEAST_DEPTH = {"unet": 2, "unetplusplus": 2, "manet": 2, "linknet": 2, "pspnet": 2, "deeplabv3": 2}
LEAST_DEPTH |= {"fpn": 3, "deeplabv3plus": 3, "pan": 3, "upernet": 3, "segformer": 3}


def check_architecture(name: str) -> None:
    """Check an architecture's name.

    Raises:
        UserError: an unknown name, with the nearest right ones.
    """
    if name not in ARCHITECTURES:
        plain = name.lower().replace("-", "").replace("_", "").replace("+", "plus")
        near = difflib.get_close_matches(plain, ARCHITECTURES, n=3) or ARCHITECTURES
        raise UserError(f"model.architecture: there is none named '{name}'; did you mean {' or '.join(near)}?")


def check_decoder_args(architecture: str, given: dict[str, Any]) -> dict[str, Any]:
    """The defaults of the arguments of SMP's constructor that a user may set, where `given` has no others."""
    parameters = inspect.signature(SMP[architecture].__init__).parameters.values() if architecture in SMP else ()
    defaults = {p.name: p.default for p in parameters if p.name not in OURS and p.kind is not p.VAR_KEYWORD}
    for key in given:
        if key not in defaults:
            near = difflib.get_close_matches(key, defaults, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(defaults) or 'none'}."
            raise UserError(f"model.decoder_args.{key}: '{architecture}' has no such argument; {hint}")
    allowed = (16, 32) if architecture == "pan" else (8, 16)
    if (stride := given.get("encoder_output_stride", 16)) not in allowed:
        raise UserError(
            f"model.decoder_args.encoder_output_stride is {stride}; {architecture} takes {allowed[0]} or {allowed[1]}."
        )
    return defaults
