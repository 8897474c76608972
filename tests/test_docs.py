"""The pages of docs/: how those of a task begin, and the site that is made of them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

import datamodules
import pipelines
import tasks

HOUSE = Path(__file__).parents[1]
DOCS = HOUSE / "docs"
NOTEBOOKS = sorted(DOCS.glob("notebooks/*.ipynb"))
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

    for package, page in ((tasks, "tasks"), (datamodules, "datamodules"), (pipelines, "python")):
        text = (tmp_path / f"site/api/{page}.html").read_text(encoding="utf-8")
        names = [name for name in package.__all__ if not name.startswith("__")]
        missing = [name for name in names if f'.{name}" class="doc doc-heading"' not in text]
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


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebooks_are_kept_without_outputs(file: Path):
    cells = [cell for cell in json.loads(file.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


def run_notebook(name: str, folder: Path) -> str:
    """Run a notebook of docs/ in a folder; what its cells print, and the values that they end with."""
    nbclient = pytest.importorskip("nbclient", reason="the extra docs is not installed")
    nbformat = pytest.importorskip("nbformat", reason="the extra docs is not installed")
    notebook = nbformat.read(DOCS / f"notebooks/{name}.ipynb", as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=3000, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    return "".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)


@pytest.mark.slow
def test_the_notebook_of_a_first_run(tmp_path: Path):
    text = run_notebook("first_run", tmp_path)
    accuracy = re.search(r"test accuracy (0\.\d+)", text)
    assert accuracy
    assert float(accuracy[1]) > 0.9
    assert "(8, 64)" in text  # the embeddings


@pytest.mark.slow
def test_the_notebook_of_noisy_student(tmp_path: Path):
    text = run_notebook("noisy_student", tmp_path)
    accuracies = dict(re.findall(r"^(student1|labels_only|no_noise) +(0\.\d+)$", text, re.MULTILINE))
    assert len(accuracies) == 3
    assert float(accuracies["student1"]) > 0.85
