"""What ``list`` shows, and configs by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines import listing


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A house of its own: two packages that must not be imported, three configs."""
    files = {
        "tasks/__init__.py": (
            "from .sorting import Sorting, helper\nfrom tasks.base import Task, Optim\n"
            "from tasks.finding import Finding\n"
            "raise RuntimeError('imported')\n__all__ = ['Finding', 'Optim', 'Sorting', 'Task', 'helper', 'lost']\n"
        ),
        "tasks/base.py": ("class Task(pl.LightningModule):\n    '''Base.'''\nclass Optim:\n    '''Not a task.'''\n"),
        "tasks/sorting.py": (
            "from tasks.base import Task\nclass Sorting(Task):\n    '''Put pictures into drawers.\n\n"
            "    More.\n    '''\n"
            "def helper(): ...\n"
        ),
        "tasks/finding/__init__.py": "from tasks.finding.task import Finding\n",
        "tasks/finding/task.py": "from ..sorting import Sorting\nclass Finding(Sorting):\n    pass\n",
        "datamodules/__init__.py": "from datamodules.a import Drawers\n__all__ = ['Drawers']\n",
        "datamodules/a.py": "class Drawers(LightningDataModule):\n    '''Pictures in drawers.'''\n",
        "configs/start.yaml": "# The first one.\n# More.\nname: start\n",
        "configs/sorting/ants.yaml": "name: ants\n",
        "configs/overlays/ddp.yaml": "# Two devices.\n",
        "configs/notes.txt": "no config",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(listing, "HOME", tmp_path)
    return tmp_path


def test_classes_are_found_without_import(home: Path) -> None:
    assert listing.list_classes("tasks") == {"Finding": "", "Sorting": "Put pictures into drawers"}
    assert listing.list_classes("datamodules") == {"Drawers": "Pictures in drawers"}


def test_configs_come_with_their_first_comment(home: Path) -> None:
    found = listing.list_configs()
    assert list(found.items()) == [
        ("start", "The first one."),
        ("overlays/ddp", "Two devices."),
        ("sorting/ants", ""),
    ]


@pytest.mark.parametrize("suffix", ["", ".yaml"])
def test_config_path(home: Path, suffix: str) -> None:
    assert listing.config_path("start" + suffix) == home / "configs" / "start.yaml"
    assert listing.config_path("overlays/ddp" + suffix) == home / "configs" / "overlays" / "ddp.yaml"
    for name in ("stat", "ddp", "../start", "overlays", "/etc/passwd"):
        assert listing.config_path(name + suffix) is None


def test_everything_and_sections(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert listing.main([]) == 0
    out = capsys.readouterr().out
    for word in ("fit", "Sorting", "Drawers", "overlays/ddp", "The first one.", "list backbones"):
        assert word in out
    assert listing.main(["configs", "DDP"]) == 0
    assert capsys.readouterr().out.split() == ["overlays/ddp", "Two", "devices."]
    assert listing.main(["configs", "s*"]) == 0
    assert "ddp" not in capsys.readouterr().out
    assert listing.main(["--help"]) == 0


def test_no_match_names_the_nearest(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert listing.main(["configs", "sorting/ant5"]) == 1
    assert "nearest: sorting/ants" in capsys.readouterr().err
    assert listing.main(["configs", "qqqq"]) == 1
    assert "list configs" in capsys.readouterr().err
    assert listing.main(["config"]) == 2
    assert "did you mean 'configs'?" in capsys.readouterr().err
    assert listing.main(["configs", "a", "b"]) == 2


def test_real_house_lists_classification() -> None:
    assert "Classification" in listing.list_classes("tasks")
    assert "ClassificationData" in listing.list_classes("datamodules")
    assert all(text for text in listing.list_classes("tasks").values())


def test_backbones(capsys: pytest.CaptureFixture[str]) -> None:
    assert listing.main(["backbones", "test_resnet*"]) == 0
    shown = capsys.readouterr()
    assert "test_resnet" in shown.out.splitlines()
    assert " backbones" in shown.err
    assert listing.main(["backbones", "resnet181"]) == 1
    assert "resnet18" in capsys.readouterr().err
