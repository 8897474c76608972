"""The command ``list``: what this installation offers. Needs the standard library only, but for ``list backbones``."""

from __future__ import annotations

import ast
import functools
import sys
from fnmatch import fnmatchcase
from pathlib import Path

PROGRAM = "python -m pipelines"
NAME_WIDTH = 16
HOME = Path(__file__).resolve().parent.parent  # where pipelines, tasks, datamodules and configs lie side by side
COMMANDS = {
    "fit": "train a model, or continue a run with --resume auto",
    "validate": "evaluate a checkpoint on the validation set",
    "test": "evaluate a checkpoint on the test set",
    "predict": "write the predictions of a checkpoint for a folder of pictures or a data set",
    "export": "write a checkpoint as ONNX, torch.export or OpenVINO file, proved to be the same model",
    "verify": "compare an exported file with its checkpoint, and name the first stage that differs",
    "benchmark": "measure latency, throughput and memory of a checkpoint and of its exports",
    "probe": "train scikit-learn's logistic regression on frozen features",
    "folds": "cross-validate a config: train and test once a fold, with the interval of the mean",
    "ensemble": "train members by seed, fold, bagging, boosting, snapshot or backbone, and combine them",
    "distil": "teach one small net what a larger one, or an ensemble, says of its training images",
    "curve": "train with fractions of the labels: what more labels, or unlabeled images, would be worth",
    "tune": "search values of a config's keys with optuna, and repeat the last candidates over seeds",
    "pseudo-label": "label a pool of images with a trained teacher, for noisy student",
    "noisy-student": "train teacher and students over generations, and report what the unlabeled images were worth",
    "check": "look for what is wrong with a data set: files, annotations, classes, splits",
    "report": "write a run's report and model card again, from what lies in its directory",
    "compare": "say which of several runs is better on the same test images, and by how much",
    "explain": "show which pixels a network answers by, with several methods, and which of them to believe",
    "summary": "show a network's layers: shapes, parameters, operations, receptive fields, memory",
    "features": "show what a network's units look for: exemplars, grown pictures, filters, a map of the set",
    "select": "choose which pictures of a pool to label next, with tasks for CVAT and Label Studio",
    "demo": "show what checkpoints say of pictures, side by side, on a page in the browser",
    "convert": "convert boxes and masks between COCO JSON, VOC XML and YOLO text",
    "doctor": "check installation and machine, and with a config its memory and time: one page for a bug report",
    "list": "show commands, tasks, datamodules and ready configs; `list backbones PATTERN` network names",
}
MAX_IMPORTS = 8  # no class is imported by way of more files
SCRIPTS = "configs/cluster"
SECTIONS = ("commands", "tasks", "datamodules", "configs", "scripts", "backbones")
USAGE = f"""usage: {PROGRAM} list [{" | ".join(SECTIONS)}] [PATTERN]

Without a section: all but the backbones. PATTERN is text within a name, or has wildcards: 'resnet*', '*vit*'.
`list scripts NAME` prints a script of a cluster's job."""


def main(args: list[str]) -> int:
    """Print what there is.

    Args:
        args: The words after ``list``: nothing, a section, or a section and a pattern.

    Returns:
        The exit status: 0, 1 if nothing matches the pattern, 2 for wrong usage.
    """
    if any(arg in ("-h", "--help") for arg in args):
        print(USAGE)
        return 0
    if not args:
        _print_all()
        return 0
    section, patterns = args[0], args[1:]
    if section not in SECTIONS:
        close = nearest(section, list(SECTIONS))
        meant = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(SECTIONS)}"
        return _refuse(f"unknown section '{section}': {meant}")
    if len(patterns) > 1:
        return _refuse("at most one pattern (in quotes)")
    return _print_section(section, patterns[0] if patterns else None)


def _print_all() -> None:
    for section in SECTIONS[:-1]:
        print(f"{section}:")
        _print_entries(_entries(section))
        print()
    print(f"`{PROGRAM} list backbones PATTERN` shows names of networks.")


def _print_section(section: str, pattern: str | None) -> int:
    entries = _entries(section)
    if section == "scripts" and pattern in entries:
        print((HOME / SCRIPTS / f"{pattern}.sh").read_text(encoding="utf-8"), end="")
        return 0
    shown = {name: text for name, text in entries.items() if pattern is None or matches(name, pattern)}
    if pattern is not None and not shown:
        close = nearest(pattern.strip("*"), list(entries))
        meant = f"nearest: {', '.join(close)}" if close else f"see `{PROGRAM} list {section}`"
        print(f"error: none of {len(entries)} {section} matches '{pattern}'; {meant}", file=sys.stderr)
        return 1
    _print_entries(shown)
    if section == "backbones":
        print(f"{len(shown)} of {len(entries)} backbones", file=sys.stderr)
    return 0


def _refuse(problem: str) -> int:
    print(f"error: {problem}\n{USAGE}", file=sys.stderr)
    return 2


def config_path(name: str) -> Path | None:
    """Find a packaged config by its name.

    Args:
        name: As shown by ``list``: ``quickstart``, ``classification/cifar10`` or ``overlays/ddp``, with or without
            ``.yaml``.

    Returns:
        The file, None if there is none of that name.
    """
    folder = HOME / "configs"
    path = folder / (name if name.endswith(".yaml") else f"{name}.yaml")
    return path if path.resolve().is_relative_to(folder.resolve()) and path.is_file() else None


def list_configs() -> dict[str, str]:
    """Return the names of the packaged configs and the first comment line of each, top-level ones first."""
    folder = HOME / "configs"
    names = sorted(
        (path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")),
        key=lambda name: ("/" in name, name),
    )
    return {name: _first_comment(folder / f"{name}.yaml") for name in names}


def list_scripts() -> dict[str, str]:
    """Return the names of the scripts for clusters and the first comment line of each, behind ``#!``."""
    files = sorted((HOME / SCRIPTS).glob("*.sh"))
    return {file.stem: file.read_text(encoding="utf-8").splitlines()[1].lstrip("# ") for file in files}


def list_classes(package: str) -> dict[str, str]:
    """Find the tasks or datamodules that a package exports, without importing it.

    Args:
        package: ``tasks`` or ``datamodules``.

    Returns:
        Class name -> first line of its docstring, for every name in ``__all__`` that is a LightningModule or
        LightningDataModule; base classes, which live in ``base.py``, are left out.
    """
    init = HOME / package / "__init__.py"
    found: dict[str, str] = {}
    for name in _exported(init) if init.is_file() else []:
        path, node = _find_class(init, name)
        if path is None or node is None or path.name == "base.py" or not _is_lightning(path, node):
            continue
        found[name] = (ast.get_docstring(node) or "").partition("\n")[0].rstrip(".")
    return found


def matches(name: str, pattern: str) -> bool:
    """Tell whether a pattern fits a name: anywhere in it, or as a whole where the pattern has wildcards."""
    name, pattern = name.lower(), pattern.lower()
    return fnmatchcase(name, pattern) if any(char in pattern for char in "*?[") else pattern in name


def nearest(word: str, names: list[str], count: int = 5) -> list[str]:
    """Return the names that look most like a word, the nearest first; possibly none."""
    import difflib

    return difflib.get_close_matches(word.lower(), names, n=count, cutoff=0.5)


def _entries(section: str) -> dict[str, str]:
    if section == "commands":
        return COMMANDS
    if section == "configs":
        return list_configs()
    if section == "scripts":
        return list_scripts()
    if section == "backbones":
        from tasks.backbones import list_backbones

        return dict.fromkeys(list_backbones(), "")
    return list_classes(section)


def _print_entries(entries: dict[str, str]) -> None:
    if not any(entries.values()):  # backbones: for pipes, one bare name a line
        print("\n".join(entries) or "  none")
        return
    width = max(NAME_WIDTH, *(len(name) + 2 for name in entries))
    for name, text in entries.items():
        print(f"  {name:<{width}}{text}".rstrip())


def _first_comment(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        line = file.readline()
    return line.lstrip("# ").rstrip() if line.startswith("#") else ""


@functools.cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _exported(path: Path) -> list[str]:
    for node in _parse(path).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return [str(name) for name in ast.literal_eval(node.value)]
    return []


def _find_class(path: Path, name: str, depth: int = 0) -> tuple[Path | None, ast.ClassDef | None]:
    """Follow ``from x import name`` through our own files to the class statement."""
    nodes = list(ast.walk(_parse(path)))
    for node in nodes:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return path, node
    for node in nodes:
        if not isinstance(node, ast.ImportFrom):
            continue
        for alias in node.names:
            source = _module_file(path, node) if name == (alias.asname or alias.name) else None
            if source is not None and depth < MAX_IMPORTS:
                return _find_class(source, alias.name, depth + 1)
    return None, None


def _module_file(path: Path, node: ast.ImportFrom) -> Path | None:
    folder = HOME if node.level == 0 else path.parents[node.level - 1]
    stem = folder.joinpath(*(node.module or "").split("."))
    return next((file for file in (stem.with_suffix(".py"), stem / "__init__.py") if file.is_file()), None)


def _is_lightning(path: Path, node: ast.ClassDef, depth: int = 0) -> bool:
    for base in node.bases:
        name = ast.unparse(base).rpartition(".")[2]
        if name in ("LightningModule", "LightningDataModule"):
            return True
        source, parent = _find_class(path, name)
        if (
            source
            and parent
            and parent is not node
            and depth < MAX_IMPORTS
            and _is_lightning(source, parent, depth + 1)
        ):
            return True
    return False
