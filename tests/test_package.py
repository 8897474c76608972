"""Wheel and sdist: what is in them, and that an installed wheel works without the checkout."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_digits

import pipelines

HOUSE = Path(__file__).parents[1]
PACKAGES = ("pipelines", "tasks", "datamodules", "configs")
NOT_OURS = (".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "wandb", "site", "shared")


def run(*words: object, cwd: Path, **environment: str) -> str:
    """Run a Python command and return what it printed; fail with its output."""
    command = [sys.executable, *map(str, words)]
    result = subprocess.run(
        command, cwd=cwd, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}"
    return result.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sdist, and the wheel that was built from the sdist. The checkout stays clean."""
    pytest.importorskip("build", reason="the extra dev is not installed")
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(HOUSE, folder / "source", ignore=shutil.ignore_patterns(*NOT_OURS))
    run("-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "source", cwd=folder)
    return folder / "dist"


@pytest.fixture(scope="module")
def installed(distributions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages that holds the wheel's content alone; what it needs comes from this environment."""
    target = tmp_path_factory.mktemp("installed")
    (wheel,) = distributions.glob("*.whl")
    words = ("pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile", "--target", target, wheel)
    run("-m", *words, cwd=distributions)
    return target


def test_version_is_in_one_place():
    citation = yaml.safe_load((HOUSE / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == pipelines.__version__
    assert citation["license"] == "Apache-2.0"
    assert f"## {pipelines.__version__}" in (HOUSE / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_wheel_and_sdist_hold_the_packages_and_nothing_else(distributions: Path):
    files = [file for name in PACKAGES for file in (HOUSE / name).rglob("*") if file.is_file()]
    ours = {file.relative_to(HOUSE).as_posix() for file in files if "__pycache__" not in file.parts}
    (wheel,) = distributions.glob("*.whl")
    (sdist,) = distributions.glob("*.tar.gz")
    version = pipelines.__version__
    assert wheel.name == f"vision_pipelines-{version}-py3-none-any.whl"

    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.startswith(f"vision_pipelines-{version}.dist-info/")}
    assert names == ours

    with tarfile.open(sdist) as archive:
        members = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert ours <= members
    beside = {name.partition("/")[0] for name in members - ours}
    expected = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml"}
    assert beside == expected | {"setup.cfg", "vision_pipelines.egg-info"}


@pytest.mark.slow
def test_an_installed_wheel_trains_and_predicts_in_an_empty_folder(installed: Path, tmp_path: Path):
    digits = load_digits()
    (tmp_path / "new").mkdir()
    for i in range(20):
        Image.fromarray((digits.images[i] * 15).astype("uint8")).save(tmp_path / f"new/{digits.target[i]}_{i}.png")

    code = f"import {', '.join(PACKAGES)}; print({', '.join(f'{name}.__file__' for name in PACKAGES)}, sep='\\n')"
    places = run("-c", code, cwd=tmp_path, PYTHONPATH=str(installed)).split()
    assert all(Path(place).is_relative_to(installed) for place in places)

    def command(*words: object) -> str:
        return run("-m", "pipelines", *words, cwd=tmp_path, PYTHONPATH=str(installed))

    command("fit", "--config", "quickstart", "--trainer.max_epochs", 4, "--data.num_workers", 0)
    command("test", "--name", "quickstart")
    folder = tmp_path / "runs/quickstart/0"
    accuracy = json.loads((folder / "test.json").read_text())["test/accuracy"]
    checkpoint = folder / "checkpoints/best.ckpt"
    command("predict", "--ckpt_path", checkpoint, "--source", "new", "--output", "labeled")
    with (tmp_path / "labeled/predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    correct = sum(Path(row["path"]).name[0] == row["label"] for row in rows)
    assert accuracy > 0.7
    assert correct >= 14

    # The same from Python: files, a folder, arrays.
    code = f"""
import pipelines
model = pipelines.load({str(checkpoint)!r})
results = model.predict("new")
print(*(f"{{result.path}},{{result.class_name}}" for result in results), sep="\\n")
assert [r.class_name for r in model.predict([r.pixels() for r in results])] == [r.class_name for r in results]
"""
    found = run("-c", code, cwd=tmp_path, PYTHONPATH=str(installed)).splitlines()[-20:]
    assert sorted(found) == sorted(f"{row['path']},{row['label']}" for row in rows)

    # The exported file, by the runner beside it and as a checkpoint.
    if find_spec("onnxruntime") is None or find_spec("onnxscript") is None:
        return
    command("export", "--ckpt_path", checkpoint, "--output", "model.onnx")
    command("predict", "--ckpt_path", "model.onnx", "--source", "new", "--output", "exported")
    with (tmp_path / "exported/predictions.csv").open(newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == [row["label"] for row in rows]
    assert f"'{rows[0]['label']}'" in run("model_runner.py", rows[0]["path"], cwd=tmp_path).replace('"', "'")
