"""Layer-wise relevance propagation (LRP): the score is handed back, layer by layer, without loss, to the pixels.

Bach et al. 2015, https://doi.org/10.1371/journal.pone.0130140; which rule a layer has is decided by its place, as in
Montavon et al. 2019, https://doi.org/10.1007/978-3-030-28954-6_10:

- the layer that gives the score: in proportion to what each input adds (LRP-0);
- convolutions and linear layers behind it: to what adds with the same sign only (alpha 1, beta 0; that is z+ where no
  input is negative), with the scale of a batch norm right behind them taken into their weights;
- the first convolution: as much, for inputs between black and white (z^B);
- activations and norms hand on what they get, gates (squeeze-and-excitation) count as constants, and sums, poolings,
  joins and enlargements are linear.

No rule lets a bias keep a part, so that the pixels' relevances sum to the score's, which is set to 1. Layers are told
to compute the same values in a form whose gradient is the relevance divided by the activation; any network of known
layers works, however they are connected. What a network computes between its layers by other functions than these
shows in the sum, see ``Relevance.conserved``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from datamodules.common.errors import UserError
from pipelines.explaining.methods import Score
from pipelines.explaining.rules import Layer, handed_on, off_zero, safe

WEIGHTED = {"Conv2d", "Conv2dSame", "Linear", "ConvTranspose2d"}
NORMS = {"BatchNorm2d", "BatchNormAct2d", "FrozenBatchNorm2d", "GroupNorm", "GroupNorm1", "LayerNorm", "LayerNorm2d"}
ACTIVATIONS = {
    *("ReLU", "ReLU6", "LeakyReLU", "PReLU", "ELU", "SiLU", "Swish", "GELU", "GELUTanh", "Hardswish", "HardSwish"),
    *("Hardtanh", "Mish", "Tanh"),
}
#: The functions that compute them, which networks call without a layer, too.
FUNCTIONS = {
    *(
        F.relu,
        F.relu_,
        torch.relu,
        torch.relu_,
        Tensor.relu,
        Tensor.relu_,
        F.relu6,
        F.leaky_relu,
        F.leaky_relu_,
        F.prelu,
    ),
    *(F.elu, F.silu, F.gelu, F.hardswish, F.hardtanh, F.mish, torch.tanh, Tensor.tanh),
}
GATES = {"Sigmoid", "Hardsigmoid", "HardSigmoid"}
#: What is linear, or picks one of its inputs: the gradient is the rule.
PLAIN = {
    *("Identity", "Sequential", "Flatten", "Dropout", "Dropout2d", "DropPath", "Upsample", "PixelShuffle"),
    *(
        "AvgPool2d",
        "AdaptiveAvgPool2d",
        "MaxPool2d",
        "MaxPool2dSame",
        "AvgPool2dSame",
        "AvgPool2dAligned",
        "BlurPool2d",
    ),
    *("FastAdaptiveAvgPool", "SelectAdaptivePool2d", "ZeroPad2d", "UpsamplingNearest2d", "UpsamplingBilinear2d"),
    *("Activation", "Attention", "Unfold", "Permute", "MultiScaleRoIAlign", "AdaptiveMaxPool2d", "LastLevelMaxPool"),
}


@dataclass(frozen=True)
class Relevance:
    """What a score is made of.

    Attributes:
        pixels: float32 (C, H, W) of the image as the first layer sees it; a score of 1 was handed back.
        conserved: The sum over all pixels, also those that a network pads: 1 where nothing was lost.
    """

    pixels: Tensor
    conserved: float


@dataclass
class _Plan:
    """What a first, ordinary pass tells.

    Attributes:
        first: The convolution that sees the image.
        top: The layer that gives the score.
        scales: Of a layer with a batch norm right behind it, that norm's scale of each channel.
        called: All layers that were run.
    """

    first: nn.Module | None = None
    top: nn.Module | None = None
    scales: dict[nn.Module, Tensor] = field(default_factory=dict)
    called: list[tuple[str, nn.Module]] = field(default_factory=list)


def propagate(network: nn.Module, score: Score, image: Tensor, low: Tensor, high: Tensor) -> Relevance:
    """Hand a score back to the pixels.

    Args:
        network: What computes the score, in evaluation mode.
        score: See ``pipelines.explaining.methods``.
        image: float32 (1, C, H, W), in [0, 1].
        low: What the network sees for black: normalized, float32 (1, C, 1, 1).
        high: For white.

    Raises:
        UserError: If the network has layers without a rule, naming them.
    """
    plan = _plan_of(network, score, image)
    refused = sorted({f"{type(module).__name__} ({name})" for name, module in plan.called if not _is_known(module)})
    if refused or plan.first is None or plan.top is None:
        named = ", ".join(refused[:3]) + (f" and {len(refused) - 3} more" if len(refused) > 3 else "")
        raise UserError(f"lrp has no rule for {named or 'a network without convolutions'}: take other methods.")
    seen: list[Tensor] = []
    with _rules(plan, low, high, seen), torch.enable_grad():
        value = score(image.detach().requires_grad_())
        (value / safe(value.detach())).sum().backward(inputs=seen)
        pixels = torch.stack([x.detach() * x.grad for x in seen if x.grad is not None]).sum(0)
    height, width = image.shape[-2:]
    return Relevance(pixels[0, :, :height, :width].float(), float(pixels.double().sum()))


def _plan_of(network: nn.Module, score: Score, image: Tensor) -> _Plan:
    plan = _Plan()
    names = {module: name or "network" for name, module in network.named_modules()}
    made: dict[int, tuple[nn.Module, Tensor]] = {}  # outputs by their id; the tensor is kept so that ids stay unique

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        plan.called.append((names[module], module))
        if not isinstance(output, Tensor):
            return
        kind = type(module).__name__
        if kind in WEIGHTED:
            plan.first = plan.first or (module if isinstance(module, nn.Conv2d) else None)
            made[id(output)] = module, output
            if output.requires_grad:
                output.register_hook(lambda slope: _note_top(plan, module, slope))
        elif kind.startswith(("BatchNorm", "FrozenBatchNorm")) and id(inputs[0]) in made:
            plan.scales[made[id(inputs[0])][0]] = _scale_of(module)

    handles = [module.register_forward_hook(note) for module in names]
    try:
        with torch.enable_grad():
            leaf = image.detach().requires_grad_()
            torch.autograd.grad(score(leaf).sum(), leaf)
    finally:
        for handle in handles:
            handle.remove()
    return plan


def _note_top(plan: _Plan, module: nn.Module, slope: Tensor) -> None:
    """Backward comes to the layer that gives the score first; other heads get a gradient of 0."""
    if plan.top is None and bool(slope.any()):
        plan.top = module


def _scale_of(norm: Any) -> Tensor:
    """What a batch norm multiplies each channel with: (C,)."""
    weight = torch.ones_like(norm.running_var) if norm.weight is None else norm.weight
    scale: Tensor = weight.detach() / (norm.running_var + norm.eps).sqrt()
    return scale


def _is_known(module: nn.Module) -> bool:
    """Whether there is a rule; of containers whether they are no attention."""
    kind = type(module).__name__
    if kind in WEIGHTED | NORMS | ACTIVATIONS | GATES | PLAIN:
        return kind != "Attention" or next(module.parameters(), None) is None  # SMP's empty one
    is_attention = "attention" in kind.lower() or "attn" in kind.lower()
    return next(module.children(), None) is not None and not is_attention


@contextmanager
def _rules(plan: _Plan, low: Tensor, high: Tensor, seen: list[Tensor]) -> Iterator[None]:
    """Let layers compute what they always do, in a form whose gradient is the rule; ``seen`` takes the image."""
    modules = {module for _, module in plan.called}
    try:
        for module in modules:
            if (rule := _rule_of(module, plan, low, high, seen)) is not None:
                module.forward = rule
        with _Activations():
            yield
    finally:
        for module in modules:
            module.__dict__.pop("forward", None)


class _Activations(TorchFunctionMode):
    """Lets each unit of an activation hand on all of its relevance."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function not in FUNCTIONS:
            return function(*args, **(kwargs or {}))
        x = args[0]
        return handed_on(x, off_zero(function(x.clone(), *args[1:], **(kwargs or {}))))  # it may work in place


def _rule_of(
    module: nn.Module, plan: _Plan, low: Tensor, high: Tensor, seen: list[Tensor]
) -> Callable[..., Tensor] | None:
    """What a layer does in place of its ``forward``; None where the gradient is the rule."""
    kind, usual = type(module).__name__, module.forward
    if kind in WEIGHTED:
        layer = Layer(module, plan.scales.get(module))
        if module is plan.top:
            return layer.proportional
        if module is plan.first:
            return lambda x: layer.bounded(x, low, high, seen)
        return layer.positive
    if kind == "BatchNormAct2d":
        return lambda x: module.act(handed_on(x, _normalized(module, x)))  # type: ignore[operator]
    if kind in NORMS:
        return lambda x: handed_on(x, usual(x))
    if kind in GATES:
        return lambda x: usual(x).detach()
    return None


def _normalized(norm: Any, x: Tensor) -> Tensor:
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
