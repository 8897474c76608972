"""Row 11: a place that cannot be written is refused before the data are read.

The tests run as root, whom permissions do not stop: the system's answer is simulated.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from pipelines.__main__ import main
from tests.pipelines.test_ranks import CONFIG


def refuse(dir: Path, prefix: str) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose data are not there: a message about them would have come from reading them."""
    monkeypatch.setattr("pipelines.run.writable.NamedTemporaryFile", refuse)
    (tmp_path / "config.yaml").write_text(CONFIG.format(source="missing"))
    run = tmp_path / "runs" / "config" / "0"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text(CONFIG.format(source="missing"))
    for name in ("best", "last"):
        torch.save({"global_step": 1, "state_dict": {}}, run / "checkpoints" / f"{name}.ckpt")
    return run


@pytest.mark.parametrize(
    ("words", "place", "way_out"),
    [
        (["fit"], "runs/config", "set --runs_dir"),
        (["fit", "--resume", "auto"], "runs/config/0/checkpoints", "start a new run"),
        (["validate"], "runs/config/0", "copy the checkpoint"),
        (["test"], "runs/config/0", "copy the checkpoint"),
        (["predict"], "runs/config/0", "--output"),
        (["predict", "--output", "there"], "there", "--output"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_a_read_only_place_is_refused_before_the_data_are_read(run, capfd, words, place, way_out):
    assert main([words[0], "--config", "config.yaml", *words[1:]]) == 1
    said = capfd.readouterr().err
    (line,) = [line for line in said.splitlines() if "error: " in line]
    assert f"{place} cannot be written (Read-only file system): " in line
    assert way_out in line
    assert "Traceback" not in said
    assert not (run / "run.lock").exists()
