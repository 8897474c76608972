"""Which launchers of processes a config may name."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

from pipelines.config.errors import UsageError

#: Launchers, and their flags, that a config may name: with others it could start any program.
LAUNCHERS = {
    "srun": "ntasks ntasks-per-node nodes cpus-per-task gres gpus-per-task gpus-per-node mem wait time partition"
    " account qos constraint exclusive kill-on-bad-exit",
    "torchrun": "nproc-per-node nnodes node-rank max-restarts rdzv-backend rdzv-id rdzv-endpoint standalone",
}
#: Of these, those that take a value only behind ``=``, or none.
SWITCHES = ("exclusive", "kill-on-bad-exit", "standalone")


def check_launch(launch: str | Sequence[str], place: str = "") -> None:
    """Refuse what a config, which may be a stranger's, would start in front of our commands.

    Args:
        launch: The words, or a line of them.
        place: Where it is written, for the message.

    Raises:
        UsageError: Unless it is a known launcher with known flags.
    """
    try:
        words = shlex.split(launch) if isinstance(launch, str) else [str(word) for word in launch]
    except ValueError:  # a quote that is not closed
        words = []
    if words and words[0] in LAUNCHERS and _are_known(words[1:], LAUNCHERS[words[0]].split()):
        return
    typed = launch if isinstance(launch, str) else json.dumps(words)
    raise UsageError(
        f"{place}launch is {launch}, but a config may only name srun or torchrun with flags of how many and where"
        f" (--{LAUNCHERS['torchrun'].split()[0]} and the like). What you know and trust, type:"
        f" --launch '{typed}'."
    )


def _are_known(words: Sequence[str], known: Sequence[str]) -> bool:
    """Whether words are long flags of a launcher with their values, and nothing that could be a program."""
    rest = list(words)
    while rest:
        flag, has_value, _ = rest.pop(0).partition("=")
        name = flag.removeprefix("--").replace("_", "-")
        if not flag.startswith("--") or name not in known:
            return False
        if not has_value and name not in SWITCHES and (not rest or rest.pop(0).startswith("-")):
            return False
    return True
