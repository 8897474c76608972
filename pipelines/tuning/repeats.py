"""The last candidates of a search, trained again over seeds: the best of many trials is partly the luckiest."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datamodules.common.errors import UserError
from datamodules.common.files import read_json, write_json
from pipelines.outputs.curves import best_row, read_rows
from pipelines.stages.fits import fit_in, grouped, outcome
from pipelines.stages.manifest import run_stage
from pipelines.statistics import folds_interval

AS_IT_IS = "as it is"  # the config without the search


@dataclass
class Repeated:
    """What the candidates reached over seeds.

    Attributes:
        metric: Its name.
        rows: Candidate -> ``each``, and from two seeds on ``mean``, ``sd``, ``low``, ``high``.
        best: The candidate with the best mean; the config as it is where none is better.
        sentence: Whether the best is better than the config as it is.
    """

    metric: str
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    best: str = AS_IT_IS
    sentence: str = ""

    def lines(self) -> list[str]:
        """The table."""
        if not self.rows:
            return []
        width = max(map(len, self.rows))
        lines = [f"{self.metric} over seeds that the search has not seen:"]
        for name, row in self.rows.items():
            each = " ".join(f"{value:.4f}" for value in row["each"])
            lines.append(f"  {name:<{width}}  mean {row['mean']:.4f}  {each}")
        return [*lines, self.sentence]


def repeat_candidates(
    root: Path, configs: Mapping[str, dict[str, Any]], seeds: int, monitor: str, mode: str
) -> Repeated:
    """Train each candidate with the same seeds; finished trainings are not done again.

    Args:
        root: Folder of the search.
        configs: Candidate -> config; the first is the config as it is.
        seeds: Trainings of each; 0 for none.
        monitor: The metric.
        mode: ``max`` or ``min``.
    """
    if not seeds:
        return Repeated(monitor)
    found = {
        name: [_score(root, name, config, seed, monitor, mode) for seed in range(1, seeds + 1)]
        for name, config in configs.items()
    }
    better = max if mode == "max" else min
    mean = {name: sum(each) / len(each) for name, each in found.items()}
    best = better(mean, key=lambda name: mean[name])
    rows = {name: _row(each) for name, each in found.items()}
    return Repeated(monitor, rows, best, _sentence(found[best], found[AS_IT_IS], best, mode))


def _row(each: list[float]) -> dict[str, Any]:
    return folds_interval(each, 0.0) if len(each) > 1 else {"each": each, "mean": each[0]}


def _sentence(each: list[float], base: list[float], best: str, mode: str) -> str:
    """One plain sentence: by how much the best is better, with the interval of Student's t over the paired seeds."""
    if best == AS_IT_IS:
        return "No candidate is better than the config as it is."
    gains = [(a - b) if mode == "max" else (b - a) for a, b in zip(each, base, strict=True)]
    if len(gains) < 2:
        return f"{best} is better by {gains[0]:.4f} with one seed: whether that is chance is not known."
    row = folds_interval(gains, 0.0)
    span = f"[{row['low']:+.4f}, {row['high']:+.4f}]"
    if row["low"] > 0:
        return f"{best} is better than the config as it is by {row['mean']:.4f} {span}, {len(gains)} seeds."
    return f"Not shown that {best} is better than the config as it is: {row['mean']:+.4f} {span}, {len(gains)} seeds."


def _score(root: Path, name: str, config: dict[str, Any], seed: int, monitor: str, mode: str) -> float:
    """The best validation of one training."""
    own = copy.deepcopy(config)
    own["seed_everything"] = int(config.get("seed_everything") or 0) + seed
    own["trainer"] = grouped(own["trainer"], root.name, "candidate")

    def work(folder: Path) -> dict[str, str]:
        run = fit_in(folder, own, None)
        row = best_row(read_rows(run / "metrics.csv"), monitor, mode)
        if row is None:
            raise UserError(f"{folder} has no {monitor}: tune needs validation images.")
        write_json(folder / "score.json", {monitor: row[monitor]})
        return {"score": "score.json"}

    directory = root / f"{name.replace(' ', '_')}-seed{own['seed_everything']}"
    outputs = run_stage(directory, outcome(own), {}, work, "tune")
    return float(read_json(outputs["score"].path)[monitor])
