"""The members together: each combination is a ``Member`` of its own, measured on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.combining.settings import Combination
from pipelines.combining.soup import MIX
from pipelines.combining.training import PROGRAM, SPLITS, Member, Work
from pipelines.combining.votes import stacked, vote
from pipelines.report import images, kinds
from pipelines.report.comparing import Run, aligned
from pipelines.report.measured import Measured, file_of, write
from pipelines.stages.manifest import Output, digest_of, say

Floats = NDArray[np.float64]
LEAST = 1e-7  # probability whose logarithm is kept


def score(member: Member, split: str = "val") -> float:
    """By the metric that decides."""
    return _scores(member, split)[kinds.main(member.measured(split))]


def _scores(member: Member, split: str) -> dict[str, float]:
    measured = member.measured(split)
    found = kinds.scorer(measured)(np.ones((1, len(measured)), np.int64))
    return {name: float(values[0]) for name, values in found.items()}


def best_first(members: Sequence[Member], split: str = "val") -> list[Member]:
    """By their scores; of equal ones by their likelihood where they have one, then the earlier first."""
    return sorted(members, key=lambda member: (-score(member, split), _scores(member, split).get("loss", 0.0)))


def combine(work: Work, members: Sequence[Member], names: Sequence[Combination]) -> list[Member]:
    """Each combination of the members, in the order of their names."""
    found = []
    for name in names:
        if name == "mean":
            found.append(_mean(work, members))
        elif name == "soup":
            found.append(_soup(work, members))
        else:
            found.append(_of_answers(work, members, name))
    return found


def _mean(work: Work, members: Sequence[Member]) -> Member:
    """Their mean probabilities, of boxes weighted boxes fusion: what ``predict --ckpt_path [a,b]`` gives."""
    files = [member.checkpoints[0] for member in members]
    outputs = work.stage("mean", {}, _inputs(members), lambda folder: work.measure(files, folder))
    return Member("mean", files, outputs)


def _inputs(members: Sequence[Member]) -> dict[str, Output]:
    return {member.name: Output(file, digest_of(file)) for member in members for file in member.checkpoints}


def _soup(work: Work, members: Sequence[Member]) -> Member:
    """Greedy: from the best on, each member whose weights make the mean no worse on validation."""
    best, *others = best_first(members)
    taken, soup = [best], best
    for other in others:
        tried = _mixed(work, [*taken, other])
        if score(tried) >= score(soup):
            taken, soup = [*taken, other], tried
    said = " + ".join(member.name for member in taken)
    say(f"soup of {said}" + (": no other makes it better on validation" if len(taken) == 1 else ""), PROGRAM)
    measured = work.stage("soup", {"of": said}, _inputs([soup]), lambda folder: work.measure(soup.checkpoints, folder))
    return Member("soup", soup.checkpoints, measured)


def _mixed(work: Work, members: Sequence[Member]) -> Member:
    files = [member.checkpoints[0] for member in members]

    def mix(folder: Path) -> dict[str, str]:
        words = ["--ckpt_path", f"[{','.join(map(str, files))}]", "--output", str(folder / "soup.ckpt")]
        work.run(MIX, words)
        return {"checkpoint": "soup.ckpt", **work.measure([folder / "soup.ckpt"], folder, ("val",))}

    name = "soup-" + "-".join(member.name.removeprefix("member") for member in members)
    outputs = work.stage(name, {}, _inputs(members), mix)
    return Member(name, [outputs["checkpoint"].path], outputs)


# Of images with one label each, from what was measured of the members.


def probabilities(members: Sequence[Member], split: str) -> tuple[Measured, Floats]:
    """What the first member's file holds, and the probabilities of all (M, N, K) in its order of images."""
    runs = aligned([Run(member.name, {}, member.measured(split)) for member in members])
    classes = len(runs[0].measured.class_names)
    dense = np.zeros((len(runs), len(runs[0].measured), classes))
    for own, run in zip(dense, runs, strict=True):
        np.put_along_axis(own, run.measured.arrays["classes"].astype(np.int64), images.probabilities(run.measured), 1)
    return runs[0].measured, dense


def answering(measured: Measured, found: Floats) -> Measured:
    """What would have been measured of a model with these probabilities (N, K)."""
    logits = np.log(np.maximum(found, LEAST))
    order = np.argsort(-logits, axis=1, kind="stable")
    arrays = {
        **measured.arrays,
        "logits": np.take_along_axis(logits, order, 1).astype(np.float16),
        "classes": order.astype(np.int32),
        "truth_logit": logits[np.arange(len(logits)), images.truth_of(measured)].astype(np.float32),
    }
    return replace(measured, arrays=arrays, facts={**measured.facts, "temperature": 1.0})


def _of_answers(work: Work, members: Sequence[Member], name: Combination) -> Member:
    """Vote or stacking."""
    alphas = [member.alpha for member in members]
    weights = None if None in alphas else [float(alpha or 0) for alpha in alphas]

    def join(folder: Path) -> dict[str, str]:
        held_out, of_val = probabilities(members, "val")
        for split in SPLITS:
            measured, each = probabilities(members, split)
            # Its own validation has trained it: there is no score of that.
            found = vote(each, weights) if name == "vote" else stacked(of_val, images.truth_of(held_out), each)
            write(answering(measured, found), file_of(folder, split))
        return {split: file_of(folder, split).name for split in SPLITS}

    outputs = work.stage(name, {"weights": weights}, _inputs(members), join)
    return Member(name, [], outputs)
