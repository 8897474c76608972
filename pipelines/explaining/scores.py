"""The methods beside one another over a set: which of them to believe for this model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipelines.explaining.faithfulness import UNCHANGED, Areas
from pipelines.explaining.pictures import Explanation
from pipelines.statistics import estimate

LEAST = 5  # pictures from which on an interval is given
CONSERVED = 0.01  # by how much the sum of the relevances may be off


@dataclass(frozen=True)
class MethodScore:
    """A method over a set of N targets; means.

    Attributes:
        method: Its name; ``random`` for chance.
        deletion: The lower, the better.
        insertion: The higher, the better.
        difference: Insertion minus deletion.
        gain: What ``difference`` is above that of random explanations of the same pictures.
        low: End of its interval (95 %, bootstrap over the targets); NaN for few of them.
        high: The other end.
        better: The fraction of the targets on which it is above.
        similarity: Rank correlation with the explanations of random weights.
        unchanged: The fraction of the targets on which that reaches ``UNCHANGED``.
        conserved: Of lrp, the sum of the relevances that is farthest from 1.
        seconds: For one explanation.
    """

    method: str
    deletion: float
    insertion: float
    difference: float
    gain: float = math.nan
    low: float = math.nan
    high: float = math.nan
    better: float = math.nan
    similarity: float = math.nan
    unchanged: float = math.nan
    conserved: float | None = None
    seconds: float = math.nan

    @property
    def verdict(self) -> str:
        """What the figures say, in a few words."""
        if self.method == "random":
            return "chance"
        if self.conserved is not None and abs(self.conserved - 1) > CONSERVED:
            return f"loses relevance: the sum is {self.conserved:.2f}"
        if self.similarity >= UNCHANGED:
            return "does not depend on the weights"
        if math.isnan(self.low):
            return "too few pictures"
        return (
            "better than chance" if self.low > 0 else "worse than chance" if self.high < 0 else "no better than chance"
        )


def method_scores(explanations: Sequence[Explanation]) -> list[MethodScore]:
    """All methods, the most faithful first, and ``random`` at the end.

    Args:
        explanations: Measured ones, of the same methods.
    """
    chance = [one.random for one in explanations if one.random is not None]
    if not chance:
        return []
    rows = [_score(method, explanations) for method in explanations[0].methods]
    rows.sort(key=lambda row: -row.gain)
    return [*rows, MethodScore("random", **_means(chance))]


def _means(areas: Sequence[Areas]) -> dict[str, float]:
    return {
        key: float(np.mean([getattr(one, key) for one in areas])) for key in ("deletion", "insertion", "difference")
    }


def _score(method: str, explanations: Sequence[Explanation]) -> MethodScore:
    found = [one.methods[method] for one in explanations]
    areas = [one.areas for one in found if one.areas is not None]
    gains = np.array(
        [mine.difference - one.random.difference for mine, one in zip(areas, explanations, strict=True) if one.random]
    )
    alike = np.array([one.similarity if one.similarity is not None else math.nan for one in found])
    about = estimate(gains[None]) if len(gains) >= LEAST else {"low": math.nan, "high": math.nan}
    conserved = [one.conserved for one in found if one.conserved is not None]
    return MethodScore(
        method,
        **_means(areas),
        gain=float(gains.mean()),
        low=about["low"],
        high=about["high"],
        better=float((gains > 0).mean()),
        similarity=float(alike.mean()),
        unchanged=float((alike >= UNCHANGED).mean()),
        conserved=max(conserved, key=lambda value: abs(value - 1)) if conserved else None,
        seconds=float(np.mean([one.seconds for one in found])),
    )


def as_rows(scores: Sequence[MethodScore]) -> list[list[str]]:
    """The table's cells, its names first."""
    head = ["method", "deletion", "insertion", "difference", "beside random", "95 %", "better on", "random weights"]
    rows = [[*head, "seconds", ""]]
    for one in scores:
        if one.method == "random":
            rows.append([one.method, *(f"{x:.3f}" for x in (one.deletion, one.insertion, one.difference)), *[""] * 6])
            continue
        ends = "" if math.isnan(one.low) else f"{one.low:+.3f} to {one.high:+.3f}"
        means = [f"{x:.3f}" for x in (one.deletion, one.insertion, one.difference)]
        rest = [f"{one.gain:+.3f}", ends, f"{one.better:.0%}", f"{one.similarity:+.2f}", f"{one.seconds:.2f}"]
        rows.append([one.method, *means, *rest, one.verdict])
    return rows


def as_text(scores: Sequence[MethodScore]) -> str:
    """A table with columns of one width."""
    rows = as_rows(scores)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(wide) for cell, wide in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def as_values(scores: Sequence[MethodScore], explanations: Sequence[Explanation]) -> dict[str, Any]:
    """All figures in plain types, for JSON; what is not defined is null."""
    values: dict[str, Any] = _plain(
        {
            "methods": [{**asdict(one), "verdict": one.verdict} for one in scores],
            "pictures": [
                {
                    "path": one.path,
                    "target": one.target.name,
                    "label": one.target.label,
                    "probability": one.target.probability,
                    "box": one.target.box_in(one.geometry),
                    "random": asdict(one.random) if one.random else None,
                    "methods": {
                        name: {
                            **(asdict(of.areas) if of.areas else {}),
                            "similarity": of.similarity,
                            "conserved": of.conserved,
                            "seconds": of.seconds,
                        }
                        for name, of in one.methods.items()
                    },
                }
                for one in explanations
            ],
        }
    )
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
