"""Optimizer steps that are skipped since their loss or a gradient is NaN or infinite, and what they would have spoiled.

One check an optimizer step, of the gradients and the loss; with several ranks, ``poisoned`` makes a loss that is not
finite show in the gradients of all of them, since DDP sums those. An optimizer with fused kernels skips the step on the
device, and nothing waits for it; for others a device other than the CPU is waited for once a step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from datamodules.common.errors import UserError, examples

#: Skipped steps that are told one by one; the others are counted.
TOLD = 10
#: A gradient scaler (16-bit floats) halves its scale at each overflow until it has found one that fits.
SCALER_SEARCH = 20


class NonFiniteLossError(UserError):
    """Loss or weights became NaN or infinite; the run ends, and no checkpoint of that model replaces a good one."""


def poisoned(loss: Tensor) -> Tensor:
    """The same loss, bit for bit; where it is not finite, its gradients become NaN, whatever they were.

    An infinite loss may well have finite gradients: those of a square that overflowed.
    """
    return loss * (loss.detach() * 0 + 1)


def first_spoiled(state: Mapping[str, Any]) -> str | None:
    """The name of a weight or statistic that is not finite; None if all are.

    Args:
        state: A ``state_dict``. Other buffers than a batch norm's may be infinite, such as a mask of attention.
    """
    names = ("weight", "bias", "running_mean", "running_var")
    for name, value in state.items():
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            continue
        if not value.isfinite().all() and (value.isnan().any() or name.endswith(names)):
            return name
    return None


def refuse_spoiled(state: Mapping[str, Any]) -> None:
    """Refuse to save weights that are not finite.

    Raises:
        NonFiniteLossError: Naming one of them.
    """
    if (name := first_spoiled(state)) is not None:
        raise NonFiniteLossError(
            f"The weights became NaN or infinite ({name}); they are not saved, and the checkpoints written before are"
            " as they were. Lower model.optim.lr, add trainer.gradient_clip_val or a longer warm-up; then continue with"
            " --resume auto."
        )


class StepGuard:
    """Skips the optimizer steps of one training whose gradients are not finite, as if their batches had not come.

    Args:
        module: What is trained; its trainer's ``max_skipped_steps`` in a row end the training. None or 0 does not look.
        sums: Sums of the losses so far, by name.
        skipped: Steps that were skipped before a resume.

    Attributes:
        sums: Those of the complete steps.
        skipped: How many steps were skipped so far.
    """

    def __init__(self, module: Any = None, sums: Mapping[str, Tensor] | None = None, skipped: int = 0) -> None:
        self.sums, self.skipped = dict(sums or {}), skipped
        trainer: Any = getattr(module, "_trainer", None)
        self.limit = int(getattr(trainer, "max_skipped_steps", 0))
        self._told = self._in_a_row = 0
        self._paths: list[list[str]] = [[]]  # of the batches of each step that was not looked at yet
        self._losses: list[Tensor] = []
        self._flags: list[tuple[int, Tensor]] = []  # steps, and whether they are not finite
        self._parameters: list[nn.Parameter] = []
        self._statistics: list[Tensor] = []  # of batch norms: the forward pass spoils them
        if self.limit:
            self._has_scaler = getattr(trainer.precision_plugin, "scaler", None) is not None
            self._has_ranks = trainer.world_size > 1
            norms = [m for m in module.modules() if getattr(m, "running_mean", None) is not None]
            self._statistics = [getattr(m, key) for m in norms for key in ("running_mean", "running_var")]
        self._good = [statistic.clone() for statistic in self._statistics]

    def watched(self, loss: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """The loss to be minimized; what belongs to its batch is kept until the step has been checked."""
        if not self.limit:
            return loss
        self._paths[-1] += batch.get("path", [])
        if self._has_ranks:
            return poisoned(loss)
        self._losses.append(loss.detach())
        return loss

    def check(self, optimizer: torch.optim.Optimizer, step: int, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """Skip the step that is about to be taken if a gradient is not finite.

        Args:
            optimizer: Its gradients are complete, and not yet clipped.
            step: Its number, for messages.
            sums: Of the losses, this step's included.

        Returns:
            The sums to go on with.

        Raises:
            NonFiniteLossError: For the last of too many steps in a row.
        """
        if not self.limit:
            return sums
        if not self._parameters:
            self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        losses, self._losses = self._losses, []
        flag = _not_finite([*gradients, *losses])
        if all(group.get("fused") for group in optimizer.param_groups):
            optimizer.found_inf = flag  # type: ignore[attr-defined]  # the fused kernels read it
            self._restore_on_device(flag)
            zeros = {name: torch.zeros_like(value) for name, value in sums.items()} | self.sums
            sums = {name: torch.where(flag > 0, zeros[name], value) for name, value in sums.items()}
            self._flags.append((step, flag))
        elif flag.item():
            for parameter in self._parameters:
                parameter.grad = None  # no momentum, no weight decay: optimizers leave it alone
            _copy(self._good, self._statistics)
            sums = dict(self.sums)
            self._note(step, True, self._paths.pop())
        else:
            _copy(self._statistics, self._good)
            self._note(step, False, self._paths.pop())
        self._paths.append([])
        self.sums = dict(sums)
        return sums

    def _restore_on_device(self, flag: Tensor) -> None:
        if self._statistics:
            now = torch.cat(self._statistics)
            kept = list(torch.where(flag > 0, torch.cat(self._good), now).split([len(s) for s in self._statistics]))
            _copy(kept, self._good)
            _copy(kept, self._statistics)

    def settle(self) -> None:
        """Count the steps that were checked since the last call; waits for the device.

        Raises:
            NonFiniteLossError: If there were too many in a row.
        """
        if not self._flags:
            return
        flags = torch.stack([flag for _, flag in self._flags]).tolist()
        steps, self._flags = [step for step, _ in self._flags], []
        paths, self._paths = self._paths[:-1], self._paths[-1:]
        for step, bad, files in zip(steps, flags, paths, strict=True):
            self._note(step, bool(bad), files)

    def _note(self, step: int, bad: bool, files: list[str]) -> None:
        if not bad:
            self._in_a_row = 0
            return
        files = _of_all_ranks(files)
        self.skipped += 1
        self._in_a_row += 1
        if self._in_a_row >= self.limit + SCALER_SEARCH * self._has_scaler:
            self._refuse(f", the last at step {step}", files)
        self._told += 1
        named = f" Its files: {examples(files, 20)}." if files else ""
        if self._told <= TOLD and not self._has_scaler:
            more = " Further ones are only counted (train/skipped_steps)." if self._told == TOLD else ""
            rank_zero_warn(f"Step {step} is skipped: its loss or a gradient is NaN or infinite.{named}{more}")

    @property
    def in_a_row(self) -> int:
        """How many of the last steps were skipped. Waits for the device."""
        self.settle()
        return self._in_a_row

    def end(self, steps: int) -> None:
        """At the end of an epoch or a training: refuse to go on as if nothing had happened.

        Args:
            steps: So many skipped steps in a row are too many here.

        Raises:
            NonFiniteLossError: If there are so many.
        """
        if self.in_a_row >= max(2, steps):
            self._refuse("", [])

    def _refuse(self, step: str, files: list[str]) -> NoReturn:
        named = f" The last one's files: {examples(files, 20)}." if files else ""
        raise NonFiniteLossError(
            f"The loss or a gradient was NaN or infinite in {self._in_a_row} optimizer steps in a row{step}; none of"
            f" them changed the model, and nothing was saved since.{named} Look at those files, lower"
            " model.optim.lr, add trainer.gradient_clip_val or a longer warm-up, or use trainer.precision: 32-true;"
            " then continue from the last good checkpoint with --resume auto."
        )


def _copy(source: list[Tensor], target: list[Tensor]) -> None:
    if source:
        torch._foreach_copy_(target, source)


def _of_all_ranks(files: list[str]) -> list[str]:
    """Any rank's batch may be the cause; all ranks come here for the same step."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return files
    found: list[list[str]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(found, files)
    return [file for of_rank in found for file in of_rank]


def _not_finite(gradients: Iterable[Tensor]) -> Tensor:
    """1 if any value is NaN or infinite, else 0, where the gradients are.

    The gradient scaler's own operation: on a GPU one kernel for all, on a CPU the fastest of those that were tried.
    """
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for gradient in gradients:
        groups.setdefault((gradient.device, gradient.dtype), []).append(gradient.detach())
    device = next(iter(groups))[0]
    found = torch.zeros((), device=device)
    for (place, _), same in groups.items():
        flag = torch.zeros((), device=place)
        torch._amp_foreach_non_finite_check_and_unscale_(same, flag, torch.ones((), device=place))
        found = found + flag.to(device)
    return found
