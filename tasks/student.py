"""What makes a task a student: its noise, its arguments, its hooks and the names of its weights."""

from __future__ import annotations

from typing import Any

from pytorch_lightning.core.hooks import CheckpointHooks, DataHooks, ModelHooks
from torch import nn
from torchvision.ops import StochasticDepth

from datamodules.common.errors import UserError
from tasks.base import Task

DROPOUTS = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    StochasticDepth,
)
#: Lightning's hooks that a student may have of its own, as they are called explicitly.
CALLED = {"configure_model"}


def refuse_own_hooks(student: Task) -> None:
    """Refuse a student that overrides a hook of Lightning: Lightning calls those of the outermost module only.

    Raises:
        UserError: Naming the hook.
    """
    hooks = {name for owner in (ModelHooks, DataHooks, CheckpointHooks) for name in vars(owner) if name[0] != "_"}
    hooks |= {"training_step", "validation_step", "test_step", "predict_step", "configure_optimizers", "optimizer_step"}
    for name in sorted(hooks - CALLED):
        if getattr(type(student), name) is not getattr(Task, name):
            raise UserError(
                f"model.student is a {type(student).__name__}, which overrides {name}: Lightning would not call it."
                " Move that work into a method that is called of a student, too: after_validation, before_test, state,"
                " load_state, augment, loss or predict."
            )


def without_noise(network: nn.Module) -> None:
    """Set dropout and stochastic depth of a network to 0, whatever its arguments and defaults say."""
    for module in network.modules():
        if isinstance(module, DROPOUTS):
            module.p = 0.0
        for name in ("drop_prob", "drop_rate"):  # timm's DropPath, and its nets that call F.dropout
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def own_arguments(student: Task) -> None:
    """Give the student its own hyper-parameters: Lightning's command line stores the outermost module's in each.

    https://github.com/Lightning-AI/pytorch-lightning/blob/master/src/lightning/pytorch/cli.py (_InstantiatorFn)
    """
    given = student.hparams.get("student")
    if isinstance(given, dict):
        mine = {"_class_path": given["class_path"], **given.get("init_args", {}), "optim": student.hparams["optim"]}
        student.hparams.clear()
        student.hparams.update(mine)


PREFIX = "student."


def save_as_the_students(module: nn.Module) -> None:
    """Let a module that holds a ``student`` save and load the student's weights under the student's own names."""
    module.register_state_dict_post_hook(_without_prefix)
    module.register_load_state_dict_pre_hook(_with_prefix)


def _without_prefix(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: Any) -> None:
    for name in [name for name in state_dict if name.startswith(prefix + PREFIX)]:
        state_dict[prefix + name.removeprefix(prefix + PREFIX)] = state_dict.pop(name)


def _with_prefix(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    for name in [n for n in state_dict if n.startswith(prefix) and not n.startswith(prefix + PREFIX)]:
        state_dict[prefix + PREFIX + name.removeprefix(prefix)] = state_dict.pop(name)
