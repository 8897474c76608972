"""Rows 49 and 51: a tracker that fails does not end a training; secrets are written nowhere.

What a run writes is looked through in `tests/pipelines/test_fit.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.run.masking import masked_words
from pipelines.run.tracking import Wandb, WandbRun, wandb_logger


def test_masked_words():
    words = ["fit", "--x.api_key", "abc", "--token=abc", "--x", "{a: {password: abc}, b: 1}", "--hflip"]
    words += ["https://u:abc@h/?token=abc&x=1", "--num_tokens", "3"]
    assert masked_words(words) == [
        "fit", "--x.api_key", "***", "--token=***", "--x", '{"a": {"password": "***"}, "b": 1}', "--hflip",
        "https://***@h/?token=***&x=1", "--num_tokens", "3",
    ]  # fmt: skip


@pytest.mark.parametrize("broken", ["_open", "log", "finish"])
def test_a_tracker_that_fails_is_given_up(broken: str, monkeypatch: pytest.MonkeyPatch, capsys):
    class Run:
        def log(self, *args, **kwargs):
            if broken == "log":
                raise BrokenPipeError("its service died")

        def finish(self, **kwargs):
            raise ConnectionError("no answer")

    def opened(self):
        if broken == "_open":
            raise ValueError("<html>nonsense")
        return Run()

    monkeypatch.setattr(WandbRun, "_open", opened)
    logger = wandb_logger(".", Wandb(mode="offline"), name="n", run_id="i", config={})
    for step in range(3):
        logger.log_metrics({"x": 1.0}, step)
    logger.finish()
    said = capsys.readouterr().err
    assert said.count("W&B: lost") == 1
    assert "metrics.csv has all values" in said


LOSES_ITS_SERVICE = """
import os, signal, time
from pathlib import Path
from pipelines.run.tracking import Wandb, wandb_logger

log = wandb_logger(".", Wandb(mode="offline"), name="n", run_id="abc12345", config={})
log.log_metrics({"x": 1.0}, 0)
me = str(os.getpid())
for stat in Path("/proc").glob("[0-9]*/stat"):
    name, _, rest = stat.read_text().rpartition(") ")
    if rest.split()[1] == me and "wandb" in name:
        os.kill(int(stat.parent.name), signal.SIGKILL)
time.sleep(1)
for step in range(1, 4):
    log.log_metrics({"x": 1.0}, step)
log.finish()
"""


@pytest.mark.slow
def test_a_service_that_was_killed_leaves_no_traceback_at_the_exit(tmp_path):
    """W&B's own hook at the process's exit asks its service once more."""
    house = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", LOSES_ITS_SERVICE], cwd=tmp_path, env=house, capture_output=True, text=True, check=True
    )
    assert "W&B: lost" in done.stderr
    assert "Traceback" not in done.stderr
