"""docs/faults.md has all rows, and the tests that it names exist."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_every_row_names_a_test_that_exists():
    page = (TESTS.parent / "docs" / "faults.md").read_text()
    rows = re.findall(r"^\| (\d+) \|.*\| (?:`(\S+)::(\w+)`|-) \| (\S.*) \|$", page, re.MULTILINE)
    assert [int(number) for number, *_ in rows] == list(range(1, 53))
    for number, file, name, outcome in rows:
        assert outcome.startswith(("kept", "in part: ", "not kept: ")), number
        if file:
            assert f"def {name}(" in (TESTS / file).read_text(), f"row {number}: {file}::{name}"
        else:
            assert outcome.startswith("not kept"), number
