"""The fences of the house: who may import what."""

from __future__ import annotations

import ast
import functools
import graphlib
import pickle
import subprocess
import sys
import tomllib
from pathlib import Path

HOUSE = Path(__file__).parents[1]
PACKAGES = ("pipelines", "tasks", "datamodules")
FENCES = {  # library: the places that may import it
    "timm": ("tasks",),
    "albumentations": ("datamodules/transforms/",),
    "wandb": ("pipelines/run/tracking.py", "pipelines/run/wandb_media.py"),
    "segmentation_models_pytorch": ("tasks",),
}
#: Who may import whom: a module imports its own layer and those above it in this list.
LAYERS = (
    ("datamodules.common",),
    ("datamodules", "tasks"),
    (
        "pipelines.config",
        "pipelines.exported",
        "pipelines.run",
        "pipelines.ensemble",
        "pipelines.fusion",
        "pipelines.hardware",
        "pipelines.inference",
        "pipelines.listing",
        "pipelines.statistics",
        "pipelines.scorers",
    ),
    ("pipelines.outputs",),
    ("pipelines.report",),
    ("pipelines.explaining",),
    ("pipelines.callbacks",),
    ("pipelines.run_trainer",),
    ("pipelines.advice", "pipelines.defaults", "pipelines.epoch_loop", "pipelines.lightning_parts"),
    ("pipelines.preparation",),
    ("pipelines.batch_trial", "pipelines.evaluation", "pipelines.resuming"),
    ("pipelines.trainer",),
    ("pipelines.command", "pipelines.orphans", "pipelines.quiet"),
    ("pipelines.export", "pipelines.features", "pipelines.selecting"),
    ("pipelines.cli",),
    ("pipelines.stages",),
    ("pipelines.commands", "pipelines.doctor"),
    ("pipelines.noisy_student",),
    ("pipelines.label_curve", "pipelines.tuning"),
    ("pipelines.commands.distil",),
    ("pipelines.combining",),
    ("pipelines.api",),
    ("pipelines.commands.demo",),
    ("pipelines.__main__",),
)
#: Imports (from, of) that are still to go, as modules or their packages. Delete a line with the import it allows.
TO_GO: tuple[tuple[str, str], ...] = ()


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


@functools.cache
def own_imports() -> set[tuple[str, str]]:
    """(importing module, imported module) of all imports between our modules, late ones and those for types too."""
    paths = [path for package in PACKAGES for path in (HOUSE / package).rglob("*.py")]
    modules = {module_name(path): path for path in paths}
    found = set()
    for module, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                members = [f"{node.module}.{alias.name}" for alias in node.names]
                names = [member if member in modules else node.module for member in members]
            else:
                continue
            found |= {(module, name) for name in names if name in modules and name != module}
    # A package that hands on what its modules define makes no circle with them.
    return {(module, name) for module, name in found if not inside(name, module)}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(HOUSE).with_suffix("").parts).removesuffix(".__init__")


def allowed(module: str, name: str) -> bool:
    return any(inside(module, source) and inside(name, target) for source, target in TO_GO)


def layer(module: str) -> int:
    """The number of a module's layer; that of the longest name in ``LAYERS`` that it lies in."""
    places = [(len(name), number) for number, names in enumerate(LAYERS) for name in names if inside(module, name)]
    assert places, f"{module} has no place in LAYERS"
    return max(places)[1]


def room(module: str) -> str:
    """A folder without folders counts as a whole; a file beside folders counts by itself."""
    folder = HOUSE / Path(*module.split(".")).parent
    has_folders = any(child.is_dir() and child.name != "__pycache__" for child in folder.iterdir())
    return module if has_folders else module.rsplit(".", 1)[0]


def assert_no_circle(edges: set[tuple[str, str]]) -> None:
    graph: dict[str, set[str]] = {}
    for module, name in edges:
        graph.setdefault(module, set()).add(name)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        raise AssertionError(f"a circle of imports: {' <- '.join(error.args[1])}") from None


def test_imports_go_downwards():
    placed = {
        pair for pair in own_imports() if "pipelines" not in pair
    }  # the package itself holds nothing but a version
    upwards = {(module, name) for module, name in placed if layer(module) < layer(name)}
    assert sorted(pair for pair in upwards if not allowed(*pair)) == []


def test_modules_import_each_other_in_no_circle():
    assert_no_circle({pair for pair in own_imports() if not allowed(*pair)})


def test_rooms_import_each_other_in_no_circle():
    edges = {(room(module), room(name)) for module, name in own_imports() if not allowed(module, name)}
    assert_no_circle({(source, target) for source, target in edges if source != target})


def test_allowed_imports_still_exist():
    used = {(s, t) for s, t in TO_GO for module, name in own_imports() if inside(module, s) and inside(name, t)}
    assert set(TO_GO) == used


def test_libraries_stay_behind_their_fences():
    for file, module in imports():
        for library, places in FENCES.items():
            if inside(module, library):
                assert file.startswith(places), f"{file} imports {library}"
        assert not inside(module, "lightning"), file


def test_the_wheel_holds_every_folder_of_code():
    listed = tomllib.loads((HOUSE / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(HOUSE) for name in PACKAGES for path in (HOUSE / name).rglob("*.py")}
    assert {".".join(folder.parts) for folder in folders} == {name for name in listed if name.startswith(PACKAGES)}


def test_no_file_outgrows_its_room():
    """300 lines a file: beyond that a room is missing."""
    sizes = {
        path: path.read_text(encoding="utf-8").count("\n") for name in PACKAGES for path in (HOUSE / name).rglob("*.py")
    }
    assert not {path: lines for path, lines in sizes.items() if lines > 300}


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
