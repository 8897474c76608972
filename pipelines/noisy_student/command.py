"""The command ``noisy-student``."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

from pipelines.config.allowed import allowing
from pipelines.config.ready import complete
from pipelines.config.reasons import reason_of
from pipelines.config.words import asks_for_help, without
from pipelines.noisy_student.loop import run
from pipelines.noisy_student.reading import read_settings
from pipelines.noisy_student.settings import first_generation
from pipelines.quiet import quieten
from pipelines.stages.manifest import StageError

USAGE = """usage: python -m pipelines noisy-student --config FILE [--key value]

Trains a teacher, labels the pool, selects, trains students, and reports what the unlabeled images were worth.
The same command continues where it was stopped. Keys: docs/noisy_student.md."""


def main(args: list[str], *, one_generation: bool = False) -> int:
    """The command ``noisy-student``.

    Args:
        args: Its words.
        one_generation: What ``fit`` does with the loop's config: the first student of the first seed, no controls.

    Returns:
        The exit status: 0 success, 1 a failure, 2 a mistake in the command or the config, 128 plus the number of the
        signal that ended a training.
    """

    def work(words: list[str]) -> None:
        settings = read_settings(complete(["noisy-student", *words]))
        run(first_generation(settings) if one_generation else settings)

    return execute("noisy-student", args, USAGE, work)


def execute(name: str, args: list[str], usage: str, work: Callable[[list[str]], object]) -> int:
    """Run a command that reads a config of the loop.

    Args:
        name: As typed.
        args: Its words.
        usage: What help is.
        work: Called with the words, without ``--trust``.

    Returns:
        The exit status, see ``main``.
    """
    if not args or asks_for_help(args):
        print(usage)
        return 0
    ranks = [rank for rank in ("RANK", "LOCAL_RANK") if rank in os.environ]
    if ranks:
        return _fail(
            f"{name} is one process, but {ranks[0]} is set: start it without a launcher, and give the launcher"
            " as launch: in the config."
        )
    quieten()
    try:
        with allowing(args):
            work(without(args, "--trust"))
    except Exception as error:
        if os.environ.get("PIPELINES_TRACEBACK"):
            traceback.print_exc()
        message = reason_of(error)
        if message is None:
            traceback.print_exc()
            return 1
        return _fail(message, error.status if isinstance(error, StageError) else 2)
    return 0


def _fail(message: str, status: int = 2) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return status
