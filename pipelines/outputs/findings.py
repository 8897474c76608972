"""What a check found, as a table for people and as JSON for scripts."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datamodules.checking.findings import KINDS, SEVERITIES, Finding, ranked
from datamodules.common.files import write_json
from datamodules.splits import common_folder
from pipelines.outputs.sheets import printable

_EXAMPLE = 88  # letters of an example


def table(findings: Sequence[Finding]) -> list[str]:
    """One line a kind, the worst first: severity, kind, number, and the first one found."""
    rows = [("", "kind", "found", "example")]
    top = common_folder(path for found in findings for path in (found.path, *found.others) if path) + os.sep
    for kind, found in ranked(findings).items():
        first = found[0]
        example = printable(f"{first.path}: {first.message}" if first.path else first.message.partition("\n")[0])
        example = example.replace(top, "")
        shown = example if len(example) <= _EXAMPLE else f"{example[: _EXAMPLE - 3]}..."
        rows.append((first.severity, kind, f"{len(found):,}", shown))
    wide = [max(len(row[i]) for row in rows) for i in range(3)]
    return [f"{row[0]:<{wide[0]}}  {row[1]:<{wide[1]}}  {row[2]:>{wide[2]}}  {row[3]}".rstrip() for row in rows]


def counted(findings: Sequence[Finding]) -> str:
    """``2 errors, 1 warning, 0 notes``."""
    counts = Counter(finding.severity for finding in findings)
    return ", ".join(f"{counts[name]:,} {name}{'' if counts[name] == 1 else 's'}" for name in SEVERITIES)


def write_findings(findings: Sequence[Finding], path: Path, **facts: Any) -> None:
    """Write ``check.json``: the facts, and every finding with its kind, severity, message, path, split, box, others."""
    values = [
        {
            "kind": found.kind,
            "severity": found.severity,
            "meaning": KINDS[found.kind].meaning,
            "message": found.message,
            "path": found.path,
            "split": found.split,
            "box": found.box,
            "others": found.others,
        }
        for group in ranked(findings).values()
        for found in group
    ]
    write_json(path, {**facts, "findings": values})
