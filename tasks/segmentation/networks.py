"""Networks of semantic segmentation: the architectures of segmentation-models-pytorch (SMP) and SegNet, on timm's nets.

SMP takes an encoder of one's own (https://smp.readthedocs.io/en/latest/insights.html#creating-your-own-encoder): here
that is always a pyramid of `tasks.pyramid`, so that weights from files, nets of fixed size, plain ViTs and our own
nets work as they do in the other tasks, with the same messages. Where an architecture wants a dilated encoder, the net
is built with timm's `output_stride`. DPT takes its maps from the blocks of a plain ViT instead.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from segmentation_models_pytorch.encoders import encoders as smp_encoders

from datamodules.common.errors import UserError
from tasks.backbones import check_backbone, create_classifier, create_net, enable_checkpointing, net_arguments
from tasks.networks.segnet import SegNet
from tasks.pyramid import Pyramid, create_features, create_pyramid, gives_intermediates
from tasks.segmentation.architectures import LEAST_DEPTH, SMP, check_architecture, check_decoder_args
from tasks.segmentation.segmenter import Encoder, Segmenter, round_up

STRIDE = 32  # of the deepest map; nets of fixed size are built for multiples of it
TRY_SIDE = 128  # pixels; a small image, on which PAN's pyramid attention still works


def _misfit(architecture: str, backbone: str, reason: object, advice: str) -> UserError:
    return UserError(
        f"model.architecture '{architecture}' and model.backbone '{backbone}' do not fit: {reason}; {advice}."
    )


def _sketch(build: Callable[[], Any]) -> Any:
    """What `build` gives, on the meta device where the net can be built there: no memory, no initialization."""
    try:
        with torch.device("meta"):
            return build()
    except ValueError:
        return build()


def _any_size(backbone: str) -> dict[str, Any]:
    """The argument that lets a net of fixed size take other sizes, where it has one."""
    for extra in ({"dynamic_img_size": True}, {"strict_img_size": False}):
        try:
            _sketch(partial(create_net, backbone, False, extra))
        except ValueError:
            continue
        return extra
    return {}


def _depth(architecture: str, backbone: str, sketch: Pyramid, given: int | None) -> int:
    """The number of halvings down to the map that the decoder begins with, at most five."""
    has = sketch.strides
    deepest = max((stride for stride in has if stride in (2, 4, 8, 16, STRIDE)), default=1).bit_length() - 1
    depth = given or min(3 if architecture == "pspnet" else 5, deepest)
    needed = [2**i for i in range(2, max(depth, LEAST_DEPTH[architecture]) + 1)]
    if given is not None and given < LEAST_DEPTH[architecture]:
        raise UserError(
            f"model.decoder_args.encoder_depth is {given}; {architecture} takes {LEAST_DEPTH[architecture]} to 5."
        )
    if not set(needed) <= set(has):
        advice = "take another net (resnet18)"
        if sketch.neck is not None:
            advice = f"set model.backbone_args.patch_size to 16, or {advice}"
        elif deepest < depth:
            advice = f"set model.decoder_args.encoder_depth to {deepest}"
        elif {2, 4} <= set(has):
            advice = f"take unet, or {advice[5:]}"
        raise _misfit(architecture, backbone, f"the first needs maps of strides {needed}, the second has {has}", advice)
    if architecture == "unetplusplus" and 2 not in has:
        reason = f"the first needs a map of stride 2, the second has {has}"
        raise _misfit(architecture, backbone, reason, "take unet, or another net (resnet18)")
    return depth


def _used_levels(architecture: str, depth: int) -> list[int]:
    """Numbers of halvings of the maps that a decoder takes."""
    if architecture in ("pspnet", "deeplabv3"):
        return [depth]
    return [2, depth] if architecture == "deeplabv3plus" else list(range(1, depth + 1))


def _dilated(
    architecture: str,
    backbone: str,
    sketch: Pyramid,
    strides: list[int],
    output_stride: int,
    encoder_args: dict[str, Any],
    weights: dict[str, Any],
) -> Pyramid:
    """The maps that have these strides in `sketch`, with dilation in place of strides beyond `output_stride`."""
    info: Any = sketch.net.feature_info
    places = dict(zip(sketch.strides, info.out_indices, strict=False))  # a ViT has one place and several strides
    arguments = net_arguments(backbone, drop_rate=0.0, **encoder_args)
    arguments |= {"out_indices": tuple(places.get(stride) for stride in strides), "output_stride": output_stride}
    try:
        net = _sketch(partial(create_features, backbone, False, arguments))
        if net.feature_info.reduction() != [min(stride, output_stride) for stride in strides]:
            raise UserError("its strides remain")
    except ValueError as error:
        advice = f"set model.decoder_args.encoder_depth to {output_stride.bit_length() - 1}"
        if architecture == "pan":
            advice += " or encoder_output_stride to 32"
        reason = f"the first wants the second dilated to stride {output_stride}, which timm's net cannot be"
        raise _misfit(architecture, backbone, reason, f"{advice}, or take another net (resnet18), or unet") from error
    # As `create_features`, which tries only the first way if there is a file of weights.
    arguments |= {"feature_cls": "getter"} if gives_intermediates(net) else {}
    net = create_net(backbone, weights["pretrained"], arguments | {"features_only": True})
    if weights["grad_checkpointing"]:
        enable_checkpointing(getattr(net, "model", net), backbone)
    info = net.feature_info
    return Pyramid(net, info.channels(), info.reduction())


def _decoded(architecture: str, encoder_name: str, args: dict[str, Any]) -> Any:
    """SMP's model, or a message about the arguments."""
    try:
        return SMP[architecture](encoder_name, **args)
    except (ValueError, TypeError, RuntimeError) as error:
        shown = {key: value for key, value in args.items() if key.startswith(("decoder", "encoder_", "psp"))}
        raise UserError(f"model.decoder_args: '{architecture}' cannot be built with {shown}: {error}") from error


def _on_pyramid(
    architecture: str,
    backbone: str,
    sketch: Pyramid,
    defaults: dict[str, Any],
    args: dict[str, Any],
    encoder_args: dict[str, Any],
    weights: dict[str, Any],
) -> Segmenter:
    """An architecture of SMP on a feature pyramid."""
    given = args.get("encoder_depth")
    depth = _depth(architecture, backbone, sketch, given)
    strides = [2**level for level in _used_levels(architecture, depth) if 2**level in sketch.strides]
    levels = [stride.bit_length() - 1 for stride in strides]
    # A U-Net joins the maps of full size too (Ronneberger et al. 2015), which SMP, made for nets whose stem halves,
    # does not: for small nets that have them (the CIFAR ResNets) all levels are one further down.
    if architecture == "unet" and given is None and 1 in sketch.strides and depth < 5:
        depth += 1
        levels, strides = [1, *(level + 1 for level in levels)], [1, *strides]
    args["encoder_depth"] = depth
    output_stride = args.get("encoder_output_stride", defaults.get("encoder_output_stride", STRIDE))
    if strides[-1] > output_stride:
        pyramid = _dilated(architecture, backbone, sketch, strides, output_stride, encoder_args, weights)
    else:
        pyramid = create_pyramid(backbone, strides=strides, **encoder_args, **weights)
    if isinstance(defaults.get("decoder_channels"), tuple):  # one for each map; the default is for five
        args.setdefault("decoder_channels", defaults["decoder_channels"][-depth:])
    if architecture in ("fpn", "pspnet"):
        args["upsampling"] = 2**depth if architecture == "pspnet" else 2 ** (depth - 3)
    encoder = Encoder(pyramid, levels, depth, encoder_args["in_chans"])
    smp_encoders["pyramid"] = {"encoder": lambda **_: encoder, "params": {}, "pretrained_settings": {}}
    try:
        net = _decoded(architecture, "pyramid", args)
    finally:
        del smp_encoders["pyramid"]
    info: Any = pyramid.net.feature_info
    multiple = max(pyramid.strides[-1], info.reduction()[0])  # a ViT's patch may be larger than the last stride
    return Segmenter(net, (architecture, backbone), "encoder.pyramid.net.", multiple, pyramid.pretrained_cfg)


def _dpt(
    backbone: str, sketch: Pyramid, args: dict[str, Any], encoder_args: dict[str, Any], weights: dict[str, Any]
) -> Segmenter:
    """DPT on some blocks of a plain ViT, spread evenly."""
    info: Any = sketch.net.feature_info
    patch = info.reduction()[0]
    if sketch.neck is None or patch not in (8, 16, 32):
        what = f"patches of {patch} pixels" if sketch.neck is not None else f"maps of strides {sketch.strides}"
        advice = "take vit_small_patch16_224, or another architecture (unet, fpn, upernet)"
        if sketch.neck is not None:
            advice = f"set model.backbone_args.patch_size to 16, or {advice}"
        reason = f"the first needs a plain ViT with patches of 8, 16 or 32 pixels, the second has {what}"
        raise _misfit("dpt", backbone, reason, advice)
    vit: Any = create_classifier(backbone, 0, **encoder_args, **weights)
    depth, blocks = args.get("encoder_depth", 4), len(vit.feature_info)
    indices = args.setdefault("encoder_output_indices", [blocks * i // depth - 1 for i in range(1, depth + 1)])
    if not getattr(vit, "num_prefix_tokens", 0):
        args["decoder_readout"] = "ignore"
    arguments = net_arguments(backbone, drop_rate=0.0, **encoder_args) | {"num_classes": 0}
    del arguments["in_chans"]
    net = _decoded("dpt", f"tu-{backbone}", args | arguments)  # it builds a ViT of its own, which is replaced
    # Layers that are never used would be without gradients, which DDP refuses.
    vit.prune_intermediate_layers(indices, prune_norm=True, prune_head=True)
    net.encoder.model = vit
    return Segmenter(net, ("dpt", backbone), "encoder.model.", STRIDE, vit.pretrained_cfg)


def _segnet(backbone: str, num_outputs: int, encoder_args: dict[str, Any], weights: dict[str, Any]) -> Segmenter:
    """SegNet on a VGG."""
    if not backbone.startswith("vgg"):
        reason = "the first uses the pooling indices of a VGG"
        raise _misfit("segnet", backbone, reason, "take vgg11_bn or vgg16_bn, or another architecture (unet)")
    pyramid = create_pyramid(backbone, strides=[STRIDE], **encoder_args, **weights)
    net = SegNet(pyramid.net.model, num_outputs)  # type: ignore[arg-type]
    return Segmenter(net, ("segnet", backbone), "encoder.", STRIDE, pyramid.pretrained_cfg)


def _try_out(segmenter: Segmenter, in_chans: int, height: int, width: int) -> None:
    """Run one black image, so that what does not work is refused here and not in the first batch."""
    training = segmenter.training
    try:
        with torch.no_grad():
            logits = segmenter.eval()(torch.zeros(1, in_chans, height, width))
    except (RuntimeError, AssertionError, ValueError, IndexError, TypeError) as error:
        advice = "take another net (resnet18) or another architecture (unet)"
        raise _misfit(*segmenter.names, f"an image of {height} x {width} pixels fails: {error}", advice) from error
    finally:
        segmenter.train(training)
    if logits.shape[-2:] != (height, width):
        raise _misfit(*segmenter.names, f"{height} x {width} pixels become {tuple(logits.shape[-2:])}", "take unet")


def create_segmenter(
    architecture: str,
    backbone: str,
    num_outputs: int,
    *,
    in_chans: int = 3,
    pretrained: bool | str = False,
    image_size: tuple[int, int] | None = None,
    decoder_args: dict[str, Any] | None = None,
    drop_path_rate: float = 0.0,
    backbone_args: dict[str, Any] | None = None,
    aux_classes: int = 0,
    grad_checkpointing: bool = False,
) -> Segmenter:
    """A segmentation network; `Segmenter` says what goes in and comes out.

    Args:
        architecture: one of `ARCHITECTURES`.
        backbone: timm's name of the encoder, with or without a tag, or one of ours.
        num_outputs: number of logits a pixel.
        in_chans: number of input channels.
        pretrained: True for the encoder's weights from the hub, or a local file (.safetensors, .pth, .bin).
        image_size: height and width in pixels of the training images, for encoders that are built for one size (ViT,
            Swin); rounded up to multiples of 32. Others ignore it.
        decoder_args: arguments of SMP's constructor of that architecture, as SMP names them (`decoder_channels`,
            `encoder_output_stride`, `encoder_depth`, ...); https://smp.readthedocs.io/en/latest/models.html
        drop_path_rate: stochastic depth in the encoder.
        backbone_args: more arguments of timm's constructor of the encoder.
        aux_classes: outputs of a classification head on the encoder's last map, used in training; 0 for none.
        grad_checkpointing: recompute the encoder's activations in the backward pass, to save memory.

    Raises:
        UserError: an unknown name; an encoder that does not fit the architecture, with the reason and what to do; what
            `tasks.pyramid.create_pyramid` refuses.
        UserError: `pretrained` names a file that does not exist.
    """
    check_architecture(architecture)
    check_backbone(backbone)
    args = dict(decoder_args or {})
    defaults = check_decoder_args(architecture, args)
    if aux_classes and architecture == "segnet":
        raise UserError("model.aux_weight: segnet has no auxiliary head; set it to 0, or take another architecture.")
    args |= {"encoder_weights": None, "in_channels": in_chans, "classes": num_outputs}
    args["aux_params"] = {"classes": aux_classes} if aux_classes else None
    encoder_args: dict[str, Any] = {"in_chans": in_chans, "image_size": None, "drop_path_rate": drop_path_rate}
    encoder_args["backbone_args"] = dict(backbone_args or {})
    weights = {"pretrained": pretrained, "grad_checkpointing": grad_checkpointing}
    sketch = _sketch(partial(create_pyramid, backbone, **encoder_args))
    config = sketch.pretrained_cfg or {}
    height = width = TRY_SIDE
    if fixed := bool(config.get("fixed_input_size")):
        height, width = (round_up(side, STRIDE) for side in image_size or config["input_size"][1:])
        encoder_args["image_size"] = height, width
        encoder_args["backbone_args"] = _any_size(backbone) | encoder_args["backbone_args"]
    if architecture == "segnet":
        segmenter = _segnet(backbone, num_outputs, encoder_args, weights)
    elif architecture == "dpt":
        segmenter = _dpt(backbone, sketch, args, encoder_args, weights)
    else:
        segmenter = _on_pyramid(architecture, backbone, sketch, defaults, args, encoder_args, weights)
    _try_out(segmenter, in_chans, height, width)
    if fixed:
        try:
            _try_out(segmenter, in_chans, height + STRIDE, width)
        except ValueError:
            segmenter.fixed_size = height, width
    return segmenter
