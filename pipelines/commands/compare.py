"""The command ``compare``: which of several runs is better on the same images, and by how much."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Literal

from datamodules.common.errors import UserError
from pipelines.listing import PROGRAM
from pipelines.report import kinds, parts
from pipelines.report.compare_page import write_comparison
from pipelines.report.comparing import Difference, Run, aligned, changes, differences, recipes_of, sentence
from pipelines.report.measured import file_of, read
from pipelines.run.directory import newest_config

MAX_CHANGES = 12


def compare(
    runs: list[Path], output: Path = Path("comparison.html"), split: Literal["test", "val"] = "test"
) -> list[Difference]:
    """Compare runs, print what there is to say, and write a page.

    Runs whose configs differ in the seed alone are seeds of one recipe.

    Args:
        runs: Run directories, two or more.
        output: The page.
        split: Whose images: ``test``, or ``val``, by which checkpoints were chosen.

    Returns:
        The differences, those by the main metric first.

    Raises:
        UserError: If there are too few runs, one has no file of the split, or they were evaluated on other images.
    """
    places = list(dict.fromkeys(run.resolve() for run in runs))
    if len(places) < 2:
        once = " (one run, named twice)" if len(runs) > 1 else ""
        raise UserError(f"compare needs two runs or more; it got {', '.join(map(str, runs)) or 'none'}{once}.")
    found = [
        Run(f"{place.parent.name}/{place.name}", newest_config(place), read(file_of(place, split))) for place in places
    ]
    recipes = recipes_of(aligned(found))
    if len(recipes) < 2:
        raise UserError(
            f"{', '.join(run.label for run in found)} differ in their seeds alone: they are one recipe. Give runs of"
            " another one, too."
        )
    result = differences(recipes)
    write_comparison(output, recipes, result)
    main = kinds.main(recipes[0].first.measured)
    number = len(recipes[0].first.measured)
    print(f"{parts.word(main)} on {number:,} {split} images, intervals of 95 %:")
    for one in result:
        if one.metric == main:
            print(f"  {sentence(one)}; p {one.corrected:.4f}{' (Holm)' if len(recipes) > 2 else ''}")
    different = changes(recipes)
    for key, values in different[:MAX_CHANGES]:
        print(f"  {key}: {' / '.join(values)}")
    if len(different) > MAX_CHANGES:
        print(f"  and {len(different) - MAX_CHANGES} more keys")
    print(output, flush=True)
    return result


def main(words: list[str]) -> int:
    """The command.

    Args:
        words: Its words.

    Returns:
        The exit status: 0, 1 for a failure.
    """
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} compare",
        description="Which of several runs is better on the same images, and by how much.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run directory, as runs/NAME/0")
    parser.add_argument("--output", default="comparison.html", help="the page (comparison.html)")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="the images (test)")
    given = parser.parse_args(words)
    try:
        compare([Path(run) for run in given.runs], Path(given.output), given.split)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
