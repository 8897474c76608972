"""The command ``report``: the page of a run again, from what lies in its directory."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from datamodules.common.errors import UserError
from pipelines.listing import PROGRAM
from pipelines.report.document import CARD, write_report


def main(words: list[str]) -> int:
    """The command.

    Args:
        words: A run directory, or several.

    Returns:
        The exit status: 0, 1 for a failure.
    """
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} report",
        description=f"Write report.html and the model card {CARD} of a run from its directory.",
        allow_abbrev=False,
    )
    parser.add_argument("run", nargs="+", help="a run directory, as runs/NAME/0")
    given = parser.parse_args(words)
    try:
        for run in given.run:
            print(write_report(Path(run)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
