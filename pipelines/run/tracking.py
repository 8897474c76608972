"""Weights & Biases: imported only when it is used; online where it can be, offline otherwise, never in the way."""

from __future__ import annotations

import contextlib
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import DummyExperiment, rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only

from datamodules.common.files import write_text
from pipelines.run.masking import masked, masked_command_line
from pipelines.run.wandb_server import Mode, answers, at_most, has_login, mode_of_environment

INIT_SECONDS = 10.0  # what a server that does not answer costs, beside the probe and a second or two of start-up
#: The setting ``log_model`` in the words of Lightning's logger.
LOG_MODEL: dict[str, Literal["all"] | bool] = {"none": False, "best": True, "all": "all"}
FINISH_SECONDS = 120.0  # a server lost in mid-run holds the process no longer; the data stay for `wandb sync`


@dataclass(frozen=True)
class Wandb:
    """The user's settings of Weights & Biases.

    Args:
        mode: ``auto`` is online with a login and offline without one; ``online`` without a login, or with a server that
            does not answer, is offline too, with a line that says so; ``off`` writes only ``metrics.csv``.
        project: The project's name.
        entity: Team or user; the login's by default.
        group: A name that several runs share.
        job_type: What the run is for within its group, as ``teacher`` or ``student``.
        tags: Words to find the run by.
        table_rows: Rows of the prediction table.
        table_pictures: Its first rows have pictures, with truth and prediction as overlays where they can be drawn.
        log_model: Which checkpoints become artifacts: ``none``; ``best``, once at the end; ``all``, each new best one.
            With ``best`` and ``all`` the data's digest is an artifact, too.
    """

    mode: Mode = "auto"
    project: str = "pipelines"
    entity: str | None = None
    group: str | None = None
    job_type: str | None = None
    tags: list[str] = field(default_factory=list)
    table_rows: int = 200
    table_pictures: int = 32
    log_model: Literal["none", "best", "all"] = "none"


def wandb_logger(
    directory: str | Path, settings: Wandb, *, name: str, run_id: str, config: Mapping[str, Any]
) -> WandbRun | None:
    """Make the Weights & Biases logger of a run; nothing is opened before Lightning has set the data up.

    Args:
        directory: The run directory; W&B's files go to its folder ``wandb``.
        settings: The user's. With the mode ``auto``, the environment variable WANDB_MODE is followed where it is set.
        name: Name shown for the run.
        run_id: Identity of the run: a resumed run keeps it.
        config: The resolved configuration; values under keys such as token or password are masked.

    Returns:
        The logger, None for ``off`` (also by WANDB_MODE=disabled).

    Raises:
        UserError: For another value of WANDB_MODE.
    """
    mode = mode_of_environment() if settings.mode == "auto" else settings.mode
    if mode == "off":
        return None
    return WandbRun(Path(directory), replace(settings, mode=mode), name, run_id, masked(dict(config)))


def why_offline() -> str:
    """Why a run cannot be online: no login, or no answer within seconds; empty where it can."""
    import wandb

    server = wandb.setup(wandb.Settings(silent=True)).settings
    if not has_login(server.base_url, server.api_key):
        return "no login (`wandb login`, or WANDB_API_KEY)"
    return "" if answers(server.base_url) else f"{server.base_url} does not answer"


def _say(text: str) -> None:
    print(f"W&B: {text}", file=sys.stderr, flush=True)


def _tear_down() -> None:
    import wandb

    with contextlib.suppress(Exception):  # without its service W&B's hook at the exit prints a traceback: now it goes
        wandb.teardown()


class WandbRun(WandbLogger):
    """Lightning's W&B logger with an identity that a resumed run keeps, and without surprises.

    It never prompts and never hangs, is silent but for a line, and saves no code. Steps strictly grow, also when a run
    is resumed; those that were recorded before only update its summary. Made by ``wandb_logger``.
    """

    is_evaluation = False  # whether all that is logged becomes one row behind the training's

    def __init__(self, directory: Path, settings: Wandb, name: str, run_id: str, config: dict[str, Any]) -> None:
        self._experiment: Any
        log_model = LOG_MODEL[settings.log_model]
        super().__init__(name=name, save_dir=str(directory), id=run_id, project=settings.project, log_model=log_model)
        self.directory, self.settings = directory, settings
        self._title, self._run_id, self._config = name, run_id, config
        self._opened = self._lost = False
        self._floor = -1  # last step that earlier processes have recorded
        self._step = -1  # last step logged

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run; a stand-in that does nothing before ``start`` and on other ranks than 0.

        Lightning opens its loggers before the datamodule's ``setup``, so that a wrong path would leave an empty run.
        """
        if self._experiment is None:
            if not self._opened or self._lost:
                return DummyExperiment()
            self._experiment = self._open()
        return self._experiment

    def _unless_lost(self, act: Callable[[], Any]) -> None:
        """Whatever becomes of the tracker, the training goes on: at the first failure it is given up."""
        if self._lost:
            return
        try:
            act()
        except Exception as error:
            self._lost, self._experiment = True, None
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            _say(f"lost ({reason}); the run goes on without it, and metrics.csv has all values")
            if isinstance(error, OSError):
                at_most(5.0, _tear_down)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the connection out; a copy in another process does not open a run of its own accord."""
        return {**self.__dict__, "_experiment": None, "_checkpoint_callbacks": {}}

    @rank_zero_only
    def start(self) -> None:
        """Open the run, or go on with it; done by whatever is logged first."""
        if not self._opened:
            self._opened = True
            text = self._last_step.read_text().strip() if self._last_step.is_file() else ""
            self._floor = self._step = int(text) if text.isdigit() else -1
        self._unless_lost(lambda: self.experiment)

    @rank_zero_only
    def finish(self, failed: bool = False) -> None:
        """Close the run; done at the end of a command.

        Args:
            failed: W&B then shows the run as one that has failed.
        """
        if self._experiment is not None:
            self._remember(self._step)
            self._unless_lost(lambda: self._experiment.finish(exit_code=int(failed)))
            self._experiment, self._opened = None, False

    def save(self) -> None:
        """Open the run: Lightning calls this when data and model have been set up."""
        self.start()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Note the last step, and log the best checkpoint; the run stays open, since ``test`` may follow ``fit``."""
        if self._experiment is not None:
            self._unless_lost(lambda: super(WandbRun, self).finalize(status))
            self._remember(self._step)

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Log the checkpoint that Lightning has written, or note it for the end; see ``Wandb.log_model``."""
        self._unless_lost(lambda: super(WandbRun, self).after_save_checkpoint(checkpoint_callback))

    @rank_zero_only
    def act(self, work: Callable[[Any], Any]) -> None:
        """Do something with the W&B run; a failure gives the tracker up."""
        self.start()
        self._unless_lost(lambda: work(self.experiment))

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Record the model's resolved values under ``hparams``; texts (the config again) are left out."""
        self.start()
        values = vars(params) if isinstance(params, Namespace) else params
        hparams = {"hparams": masked({k: v for k, v in values.items() if not isinstance(v, str) or len(v) < 1000})}
        self._unless_lost(lambda: super(WandbRun, self).log_hyperparams(hparams))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log values at a step; see the class for steps that were logged before."""
        self.log_made(lambda: metrics, step)

    @rank_zero_only
    def log_made(self, make: Callable[[], Mapping[str, Any]], step: int | None = None) -> None:
        """The same of what is made only now: where that fails, the tracker is given up, and the run goes on."""
        self.start()
        self._unless_lost(lambda: self._log(make(), step))

    def _log(self, metrics: Mapping[str, Any], step: int | None) -> None:
        run = self.experiment
        if self.is_evaluation:
            step = self._floor + 1
        if step is None:
            run.log(dict(metrics))
        elif step <= self._floor:
            run.summary.update({key: value for key, value in metrics.items() if isinstance(value, int | float)})
        else:
            step = max(step, self._step)  # W&B drops what goes back
            run.log(dict(metrics), step=step)
            if step > self._step:
                self._remember(self._step)  # W&B keeps a row open until one with a greater step arrives
                self._step = step

    @property
    def _last_step(self) -> Path:
        return self.directory / "wandb" / "last_step"

    def _remember(self, step: int) -> None:
        if step > self._floor:
            with contextlib.suppress(OSError):  # a full disk: at worst a resumed run repeats some steps
                write_text(self._last_step, f"{step}\n")

    def _open(self) -> Any:
        # Without this, W&B's own error reports wait 20 s at exit for a server that does not answer.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        if not os.environ.get("WANDB_MODE", "unset"):
            del os.environ["WANDB_MODE"]  # set, but empty: W&B takes that for an error
        self.directory.mkdir(parents=True, exist_ok=True)
        run, reason = (None, "") if self.settings.mode == "offline" else self._open_online()
        if run is not None:
            _say(f"online, {run.url}")
            return run
        run = self._init("offline")
        _say(f"offline{': ' if reason else ''}{reason}; to upload: wandb sync {Path(run.dir).parent}")
        return run

    def _open_online(self) -> tuple[Any, str]:
        """The run; or None, and why it cannot be online."""
        import wandb

        if reason := why_offline():
            return None, reason
        try:
            return self._init("online"), ""
        except Exception as error:  # whatever W&B does not like, training goes on
            wandb.teardown()  # its service would refuse the run's id from now on: "run ID is in use"
            wandb.setup(wandb.Settings(silent=True))
            return None, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"

    def _init(self, mode: Literal["online", "offline"]) -> Any:
        import wandb

        settings = wandb.Settings(
            silent=True,
            console="off",
            save_code=False,
            disable_code=True,
            disable_git=True,  # W&B would store the uncommitted changes as a patch
            init_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,
            x_transaction_log_flush_interval=1.0,  # what a SIGKILL costs; W&B's default is 15 s
        )
        with masked_command_line():  # W&B records it as it finds it, and has no setting for that
            return wandb.init(
                project=self.settings.project,
                name=self._title,
                id=self._run_id,
                dir=str(self.directory),
                resume="allow",
                mode=mode,
                reinit="finish_previous",
                settings=settings,
                config=self._config,
                entity=self.settings.entity,
                group=self.settings.group,
                job_type=self.settings.job_type,
                tags=self.settings.tags,
            )
