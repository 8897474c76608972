"""The front door: fast answers, readable refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import __main__ as entry
from pipelines import __version__
from pipelines.listing import COMMANDS

ROOT = Path(entry.__file__).resolve().parent.parent
HEAVY = (
    "torch",
    "pytorch_lightning",
    "numpy",
    "timm",
    "albumentations",
    "wandb",
    "PIL",
    "yaml",
    "tasks",
    "datamodules",
)
PROBE = f"""
import sys
from pipelines.__main__ import main
status = main(sys.argv[1:])
found = [name for name in {HEAVY} if name in sys.modules]
assert not found, found
sys.exit(status)
"""


def run(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("words", [[], ["--help"], ["--version"], ["list"], ["list", "configs"]])
def test_answers_from_the_standard_library(words: list[str]) -> None:
    """Importing torch takes seconds."""
    result = run("-c", PROBE, *words)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_module_call_prints_help_and_version() -> None:
    assert "quickstart" in run("-m", "pipelines").stdout
    assert run("-m", "pipelines", "--version").stdout.split() == ["pipelines", __version__]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("fitt", "did you mean 'fit'?"),
        ("train", "did you mean 'fit'?"),
        ("tets", "did you mean 'test'?"),
        ("qqqq", f"there are {', '.join(COMMANDS)}"),
        ("--config", "the command comes first"),
    ],
)
def test_unknown_command_names_the_nearest(word: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main([word, "x"]) == 2
    message = capsys.readouterr().err
    assert word in message
    assert said in message
    assert message.count("\n") == 1


def test_a_foreign_tasks_module_in_the_working_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text("print('not ours')\n")
    code = (
        f"import sys; sys.path[:0] = ['', {str(ROOT)!r}]; from pipelines.__main__ import main; sys.exit(main(['fit']))"
    )
    result = run("-c", code, cwd=tmp_path)
    assert result.returncode == 1
    assert str(tmp_path / "tasks.py") in result.stderr
    assert "console script `pipelines`" in result.stderr
    assert result.stderr.count("\n") == 1
    assert "not ours" not in result.stdout


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "pipelines").symlink_to(ROOT / "pipelines")
    copy = tmp_path / "copy" / "pipelines"
    copy.mkdir(parents=True)
    for name in ("__init__.py", "__main__.py", "listing.py"):
        (copy / name).write_bytes((ROOT / "pipelines" / name).read_bytes())
    result = run("-S", "-m", "pipelines", "fit", cwd=copy.parent)
    assert result.returncode == 1
    assert "the package 'tasks' is missing" in result.stderr


def test_own_packages_are_accepted() -> None:
    assert entry.find_foreign_package() is None


def test_ctrl_c_ends_without_a_trace(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(args: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(entry.listing, "main", interrupt)
    assert entry.main(["list"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m pipelines list | true"
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0
    assert result.stderr == ""


def test_something_is_said_before_anything_is_imported() -> None:
    code = f"""
import sys
from pipelines import __main__ as entry
entry._runner = lambda command, words: lambda words: 0
entry.main(sys.argv[1:])
assert not [name for name in {HEAVY} if name in sys.modules]
"""
    words = ["fit", "--config", "quickstart"]
    assert run("-c", code, *words).stderr == f"pipelines {__version__}: {' '.join(words)}\n"
    for quiet in (["fit", "--help"], ["convert", "--source", "x"], ["fit", "--print_config"]):
        assert run("-c", code, *quiet).stderr == ""


@pytest.mark.parametrize("command", ["fit", "check", "curve"])
def test_help_of_a_config_of_the_loop_runs_nothing(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = next((Path(__file__).parents[2] / "configs" / "noisy_student").glob("*digits.yaml"))
    try:
        status = entry.main([command, "--config", str(config), "--help"])
    except SystemExit as error:  # argparse
        status = int(error.code or 0)
    assert status == 0
    assert "usage: " in capsys.readouterr().out
    assert not Path("runs").exists()
