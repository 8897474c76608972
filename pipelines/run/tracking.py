"""Weights & Biases: imported only when it is used; online where it can be, offline otherwise, never in the way."""

from __future__ import annotations

import netrc
import os
import re
import sys
import threading
import urllib.error
import urllib.request
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from lightning_fabric.loggers.logger import _DummyExperiment, rank_zero_experiment
from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from datamodules.common.errors import UserError

if TYPE_CHECKING:
    import numpy as np

Mode = Literal["auto", "online", "offline", "off"]
# A server that does not answer costs at most the sum of these, and a second or two of start-up.
PROBE_SECONDS = 5.0
INIT_SECONDS = 10.0
# A server lost in mid-run must not hold the process at its end for ever; the data stay on disk for `wandb sync`.
FINISH_SECONDS = 120.0
SECRET_WORDS = {"token", "key", "apikey", "password", "passwd", "secret", "credential", "credentials"}


def wandb_logger(
    directory: str | Path,
    *,
    mode: Mode,
    project: str,
    name: str,
    run_id: str,
    config: Mapping[str, Any],
    entity: str | None = None,
    group: str | None = None,
    tags: Sequence[str] | None = None,
) -> WandbRun | None:
    """Make the Weights & Biases logger of a run; nothing is opened before Lightning has set the data up.

    Args:
        directory: The run directory; W&B's files go to its folder ``wandb``.
        mode: ``auto`` follows the environment variable WANDB_MODE where that is set, and otherwise is online with a
            login and offline without. ``online`` without a login or with a server that does not answer is offline
            too, with a line that says so. ``off``: no W&B.
        project: W&B's project.
        name: Name shown for the run.
        run_id: Identity of the run: the same for all sittings of a run that is stopped and continued.
        config: The resolved configuration; values under keys such as token or password are masked.
        entity: W&B's user or team, by default that of the login.
        group: W&B's group.
        tags: W&B's tags.

    Returns:
        The logger, None for ``off`` (also by WANDB_MODE=disabled).

    Raises:
        UserError: For another value of WANDB_MODE.
    """
    if mode == "auto" and (wanted := os.environ.get("WANDB_MODE", "").lower()):
        known: dict[str, Mode] = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline"}
        known["disabled"] = "off"
        if wanted not in known:
            raise UserError(f"WANDB_MODE={wanted} is not known: set it to online, offline or disabled, or unset it")
        mode = known[wanted]
    if mode == "off":
        return None
    return WandbRun(Path(directory), mode, project, name, run_id, masked(dict(config)), entity, group, tags)


def masked(config: Any) -> Any:
    """Replace secrets of a configuration by ``***``.

    Args:
        config: Nested dicts and lists of plain values.

    Returns:
        A copy, in which text under a key with a word such as token, key, password or secret is masked (``api_key``,
        ``accessToken``; not ``num_tokens`` or ``class_token: true``), and so are passwords in URLs.
    """
    if isinstance(config, Mapping):
        return {k: _hidden(v) if _is_secret(str(k)) else masked(v) for k, v in config.items()}
    if isinstance(config, list | tuple):
        return [masked(value) for value in config]
    if isinstance(config, str):
        return re.sub(r"://[^/@\s]+@", "://***@", config)
    return config


def log_image(
    loggers: Sequence[Logger], key: str, image: str | Path | np.ndarray[Any, Any], step: int, caption: str | None = None
) -> None:
    """Show a picture in Weights & Biases; does nothing for other loggers.

    Args:
        loggers: The trainer's loggers.
        key: Name, as ``val/confusion_matrix``.
        image: PNG file, or uint8 (H, W, 3) or (H, W).
        step: Optimiser step.
        caption: Text below the picture.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger) and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            import wandb

            picture = wandb.Image(os.fspath(image) if isinstance(image, str | Path) else image, caption=caption)
            logger.log_metrics({key: picture}, step)


def log_table(
    loggers: Sequence[Logger], key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int
) -> None:
    """Show a table in Weights & Biases; does nothing for other loggers.

    Args:
        loggers: The trainer's loggers.
        key: Name, as ``test/predictions``.
        columns: Column names.
        rows: One list of plain values per row; the caller keeps to a budget of rows.
        step: Optimiser step.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger) and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            import wandb

            table = wandb.Table(columns=list(columns), data=[list(row) for row in rows], allow_mixed_types=True)
            logger.log_metrics({key: table}, step)


def _is_secret(key: str) -> bool:
    words = re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).lower())
    return not SECRET_WORDS.isdisjoint(words)


def _hidden(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _hidden(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_hidden(v) for v in value]
    return value if value is None or isinstance(value, bool) else "***"


def _answers(url: str) -> bool:
    """Tell whether an HTTP server answers in time, through the proxy where one is set."""
    answer: list[bool] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(url, timeout=PROBE_SECONDS):
                answer.append(True)
        except urllib.error.HTTPError as error:  # it answers; from 500 on, somebody answers in its place
            answer.append(error.code < 500)
        except OSError as error:  # a private certificate authority is W&B's affair: the server is there
            answer.append("CERTIFICATE_VERIFY_FAILED" in str(error))
        except Exception:  # whatever else: not a server
            answer.append(False)

    # A thread, since name resolution knows no time-out.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return bool(answer and answer[0])


def _has_login(base_url: str, api_key: str | None) -> bool:
    if api_key or os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    places = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    path = next((p for p in map(Path, map(os.path.expanduser, places)) if p.is_file()), None)
    try:
        return path is not None and netrc.netrc(path).authenticators(urlsplit(base_url).hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _say(text: str) -> None:
    print(f"W&B: {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Wandb:
    """The user's settings of Weights & Biases.

    Args:
        mode: ``auto`` is online with a login and offline without one; ``off`` writes only ``metrics.csv``.
        project: The project's name.
        entity: Team or user; the login's by default.
        group: A name that several runs share.
        tags: Words to find the run by.
        table_rows: Rows of the prediction table.
    """

    mode: Mode = "auto"
    project: str = "pipelines"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    table_rows: int = 200


class WandbRun(WandbLogger):
    """Lightning's W&B logger with an identity that outlives a sitting, and without surprises.

    It never prompts and never hangs, is silent but for one line, saves no code, leaves the process environment's
    WANDB_MODE alone, and gives every value its optimiser step: the steps of one run strictly grow over all sittings.
    Steps that an earlier sitting has already recorded (a run continued from an older checkpoint repeats them) only
    update the run's summary. Made by ``wandb_logger``.
    """

    def __init__(
        self,
        directory: Path,
        mode: Mode,
        project: str,
        name: str,
        run_id: str,
        config: dict[str, Any],
        entity: str | None,
        group: str | None,
        tags: Sequence[str] | None,
    ) -> None:
        self._experiment: Any
        super().__init__(name=name, save_dir=str(directory), id=run_id, project=project)
        self.directory = directory
        self.mode = mode
        self._config, self._entity, self._group, self._tags = config, entity, group, list(tags or [])
        self._opened = False
        self._floor = -1  # last step recorded by earlier sittings
        self._step = -1  # last step logged

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run; a stand-in that does nothing before ``start`` and on other ranks than 0.

        Lightning opens its loggers before the datamodule's ``setup``, so that a wrong path would leave an empty run.
        """
        if self._experiment is None:
            if not self._opened:
                return _DummyExperiment()
            self._experiment = self._open()
        return self._experiment

    def __getstate__(self) -> dict[str, Any]:
        """Leave the connection out; a copy in another process does not open a run of its own accord."""
        return {**self.__dict__, "_experiment": None}

    @rank_zero_only
    def start(self) -> None:
        """Open the run, or go on with it; done by whatever is logged first."""
        if not self._opened:
            self._opened = True
            path = self.directory / "wandb" / "last_step"
            text = path.read_text().strip() if path.is_file() else ""
            self._floor = self._step = int(text) if text.isdigit() else -1
        _ = self.experiment

    @rank_zero_only
    def finish(self, failed: bool = False) -> None:
        """Close the run; done at the end of a command.

        Args:
            failed: W&B then shows the run as one that has failed.
        """
        if self._experiment is not None:
            self._remember(self._step)
            self._experiment.finish(exit_code=int(failed))
            self._experiment, self._opened = None, False

    def save(self) -> None:
        """Open the run: Lightning calls this when data and model have been set up."""
        self.start()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Note the last step; the run stays open, since ``test`` may follow ``fit``."""
        if self._experiment is not None:
            self._remember(self._step)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Record the model's resolved values under ``hparams``; texts (the config again) are left out."""
        self.start()
        values = vars(params) if isinstance(params, Namespace) else params
        super().log_hyperparams(
            {"hparams": masked({k: v for k, v in values.items() if not isinstance(v, str) or len(v) < 1000})}
        )

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log values at a step; see the class for steps that were logged before."""
        self.start()
        run = self.experiment
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

    def _remember(self, step: int) -> None:
        if step > self._floor:
            path = self.directory / "wandb" / "last_step"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{step}\n")

    def _open(self) -> Any:
        # Without this, W&B's own error reports wait 20 s at exit for a server that does not answer.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        if not os.environ.get("WANDB_MODE", "unset"):
            del os.environ["WANDB_MODE"]  # set, but empty: W&B takes that for an error
        import wandb

        self.directory.mkdir(parents=True, exist_ok=True)
        settings = wandb.setup(wandb.Settings(silent=True)).settings
        reason = ""
        if self.mode != "offline":
            if not _has_login(settings.base_url, settings.api_key):
                reason = "no login (`wandb login`, or WANDB_API_KEY)"
            elif not _answers(settings.base_url):
                reason = f"{settings.base_url} does not answer"
            else:
                try:
                    run = self._init("online")
                except Exception as error:  # whatever W&B does not like, training goes on
                    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                    wandb.teardown()  # its service would refuse the run's id from now on: "run ID is in use"
                    wandb.setup(wandb.Settings(silent=True))
                else:
                    _say(f"online, {run.url}")
                    return run
        run = self._init("offline")
        _say(f"offline{': ' if reason else ''}{reason}; to upload: wandb sync {Path(run.dir).parent}")
        return run

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
        return wandb.init(
            project=self._project,
            name=self._name,
            id=self._id,
            dir=self._save_dir,
            resume="allow",
            mode=mode,
            reinit="finish_previous",
            settings=settings,
            config=self._config,
            entity=self._entity,
            group=self._group,
            tags=self._tags,
        )
