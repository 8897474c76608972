"""The pages of docs/: how those of a task begin, and the site that is made of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

import datamodules
import tasks

HOUSE = Path(__file__).parents[1]
DOCS = HOUSE / "docs"
TASKS = ("classification", "segmentation", "detection", "noisy_student")


class Assets(HTMLParser):
    """Addresses of what a browser loads to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("script", "img", "iframe"):
            self.addresses.append(values.get("src") or "")
        if tag == "link" and values.get("rel") == "stylesheet":
            self.addresses.append(values.get("href") or "")


@pytest.mark.parametrize("name", TASKS)
def test_a_page_of_a_task_opens_with_what_to_type_and_a_picture(name: str):
    opening = (DOCS / f"{name}.md").read_text(encoding="utf-8").partition("\n## ")[0]
    title, _, rest = opening.partition("\n\n")
    assert title.startswith("# ")
    assert rest.startswith("```bash\npython -m pipelines ")
    picture = re.search(r"^!\[.+\]\((.+)\)$", rest, re.MULTILINE)
    assert picture
    assert (DOCS / picture[1]).is_file()


@pytest.mark.slow
def test_the_site_is_built_strictly_and_loads_nothing_from_outside(tmp_path: Path):
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    pytest.importorskip("mkdocstrings", reason="the extra docs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=HOUSE, env=environment, capture_output=True, text=True)
    assert (built.returncode, built.stdout) == (0, ""), built.stderr

    pages = sorted((tmp_path / "site").rglob("*.html"))
    written = {path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md")}
    assert written < {page.relative_to(tmp_path / "site") for page in pages}
    for page in pages:
        assets = Assets()
        assets.feed(page.read_text(encoding="utf-8"))
        assert assets.addresses
        outside = [address for address in assets.addresses if re.match(r"(https?:)?//", address)]
        assert outside == [], page

    for package in (tasks, datamodules):
        text = (tmp_path / f"site/api/{package.__name__}.html").read_text(encoding="utf-8")
        missing = [name for name in package.__all__ if f'.{name}" class="doc doc-heading"' not in text]
        assert missing == []


def test_pages_of_the_site_are_the_files_of_docs():
    navigation = re.search(r"^nav:\n(.*)", (HOUSE / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert navigation
    sections = yaml.safe_load(navigation[1])
    entries = [page for section in sections for page in section.values()]
    listed = {page for entry in entries for page in ([entry] if isinstance(entry, str) else _pages(entry))}
    ours = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert {page for page in listed if not page.startswith("project/")} == ours, "name it in mkdocs.yml"


def _pages(entries: list[dict[str, str]]) -> list[str]:
    return [page for entry in entries for page in entry.values()]
