"""What the command ``ensemble`` may be asked for, and what it refuses with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from datamodules.common.errors import UserError
from pipelines.config.errors import UsageError
from pipelines.report.images import ALL_UP_TO
from tasks.backbones import check_backbone
from tasks.base import Task
from tasks.classification import Classification

By = Literal["seed", "fold", "bagging", "boosting", "snapshot", "backbone"]
Combination = Literal["vote", "mean", "stacking", "soup"]
#: Members that are trained one after the other.
ONE_BY_ONE = ("boosting", "snapshot")


@dataclass(frozen=True)
class Members:
    """What tells the members of an ensemble apart.

    Attributes:
        by: `seed`: seeds of one recipe. `fold`: each leaves out another fold of the training images. `bagging`: each is
            trained on a bootstrap of the training images (Breiman 1996). `boosting`: one after the other, each on
            images weighted by the errors of those before (AdaBoost.SAMME, Zhu et al. 2009). `snapshot`: one training
            with as many cycles of the cosine schedule, a member at the end of each (Huang et al. 2017). `backbone`:
            different networks.
        count: How many; of `backbone` as many as are named.
        backbones: Names of the networks, for `backbone`.
        shrinkage: Of `boosting`: fraction of each alpha that counts, in the vote and in the weights of the images; less
            of it needs more members. Networks have few training images wrong, whose weights 1 would raise by hundreds.
    """

    by: By = "seed"
    count: int = 5
    backbones: list[str] | None = None
    shrinkage: float = 0.2

    @property
    def size(self) -> int:
        """How many there will be, at most."""
        return len(self.backbones or ()) if self.by == "backbone" else self.count


def check_members(members: Members, config: dict[str, Any], task: Task) -> None:
    """Refuse members that cannot be made.

    Raises:
        UsageError: Naming key, value and fix.
    """
    if members.by not in get_args(By):
        raise UsageError(f"members.by is '{members.by}'; choose {', '.join(get_args(By))}.")
    if (members.by == "backbone") != (members.backbones is not None):
        raise UsageError(
            f"members.backbones is {members.backbones}, but members.by is '{members.by}': set by: backbone and name the"
            " networks, or leave both out."
        )
    if members.size < 2:
        key, value = ("backbones", members.backbones) if members.by == "backbone" else ("count", members.count)
        raise UsageError(f"members.{key} is {value}; an ensemble has at least 2 members.")
    if members.by == "backbone":
        _check_networks(members)
    if members.by != "boosting" and members.shrinkage != Members.shrinkage:
        raise UsageError(
            f"members.shrinkage is {members.shrinkage}, but members.by is '{members.by}': it is of boosting; leave it"
            " out."
        )
    if not 0 < members.shrinkage <= 1:
        raise UsageError(f"members.shrinkage is {members.shrinkage}; it must be above 0, and at most 1.")
    if members.by == "boosting" and not _has_one_label(task):
        raise UsageError(
            "members.by is 'boosting', which counts an image as right or wrong (AdaBoost.SAMME): that needs one label"
            f" an image, and {type(task).__name__} has others. Choose seed, fold, bagging, snapshot or backbone."
        )
    if members.by == "snapshot":
        _check_cycles(members, config)


def _check_networks(members: Members) -> None:
    """Names of networks are checked before the first is trained."""
    if members.count not in (Members.count, members.size):
        raise UsageError(
            f"members.count is {members.count}, but members.backbones names {members.size}: of backbone there are as"
            " many members as networks; leave count out."
        )
    for name in members.backbones or ():
        try:
            check_backbone(name)
        except UserError as error:
            raise UsageError(str(error).replace("model.backbone", "members.backbones", 1)) from None


def _check_cycles(members: Members, config: dict[str, Any]) -> None:
    """A cycle is a whole number of epochs of the cosine schedule."""
    optim = config["model"].get("init_args", {}).get("optim") or {}
    if optim.get("schedule", "cosine") != "cosine":
        raise UsageError(
            f"model.optim.schedule is '{optim['schedule']}', but members.by is 'snapshot', whose cycles are cosines:"
            " leave the schedule out."
        )
    epochs = config["trainer"].get("max_epochs")
    if not isinstance(epochs, int) or epochs < members.count or epochs % members.count:
        raise UsageError(
            f"trainer.max_epochs is {epochs}, but members.by is 'snapshot' with members.count {members.count}: the"
            f" epochs of one training are cut into cycles, so give a multiple of {members.count}."
        )


def combinations_of(
    asked: Sequence[Combination] | None, members: Members, task: Task, classes: int = 0
) -> list[Combination]:
    """How the members are combined: as asked for, or in all ways that there are for them.

    Args:
        asked: What is asked for.
        members: What tells them apart.
        task: That is trained.
        classes: Of the data.

    Raises:
        UsageError: With the reason why one cannot be.
    """
    reasons = _refused(members, task, classes)
    if asked is None:
        return [name for name in get_args(Combination) if name not in reasons]
    for name in asked:
        if name not in get_args(Combination):
            raise UsageError(f"combine has '{name}'; choose from {', '.join(get_args(Combination))}.")
        if name in reasons:
            raise UsageError(f"combine has '{name}', {reasons[name]}. Leave it out.")
    if not asked:
        raise UsageError("combine is empty; leave it out for all combinations that there are.")
    return list(dict.fromkeys(asked))


def _refused(members: Members, task: Task, classes: int) -> dict[str, str]:
    """The combinations that there are not, and why."""
    reasons: dict[str, str] = {}
    if not _has_one_label(task):
        why = f"which is for images with one label each: the predictions of {type(task).__name__} are combined by mean"
        reasons |= {"vote": why, "stacking": why}
    elif classes > ALL_UP_TO:
        why = f"which needs all probabilities, but of {classes:,} classes (more than {ALL_UP_TO}) the largest are kept"
        reasons |= {"vote": why, "stacking": why}
    if members.by == "backbone":
        reasons["soup"] = "which averages weights, but members.by is 'backbone': their networks differ"
    return reasons


def _has_one_label(task: Task) -> bool:
    return isinstance(task, Classification) and not task.multi_label
