"""The fences of the house: who may import what."""

from __future__ import annotations

import ast
import pickle
import subprocess
import sys
from pathlib import Path

HOUSE = Path(__file__).parents[1]
PACKAGES = ("pipelines", "tasks", "datamodules")
FENCES = {  # library: the places that may import it
    "timm": ("tasks",),
    "albumentations": ("datamodules/transforms/",),
    "wandb": ("pipelines/run/tracking.py",),
    "segmentation_models_pytorch": ("tasks",),
}


def imports() -> list[tuple[str, str]]:
    """(file relative to the house, imported module) of all imports, late ones too."""
    found = []
    for package in PACKAGES:
        for path in (HOUSE / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                else:
                    continue
                found += [(path.relative_to(HOUSE).as_posix(), name) for name in names]
    return found


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def test_tasks_and_datamodules_meet_only_in_what_is_common():
    for file, module in imports():
        if file.startswith("tasks/"):
            assert not inside(module, "pipelines"), file
            assert not inside(module, "datamodules") or inside(module, "datamodules.common"), f"{file}: {module}"
        if file.startswith("datamodules/"):
            assert not inside(module, "tasks"), file
            assert not inside(module, "pipelines"), file
        if file.startswith("datamodules/common/"):
            assert not inside(module, "datamodules") or inside(module, "datamodules.common"), f"{file}: {module}"


def test_libraries_stay_behind_their_fences():
    for file, module in imports():
        for library, places in FENCES.items():
            if inside(module, library):
                assert file.startswith(places), f"{file} imports {library}"
        assert not inside(module, "lightning"), file


def test_nothing_is_logged_with_sync_dist():
    for package in PACKAGES:
        for path in (HOUSE / package).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            keywords = [k.arg for node in ast.walk(tree) if isinstance(node, ast.Call) for k in node.keywords]
            assert "sync_dist" not in keywords, path


def test_workers_import_neither_lightning_nor_timm():
    """What a loader hands to a spawned worker is unpickled there; Lightning alone would take it ten seconds."""
    from datamodules import ClassificationData
    from datamodules.loaders import RecordDataset

    data = ClassificationData(cache="none")
    data.setup("fit")
    loader = data.train_dataloader()
    assert isinstance(loader.dataset, RecordDataset)
    parts = (loader.dataset, loader.collate_fn, loader.worker_init_fn)
    code = "import pickle, sys; parts = pickle.loads(sys.stdin.buffer.read()); print(len(parts[0][0, 0, 0]['image']));"
    code += "print([m for m in ('pytorch_lightning', 'timm') if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(parts), capture_output=True, check=True, cwd=HOUSE
    )
    assert result.stdout.decode().split("\n")[:2] == ["8", "[]"]
