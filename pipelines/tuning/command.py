"""``tune``: search values of a config's keys with optuna, then repeat the last candidates over seeds."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml

from datamodules.common.errors import UserError
from datamodules.common.files import write_json, write_text
from pipelines import cli
from pipelines.command import Command
from pipelines.run.masking import masked
from pipelines.stages.fits import config_of_one, ended_by_signals, outcome
from pipelines.stages.manifest import BusyError, digest_of_values, only_one, say
from pipelines.trainer import Trainer
from pipelines.tuning.repeats import AS_IT_IS, Repeated, repeat_candidates
from pipelines.tuning.space import Dimension, read_space, with_values
from pipelines.tuning.trial import ReportMonitor, fit_trial, of_trial
from tasks.hooks import TaskHooks

STARTUP_TRIALS = 5  # trials that are never pruned: their curves say what is ordinary
MAX_FAILED = 5  # trials in a row


def tune(
    trainer: Trainer,
    model: TaskHooks,
    datamodule: pl.LightningDataModule,
    space: str,
    trials: int = 30,
    candidates: int = 3,
    seeds: int = 3,
) -> dict[str, Any]:
    """Search values of the config's keys; write the best config, and how sure it is that it is better.

    Each trial is a ``fit``, scored by the task's metric on the validation images at its best epoch; one that is worse
    than the median of the others at the same validation is ended early. Then the last candidates and the config as it
    is are trained again over other seeds. The same command goes on where it was stopped. Started several times, on one
    machine or on many with a common file system, the processes share one study.

    Args:
        trainer: Its settings are those of each trial.
        model: The task.
        datamodule: The data.
        space: YAML file: keys of the config, each with a list of values or a range.
        trials: How many, of all processes together.
        candidates: How many of the best trials are repeated.
        seeds: Trainings of each candidate; 0 repeats nothing.

    Returns:
        What ``runs/NAME-tune/tune.json`` holds.
    """
    _check(trials, candidates, seeds)
    optuna = _optuna()
    if trainer.config is None:
        raise UserError("tune needs a config: use the command.")
    base = config_of_one(trainer.config, None, "tune")
    searched = read_space(space, base)
    root = (trainer.runs_dir / f"{trainer.run_name}-tune").resolve()
    root.mkdir(parents=True, exist_ok=True)
    taught = model.taught
    study = _open_study(optuna, root, base, searched, taught.mode)
    with ended_by_signals():
        _search(optuna, study, root, base, searched, taught.monitor, taught.mode, trials)
        try:
            with only_one(root, "tune"):
                return _finish(optuna, study, root, base, searched, taught, candidates, seeds)
        except BusyError:
            say("another process repeats the candidates", "tune")
            return {}


main = functools.partial(cli.execute, Command("tune", tune, starts_from_checkpoint=False))


def _check(trials: int, candidates: int, seeds: int) -> None:
    for name, value, least in (("trials", trials, 1), ("candidates", candidates, 1), ("seeds", seeds, 0)):
        if value < least:
            raise UserError(f"--{name} is {value}; it must be at least {least}.")


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise UserError(
            "tune needs optuna, which is not installed: pip install 'vision-pipelines[tune]', or pip install optuna."
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _open_study(optuna: Any, root: Path, base: dict[str, Any], searched: list[Dimension], mode: str) -> Any:
    """The study in the folder, a new one or that of before.

    Raises:
        UserError: If it was made of another config or space.
    """
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(root / "study.journal")))
    direction = "maximize" if mode == "max" else "minimize"
    study = optuna.create_study(storage=storage, study_name="tune", direction=direction, load_if_exists=True)
    study.pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=1)
    key = digest_of_values(masked([outcome(base), [vars(dimension) for dimension in searched]], marked=True))
    known = study.user_attrs.get("key")
    if known is None:
        study.set_user_attr("key", key)
    elif known != key:
        raise UserError(
            f"{root} holds a study of another config or space: give this one another --name, or remove that folder."
        )
    return study


def _search(
    optuna: Any,
    study: Any,
    root: Path,
    base: dict[str, Any],
    searched: list[Dimension],
    monitor: str,
    mode: str,
    trials: int,
) -> None:
    """Run trials until there are enough that ended or were pruned."""
    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    done = len(study.get_trials(deepcopy=False, states=states))
    if done:
        say(f"{done} of {trials} trials are done", "tune")
    if done >= trials:
        return

    def objective(trial: Any) -> float:
        # A seed for each trial: processes that begin together would propose the same.
        seed = int(base.get("seed_everything") or 0) + trial.number
        study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        values = {dimension.path: dimension.suggest(trial) for dimension in searched}
        say(f"trial {trial.number}: {_named(trial.params)}", "tune")
        watch = ReportMonitor(trial, monitor, mode)
        try:
            fit_trial(root, f"trial{trial.number}", of_trial(with_values(base, values), root.name), watch)
        except (UserError, torch.OutOfMemoryError) as error:
            say(f"trial {trial.number} failed: {error}", "tune")
            raise
        if watch.is_pruned:
            say(f"trial {trial.number}: pruned at {monitor} {watch.best}", "tune")
            raise optuna.TrialPruned
        if watch.best is None:
            raise UserError(f"trial {trial.number} has no {monitor}: tune needs validation images.")
        say(f"trial {trial.number}: {monitor} {watch.best:.4f}", "tune")
        return watch.best

    enough = optuna.study.MaxTrialsCallback(trials, states=states)
    study.optimize(objective, callbacks=[enough, _refuse_failures], catch=(UserError, torch.OutOfMemoryError))


def _refuse_failures(study: Any, trial: Any) -> None:
    """End where nothing but failures is left.

    Raises:
        UserError: If so many trials have failed in a row.
    """
    last = [each.state.name for each in study.get_trials(deepcopy=False)[-MAX_FAILED:]]
    if last == ["FAIL"] * MAX_FAILED:
        raise UserError(f"The last {MAX_FAILED} trials failed, for the reasons above: change --space or the config.")


def _finish(
    optuna: Any,
    study: Any,
    root: Path,
    base: dict[str, Any],
    searched: list[Dimension],
    task: Any,
    candidates: int,
    seeds: int,
) -> dict[str, Any]:
    """Repeat the candidates, and write ``best.yaml`` and ``tune.json``."""
    sign = -1 if task.mode == "max" else 1
    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if not complete:
        raise UserError(f"No trial in {root} was trained to its end: raise --trials.")
    best = sorted(complete, key=lambda trial: (sign * trial.value, trial.number))[:candidates]
    named = {f"trial{trial.number}": _values(searched, trial.params) for trial in best}
    configs = {name: with_values(base, values) for name, values in named.items()}
    repeated = repeat_candidates(root, {AS_IT_IS: base, **configs}, seeds, task.monitor, task.mode)
    chosen = repeated.best if seeds else next(iter(named))
    write_text(root / "best.yaml", yaml.safe_dump(masked({AS_IT_IS: base, **configs}[chosen]), sort_keys=False))
    importance = _importance(study)
    report = {
        "metric": task.monitor,
        "trials": [{"number": t.number, "state": t.state.name, "value": t.value, **t.params} for t in study.trials],
        "importance": importance,
        "best": {"name": chosen, "values": {".".join(path): v for path, v in named.get(chosen, {}).items()}},
        "repeated": repeated.rows,
        "sentence": repeated.sentence,
    }
    write_json(root / "tune.json", report)
    _print(root, report, repeated, best)
    return report


def _values(searched: list[Dimension], params: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """A trial's values by path: the same that its training had."""
    import optuna

    fixed = optuna.trial.FixedTrial(dict(params))
    return {dimension.path: dimension.suggest(fixed) for dimension in searched}


def _importance(study: Any) -> dict[str, float]:
    """What share of the differences between trials each key explains; none of too few trials."""
    import optuna

    try:
        return {key: float(value) for key, value in optuna.importance.get_param_importances(study).items()}
    except (ValueError, RuntimeError, ZeroDivisionError):
        return {}


def _print(root: Path, report: Mapping[str, Any], repeated: Repeated, best: list[Any]) -> None:
    lines = ["", f"the best trials by {report['metric']}:"]
    lines += [
        f"  trial {t.number:<4} {t.value:.4f}  {', '.join(f'{k} {v}' for k, v in t.params.items())}" for t in best
    ]
    if report["importance"]:
        width = max(map(len, report["importance"]))
        lines.append("importance (PED-ANOVA, shares of 1):")
        lines += [f"  {k:<{width}}  {v:.2f}  {'#' * round(40 * v)}" for k, v in report["importance"].items()]
    lines += [*repeated.lines(), f"best config: {root / 'best.yaml'} ({report['best']['name']})"]
    print("\n".join(lines), flush=True)


def _named(params: Mapping[str, Any]) -> str:
    shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in params.items()}
    return ", ".join(f"{key} {value}" for key, value in shown.items())
