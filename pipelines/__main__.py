"""Entry point of ``python -m pipelines`` and of the console script ``pipelines``.

What needs no model is answered here from the standard library alone (``import torch`` takes seconds); everything
else is handed to ``pipelines.cli``.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path

from pipelines import __version__, listing

# Words that people bring from other tools.
SYNONYMS = {"train": "fit", "training": "fit", "eval": "validate", "evaluate": "validate", "val": "validate"}
SYNONYMS |= dict.fromkeys(("crossval", "cross-validate", "cross-validation", "cv", "kfold"), "folds")
SYNONYMS |= dict.fromkeys(("learning-curve", "label-curve", "curves"), "curve")
SYNONYMS |= {"sweep": "tune", "search": "tune", "hpo": "tune"}
SYNONYMS |= {"infer": "predict", "inference": "predict", "ls": "list"}

#: Where commands lie that are more than a method of the Trainer.
MODULES = {
    "curve": "pipelines.label_curve.command",
    "doctor": "pipelines.doctor.command",
    "list": "pipelines.listing",
    "noisy-student": "pipelines.noisy_student.command",
    "pseudo-label": "pipelines.noisy_student.pseudo_label",
    "ensemble": "pipelines.combining.command",
    "tune": "pipelines.tuning.command",
    **{
        name: f"pipelines.commands.{name}"
        for name in (
            "benchmark",
            "check",
            "compare",
            "convert",
            "demo",
            "distil",
            "explain",
            "export",
            "features",
            "folds",
            "probe",
            "report",
            "select",
            "summary",
            "verify",
        )
    },
}


def usage() -> str:
    """Return the text of ``--help``."""
    commands = "\n".join(f"  {name:<{listing.NAME_WIDTH}}{text}" for name, text in listing.COMMANDS.items())
    return f"""usage: {listing.PROGRAM} COMMAND [--config FILE] [--config OVERLAY] [--key value]

Train, test and use vision models.

commands:
{commands}

options:
  -h, --help      show this text; `{listing.PROGRAM} fit --help` shows the options of fit
  --version       show the version

Try `{listing.PROGRAM} fit --config quickstart`: it needs no data; `{listing.PROGRAM} list` shows what else is ready."""


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The words after the program's name; those of the process by default.

    Returns:
        The exit status: 0 success, 1 failure, 2 wrong usage, 130 interrupted from the keyboard.
    """
    args = sys.argv[1:] if argv is None else argv
    try:
        return _dispatch(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe (`... | head`) has left: not an error. The last flush at exit must not fail either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    command = args[0]
    if command in ("--version", "-V"):
        print(f"pipelines {__version__}")
        return 0
    if command not in listing.COMMANDS:
        return _fail(_unknown_command(command), status=2)
    # `list` itself needs it only for backbones, where it imports tasks.
    if (command != "list" or "backbones" in args[1:2]) and (problem := find_foreign_package()):
        return _fail(problem, status=1)
    _announce(args)
    return _runner(command, args[1:])(args[1:])


def _announce(args: list[str]) -> None:
    """Say at once what is done: the imports behind it take seconds."""
    ranks = [os.environ[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in os.environ]
    is_quick = args[0] in ("list", "convert") or "torch" in sys.modules
    is_question = any(word in ("-h", "--print_config") or word.endswith("help") for word in args)
    if not (is_quick or is_question or ranks[:1] not in ([], ["0"])):
        print(f"pipelines {__version__}: {' '.join(args)}", file=sys.stderr, flush=True)


def _runner(command: str, words: list[str]) -> Callable[[list[str]], int]:
    """What runs a command: ``main`` of its module, which is imported here, since each needs more than ``list``."""
    if command == "fit" and _has_students(words):
        from pipelines.noisy_student.command import main as noisy_student

        return functools.partial(noisy_student, one_generation=True)
    if command == "check" and _has_students(words):
        from pipelines.noisy_student.checking import main as check

        return check
    if command == "curve" and _has_students(words):
        from pipelines.label_curve.of_loop import main as curve

        return curve
    if command in MODULES:
        run: Callable[[list[str]], int] = importlib.import_module(MODULES[command]).main
        return run
    from pipelines import cli

    return lambda words: cli.main([command, *words])


def _has_students(words: list[str]) -> bool:
    """Whether a config is that of ``noisy-student``, which ``fit``, ``check`` and ``curve`` take, too."""
    from pipelines.config.errors import UsageError, load_config
    from pipelines.config.words import config_names

    files = [Path(name) if Path(name).is_file() else listing.config_path(name) for name in config_names(words)]
    try:
        return any("students" in load_config(file) for file in files if file is not None)
    except UsageError:
        return False  # `fit` says what is wrong with it


def find_foreign_package() -> str | None:
    """Check that ``tasks`` and ``datamodules`` are the packages beside this one.

    ``python -m pipelines`` puts the working directory first on the module path, so that somebody's own ``tasks.py``
    would be imported in place of ours.

    Returns:
        One line for the user that names the file found and the fix, None if all is well.
    """
    home = Path(__file__).resolve().parent.parent
    for name in ("tasks", "datamodules"):
        spec = importlib.util.find_spec(name)  # looks a top-level module up without importing it
        if spec is None:
            return f"the package '{name}' is missing beside {home / 'pipelines'}: install the project again"
        places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or [])
        found = Path(places[0]).resolve() if places else Path(name)
        if home / name not in (found, found.parent):
            return (
                f"{found} hides this project's package '{name}' ({home / name}): "
                f"use the console script `pipelines` in place of `python -m pipelines`, or rename that file"
            )
    return None


def _unknown_command(command: str) -> str:
    if command.startswith("-"):
        return f"the command comes first, then {command}: {listing.PROGRAM} {{{','.join(listing.COMMANDS)}}} ..."
    nearest = SYNONYMS.get(command.lower()) or next(iter(listing.nearest(command, list(listing.COMMANDS))), None)
    meant = f"did you mean '{nearest}'?" if nearest else f"there are {', '.join(listing.COMMANDS)}"
    return f"unknown command '{command}': {meant}"


def _fail(message: str, status: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
