"""Row 44: nothing that a config names is imported or called, unless `--trust` or a typed flag says so."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.__main__ import main
from pipelines.config.allowed import allowing, is_allowed
from pipelines.config.launchers import check_launch

TRAP = """
from pathlib import Path
Path("executed").touch()
from pytorch_lightning.callbacks import Callback
class Spy(Callback): pass
def call(*args, **kwargs): Path("called").touch()
"""
MODEL = {"class_path": "Classification", "init_args": {"backbone": "lenet5"}}
DATA = {"class_path": "ClassificationData", "init_args": {"source": "digits", "image_size": 28, "in_chans": 1}}
SPY = {"class_path": "trap.Spy"}


def trainer(**arguments: Any) -> dict[str, Any]:
    return {"trainer": arguments}


def hook(name: str) -> dict[str, Any]:
    return trainer(callbacks=[{"class_path": "LambdaCallback", "init_args": {"on_fit_start": name}}])


ATTEMPTS: dict[str, dict[str, Any]] = {
    "a task": {"model": {"class_path": "trap.Spy"}},
    "a task by name": {"model": "trap.Spy"},
    "a datamodule": {"data": {"class_path": "trap.Spy"}},
    "a callback": trainer(callbacks=[SPY]),
    "a callback by name": trainer(callbacks=["trap.Spy"]),
    "one callback": trainer(callbacks=SPY),
    "a logger": trainer(logger=SPY),
    "a plugin": trainer(plugins=[SPY]),
    "a strategy": trainer(strategy=SPY),
    "a profiler": trainer(profiler=SPY),
    "an accelerator": trainer(accelerator=SPY),
    "a callable of a callback": hook("trap.call"),
    "a shell as a callable": hook("os.system"),
    "a class as a callable": hook("subprocess.Popen"),
    "a callable through ours": hook("tasks.base.torch.hub.load"),
    "a callable through Lightning": hook("pytorch_lightning.callbacks.callback.Any"),
    "a task inside": {"model": {"class_path": "NoisyStudent", "init_args": {"student": {"class_path": "trap.Spy"}}}},
    "data inside": {"data": {"class_path": "SemiSupervised", "init_args": {"labeled": {"class_path": "trap.call"}}}},
    "another file": {"model": "stranger.yaml"},
    "another file for a callback": trainer(callbacks=["stranger.yaml"]),
    "whom to trust": {"trust": "trap", **trainer(callbacks=[SPY])},
    "an alias of a module": trainer(callbacks=[{"class_path": "pytorch_lightning.cli.LightningCLI"}]),
}


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "trap.py").write_text(TRAP)
    (tmp_path / "stranger.yaml").write_text("class_path: trap.Spy\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("trap", None)


def write(**config: Any) -> list[str]:
    quiet = {"accelerator": "cpu", "max_epochs": 0, "wandb": {"mode": "off"}}
    values = {"model": MODEL, "data": DATA, **config}
    values["trainer"] = quiet | config.get("trainer", {})
    Path("run.yaml").write_text(yaml.safe_dump(values))
    return ["fit", "--config", "run.yaml"]


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_a_config_runs_nothing(attempt: str, trap: None, capsys: pytest.CaptureFixture[str]):
    assert main(write(**ATTEMPTS[attempt])) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert "Traceback" not in message
    assert not Path("executed").exists()
    assert not Path("runs").exists()
    assert "trap" not in sys.modules


def test_the_loops_config_neither(trap: None, capsys: pytest.CaptureFixture[str]):
    loop = {"data": DATA, "teacher": {"model": MODEL}, "students": [{"model": {"class_path": "trap.Spy"}}]}
    Path("loop.yaml").write_text(yaml.safe_dump(loop))
    assert main(["noisy-student", "--config", "loop.yaml"]) == 2
    assert "loop.yaml line 8: students.model names 'trap.Spy'" in capsys.readouterr().err
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    "launch",
    [
        ["sh", "-c", "touch executed #"],
        ["./srun"],
        ["srun", "sh", "-c", "touch executed #"],
        ["srun", "--kill-on-bad-exit", "sh"],
        ["srun", "--task-prolog=./trap.py"],
        ["torchrun", "--no-python", "sh"],
        ["torchrun", "--nproc-per-node", "2", "trap.py"],
        ["torchrun", "--nproc-per-node", "--no-python", "sh"],
    ],
    ids=" ".join,
)
def test_a_loops_launcher_is_no_way_to_start_programs(
    launch: list[str], trap: None, capsys: pytest.CaptureFixture[str]
):
    loop = {"data": DATA, "teacher": {"model": MODEL}, "students": [{"model": MODEL}], "trainer": {"devices": 1}}
    Path("loop.yaml").write_text(yaml.safe_dump({**loop, "launch": launch}))
    assert main(["noisy-student", "--config", "loop.yaml"]) == 2
    assert "a config may only name srun or torchrun with flags of how many and where" in capsys.readouterr().err
    assert not Path("executed").exists()


@pytest.mark.parametrize("launch", ["touch executed #", "srun sh -c 'touch executed'", "srun 'open"])
@pytest.mark.parametrize("command", ["folds", "ensemble"])
def test_nor_is_that_of_another_command(command: str, launch: str, trap: None, capsys: pytest.CaptureFixture[str]):
    Path("some.yaml").write_text(yaml.safe_dump({"model": MODEL, "data": DATA, "launch": launch}))
    assert main([command, "--config", "some.yaml"]) == 2
    assert "a config may only name srun or torchrun with flags of how many and where" in capsys.readouterr().err
    assert not Path("executed").exists()


def test_ordinary_launchers_are_none():
    check_launch("srun --ntasks=8")
    check_launch(["srun", "--ntasks=8", "--gres", "gpu:8", "--kill-on-bad-exit=0", "--exclusive"])
    check_launch(["torchrun", "--standalone", "--nproc_per_node", "8"])
    check_launch(["torchrun"])


def test_the_message_says_what_to_do(trap: None, capsys: pytest.CaptureFixture[str]):
    main(write(trainer={"callbacks": [SPY]}))
    assert "run.yaml line 14: trainer.callbacks names 'trap.Spy'" in (said := capsys.readouterr().err)
    assert "nothing of it was imported. If you know and trust it, add --trust trap." in said
    main(write(**hook("os.system")))
    assert "names 'os.system', which is none of this project's classes" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--trust=trap", "--trainer.callbacks=trap.Spy"])
def test_what_is_trusted_or_typed_is_imported(flag: str, trap: None):
    config = {"trainer": {"callbacks": [SPY]}} if "trust" in flag else {}
    with pytest.raises(SystemExit):
        main([*write(**config), flag, "--print_config"])
    assert "trap" in sys.modules
    assert not is_allowed("trap.Spy"), "for that command only"


def test_names():
    with allowing(["--trust", "mine", "--x=[{class_path: other.Net}]"]):
        assert is_allowed("mine.nets.Net")
        assert is_allowed("other.Net")
        assert not is_allowed("other.nets.Net")
        assert not is_allowed("miner.Net")
        assert is_allowed("pytorch_lightning.callbacks.EarlyStopping")
    assert main(["fit", "--trust", "not/a/name"]) == 2
