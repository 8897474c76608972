"""metrics.csv survives kills and resumes; W&B never prompts, never hangs, and keeps one identity."""

from __future__ import annotations

import csv
import itertools
import json
import os
import pickle
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning_utilities.core.rank_zero import rank_zero_only

from pipelines.preparation import _open_loggers
from pipelines.run import tracking, wandb_server
from pipelines.run.masking import masked
from pipelines.run.metrics_file import MetricsCSV
from pipelines.run.tracking import Wandb, wandb_logger
from pipelines.run.wandb_media import log_image, log_table
from tests.conftest import offline_records


def rows(directory: Path) -> list[dict[str, str]]:
    with open(directory / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]


# metrics.csv


def test_one_row_a_step_in_order_of_appearance(tmp_path: Path) -> None:
    logger = MetricsCSV(tmp_path)
    third = 1 / 3
    logger.log_metrics({"train/loss": third, "epoch": 0}, step=9)
    logger.log_metrics({"train/loss": torch.tensor(0.1), "epoch": 0}, step=19)
    logger.log_metrics({"val/accuracy": np.float64(0.5), "epoch": 0}, step=19)
    logger.log_metrics({"train/loss": float("nan")}, step=29)
    logger.log_metrics({"val/accuracy": 1}, step=29)
    with open(tmp_path / "metrics.csv") as file:
        assert file.readline() == "step,epoch,train/loss,val/accuracy\n"
    assert rows(tmp_path) == [
        {"step": "9", "epoch": "0", "train/loss": repr(third)},
        {"step": "19", "epoch": "0", "train/loss": repr(float(np.float32(0.1))), "val/accuracy": "0.5"},
        {"step": "29", "train/loss": "nan", "val/accuracy": "1"},
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]


def test_every_call_is_on_disk_and_appending_does_not_rewrite(tmp_path: Path) -> None:
    logger = MetricsCSV(tmp_path)
    logger.log_metrics({"a": 0.0, "b": 0.0}, step=0)
    file = (tmp_path / "metrics.csv").stat().st_ino
    for step in range(1, 50):
        logger.log_metrics({"a": step / 7}, step=step)
        logger.log_metrics({"b": step}, step=step)
        assert rows(tmp_path)[-1] == {"step": str(step), "a": repr(step / 7), "b": str(step)}
    assert (tmp_path / "metrics.csv").stat().st_ino == file
    assert len(rows(tmp_path)) == 50


def test_merging_into_the_last_row_may_shorten_it(tmp_path: Path) -> None:
    logger = MetricsCSV(tmp_path)
    logger.log_metrics({"a": 1 / 3}, step=0)
    logger.log_metrics({"a": 1 / 3}, step=1)
    logger.log_metrics({"a": 0.5}, step=1)
    assert (tmp_path / "metrics.csv").read_text() == f"step,a\n0,{1 / 3}\n1,0.5\n"


def test_late_columns_and_late_steps_keep_the_order(tmp_path: Path) -> None:
    logger = MetricsCSV(tmp_path)
    logger.log_metrics({"b": 1.0}, step=4)
    logger.log_metrics({"a": 2.0}, step=8)
    logger.log_metrics({"epoch": 3, 'comma, quote"': 1.0}, step=2)
    logger.log_metrics({"a": 3.0}, step=4)
    logger.log_metrics({"a": 4.0})
    logger.log_metrics({"b": 0.5}, step=-1)  # before the first step
    with open(tmp_path / "metrics.csv", newline="") as file:
        assert next(csv.reader(file)) == ["step", "epoch", "b", "a", 'comma, quote"']
    assert rows(tmp_path) == [
        {"step": "0", "b": "0.5"},
        {"step": "2", "epoch": "3", 'comma, quote"': "1.0"},
        {"step": "4", "b": "1.0", "a": "3.0"},
        {"step": "8", "a": "2.0"},
        {"step": "9", "a": "4.0"},
    ]


def test_a_continued_run_keeps_its_history_and_cuts_what_it_repeats(tmp_path: Path) -> None:
    first = MetricsCSV(tmp_path)
    for step in range(10):
        first.log_metrics({"loss": float(step)}, step=step)
    second = MetricsCSV(tmp_path)
    second.resume(6)
    assert [row["step"] for row in rows(tmp_path)] == [str(s) for s in range(7)]
    second.log_metrics({"val": 0.5}, step=6)
    second.log_metrics({"loss": -7.0}, step=7)
    assert [row["step"] for row in rows(tmp_path)] == [str(s) for s in range(8)]
    assert rows(tmp_path)[6:] == [{"step": "6", "loss": "6.0", "val": "0.5"}, {"step": "7", "loss": "-7.0"}]
    MetricsCSV(tmp_path).resume(-1)
    assert rows(tmp_path) == []
    MetricsCSV(tmp_path / "new").resume(3)  # nothing there: nothing to cut


def test_rows_of_the_steps_that_a_checkpoint_has_stay(tmp_path: Path) -> None:
    """Steps are counted from 0: behind three of them, that of number 3 is done again."""
    before = MetricsCSV(tmp_path)
    for step in range(5):
        before.log_metrics({"loss": float(step)}, step=step)
    trainer = SimpleNamespace(wandb=Wandb(), wandb_mode="off", run_name="x", user_loggers=[])
    _open_loggers(trainer, tmp_path, {}, 3)  # type: ignore[arg-type]
    assert [row["step"] for row in rows(tmp_path)] == ["0", "1", "2"]
    assert [type(logger) for logger in trainer.loggers] == [MetricsCSV]


@pytest.mark.parametrize("cut", range(1, 26))
def test_a_row_cut_by_a_kill_is_dropped(tmp_path: Path, cut: int) -> None:
    first = MetricsCSV(tmp_path)
    first.log_metrics({"a": 0.25, "b": 0.5}, step=0)
    first.log_metrics({"a": 0.125, "b": 0.75}, step=1)
    path = tmp_path / "metrics.csv"
    path.write_bytes(path.read_bytes()[:-cut])
    complete = path.read_bytes().count(b"\n") - 1  # rows
    second = MetricsCSV(tmp_path)
    second.log_metrics({"b": 1.0}, step=2)
    second.log_metrics({"a": 1.0}, step=3)
    assert [row["step"] for row in rows(tmp_path)] == [*map(str, range(max(0, complete))), "2", "3"]
    assert rows(tmp_path)[-1] == {"step": "3", "a": "1.0"}


def test_what_a_kill_leaves_behind_a_shortened_row_is_no_row(tmp_path: Path) -> None:
    """A row is written over its longer self, then the rest is cut off; here that did not happen."""
    (tmp_path / "metrics.csv").write_text("step,a\n0,0.25\n1,0.5\n33333\n")
    MetricsCSV(tmp_path).log_metrics({"a": 0.75}, step=2)
    assert (tmp_path / "metrics.csv").read_text() == "step,a\n0,0.25\n1,0.5\n2,0.75\n"


def test_kills_while_writing_leave_a_history(tmp_path: Path) -> None:
    for run in range(5):
        done, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            logger = MetricsCSV(tmp_path)
            for step in itertools.count(run * 100_000):
                logger.log_metrics({"a": step / 3, f"b{step % 40 // 39}": step}, step=step)
                logger.log_metrics({"c": step / 7}, step=step)
                os.write(tell, b".")
        for _ in range(30 + 7 * run):  # then it is killed, wherever it is in the next steps
            os.read(done, 1)
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(done)
        os.close(tell)
    logger = MetricsCSV(tmp_path)
    logger.log_metrics({"a": 0.0}, step=999_999)
    steps = [int(row["step"]) for row in rows(tmp_path)]
    assert steps == sorted(set(steps))
    assert len(steps) >= sum(30 + 7 * run for run in range(5))
    for row in rows(tmp_path)[:-1]:
        assert float(row["a"]) == int(row["step"]) / 3
        assert float(row.get("c", int(row["step"]) / 7)) == int(row["step"]) / 7


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    csv_logger = MetricsCSV(tmp_path)
    csv_logger.log_metrics({"a": 1.0}, step=0)
    csv_logger.resume(0)
    wandb = wandb_logger(tmp_path, Wandb(mode="online"), name="n", run_id="r", config={})
    assert wandb is not None
    wandb.save()
    wandb.log_metrics({"a": 1.0}, step=0)
    log_image([wandb], "k", np.zeros((4, 4, 3), np.uint8), 0)
    wandb.experiment.log({"a": 1})
    wandb.finalize("success")
    assert list(tmp_path.iterdir()) == []


def test_lightning_finds_its_way(tmp_path: Path) -> None:
    logger = MetricsCSV(tmp_path)
    logger.log_hyperparams({"lr": 1})
    logger.save()
    logger.finalize("success")
    assert (logger.save_dir, logger.log_dir, logger.name, logger.version) == (str(tmp_path), str(tmp_path), "", "")
    assert pickle.loads(pickle.dumps(logger)).path == logger.path


# Weights & Biases


def history(path: Path) -> list[dict[str, Any]]:
    found = []
    for record in offline_records(path):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            found.append({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items})
    return found


@pytest.fixture
def clean_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for key in [key for key in os.environ if key.startswith("WANDB_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    import wandb

    wandb.teardown()
    yield tmp_path / "run"
    wandb.teardown()


@pytest.fixture
def opened(clean_wandb: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, float]]:
    """Mode and time limits (of opening and of closing) of each run that W&B is asked to open."""
    import wandb

    calls: list[tuple[str, float, float]] = []
    init = wandb.init

    def noted(*args: Any, **kwargs: Any) -> Any:
        calls.append((kwargs["mode"], kwargs["settings"].init_timeout, kwargs["settings"].finish_timeout))
        return init(*args, **kwargs)

    monkeypatch.setattr(wandb, "init", noted)
    return calls


def make(directory: Path, mode: tracking.Mode = "auto", config: dict[str, Any] | None = None) -> tracking.WandbRun:
    settings = Wandb(mode, "project", tags=["t"])
    logger = wandb_logger(directory, settings, name="ants/0", run_id="abc123", config=config or {})
    assert logger is not None
    return logger


def test_a_resumed_offline_run_is_one_run_with_growing_steps(
    clean_wandb: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = clean_wandb
    config = {
        "model": {"lr": 0.1, "num_tokens": 7},
        "hub": {"api_key": "hush-hush", "url": "https://me:hush-hush@x.org"},
    }
    for steps in (range(0, 60, 10), range(40, 100, 10)):
        monkeypatch.setenv("WANDB_MODE", "")
        logger = make(directory, config=config)
        logger.log_hyperparams({"num_classes": 2, "token": "hush-hush", "text": "x" * 2000})
        for step in steps:
            logger.log_metrics({"train/loss": float(step)}, step=step)
            logger.log_metrics({"val/accuracy": step / 100}, step=step)
        log_image([logger, MetricsCSV(directory)], "picture", np.zeros((8, 8, 3), np.uint8), steps[-1])
        log_table([logger], "table", ["path", "p"], [["a.png", 0.5], ["b.png", "none"]], steps[-1])
        logger.finalize("success")
        logger.log_metrics({"test/accuracy": 1.0}, step=steps[-1])  # `test` follows `fit`
        logger.finish()
        assert not os.environ.get("WANDB_MODE")  # Lightning's own logger sets it for the whole process
    folders = sorted((directory / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    assert all(folder.name.endswith("-abc123") or "-abc123-" in folder.name for folder in folders)
    both = [history(next(folder.glob("*.wandb"))) for folder in folders]
    recorded = [row["_step"] for part in both for row in part]
    assert recorded == list(range(0, 100, 10))
    assert both[0][2]["train/loss"] == 20.0
    assert both[0][2]["val/accuracy"] == 0.2
    assert all(part[-1]["test/accuracy"] == 1.0 for part in both)
    assert all(part[-1]["picture._type"] == "image-file" for part in both)
    assert all(part[-1]["table._type"] == "table-file" for part in both)
    for folder in folders:
        content = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
        assert b"hush-hush" not in content
        assert not list((folder / "files").rglob("*.patch"))
        assert not list((folder / "files").rglob("*.py"))
        configs = {}
        for record in offline_records(next(folder.glob("*.wandb"))):
            if record.WhichOneof("record_type") == "run":
                assert (record.run.run_id, record.run.project, record.run.display_name) == (
                    "abc123",
                    "project",
                    "ants/0",
                )
                configs |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            elif record.WhichOneof("record_type") == "config":
                for item in record.config.update:
                    configs[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
        assert configs["model"] == {"lr": 0.1, "num_tokens": 7}
        assert configs["hub"] == {"api_key": "***", "url": "https://***@x.org"}
        assert configs["hparams"] == {"num_classes": 2, "token": "***"}
    said = capfd.readouterr()
    assert said.out == ""
    lines = [line for line in said.err.splitlines() if line.strip()]
    assert len(lines) == 2, lines
    assert "no login" in lines[0]
    assert f"wandb sync {folders[0]}" in lines[0]


def test_steps_of_wandb_do_not_go_back(tmp_path: Path) -> None:
    """What is late is logged with the latest step, as W&B would drop it; what an earlier process logged, not at all."""
    logged: list[tuple[dict[str, Any], int]] = []
    summary: dict[str, Any] = {}
    logger = make(tmp_path)
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "last_step").write_text("6\n")
    run = SimpleNamespace(log=lambda values, step: logged.append((values, step)), summary=summary)
    logger._open = lambda: run  # type: ignore[method-assign]
    logger.log_metrics({"a": 1.0, "text": "x"}, step=6)
    assert summary == {"a": 1.0}
    for step in (10, 7, 12):
        logger.log_metrics({"a": 0.5}, step=step)
    assert logged == [({"a": 0.5}, 10), ({"a": 0.5}, 10), ({"a": 0.5}, 12)]
    assert (tmp_path / "wandb" / "last_step").read_text() == "10\n"  # 12 may still grow
    logger.finalize("success")
    assert (tmp_path / "wandb" / "last_step").read_text() == "12\n"


def test_nothing_is_opened_before_the_data_are_set_up(clean_wandb: Path) -> None:
    logger = make(clean_wandb, mode="offline")
    logger.experiment.log({"a": 1})  # Lightning touches it before the datamodule's setup
    assert not clean_wandb.exists()
    assert pickle.loads(pickle.dumps(logger)).version == "abc123"
    logger.save()
    assert len(list((clean_wandb / "wandb").glob("offline-run-*"))) == 1
    assert logger.version == logger.experiment.id == "abc123"
    logger.finish()


@pytest.mark.parametrize("kind", ["closed", "silent"])
def test_w_and_b_is_not_asked_for_a_run_on_a_dead_server(
    clean_wandb: Path,
    opened: list[tuple[str, float, float]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    """It would try for minutes; the probe ends after some seconds."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if kind == "silent":
            server.listen(5)  # takes connections, never answers
            monkeypatch.setattr(wandb_server, "PROBE_SECONDS", 1.0)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        logger = make(clean_wandb, mode="online")
        logger.log_metrics({"a": 1.0}, step=3)
        logger.finish()
    assert [mode for mode, *_ in opened] == ["offline"]
    (folder,) = (clean_wandb / "wandb").glob("offline-run-*")
    assert [row["_step"] for row in history(next(folder.glob("*.wandb")))] == [3]
    said = capfd.readouterr().err
    assert "does not answer" in said
    assert f"wandb sync {folder}" in said


def test_a_server_that_fails_after_the_greeting(
    clean_wandb: Path,
    opened: list[tuple[str, float, float]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """It answers the probe, then refuses W&B's calls: offline under the same id, in which W&B's service must agree."""
    monkeypatch.setattr(tracking, "answers", lambda url: True)
    monkeypatch.setattr(tracking, "INIT_SECONDS", 2.0)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        logger = make(clean_wandb)
        logger.log_metrics({"a": 1.0}, step=3)
        logger.finish()
    assert opened == [(mode, 2.0, tracking.FINISH_SECONDS) for mode in ("online", "offline")]
    assert len(list((clean_wandb / "wandb").glob("offline-run-*"))) == 1
    assert "CommError" in capfd.readouterr().err


def test_a_key_without_form_is_no_reason_to_stop(
    clean_wandb: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "answers", lambda url: True)
    monkeypatch.setenv("WANDB_API_KEY", "short")
    logger = make(clean_wandb)
    logger.log_metrics({"a": 1.0}, step=3)
    logger.finish()
    assert "offline" in capfd.readouterr().err


def test_mode_and_environment(clean_wandb: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(mode: tracking.Mode) -> tracking.WandbRun | None:
        return wandb_logger(clean_wandb, Wandb(mode), name="n", run_id="i", config={})

    assert build("off") is None
    for value, expected in (("offline", "offline"), ("dryrun", "offline"), ("online", "online"), ("", "auto")):
        monkeypatch.setenv("WANDB_MODE", value)
        logger = build("auto")
        assert logger is not None
        assert logger.settings.mode == expected
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert build("auto") is None
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(ValueError, match="WANDB_MODE=ofline"):
        build("auto")
    explicit = build("offline")
    assert explicit is not None
    assert explicit.settings.mode == "offline"


@pytest.mark.parametrize(("code", "there"), [(401, True), (404, True), (500, False), (503, False)])
def test_a_server_that_refuses_is_there_and_a_broken_one_is_not(
    monkeypatch: pytest.MonkeyPatch, code: int, there: bool
) -> None:
    def refuse(url: str, timeout: float) -> Any:
        raise urllib.error.HTTPError(url, code, "", {}, None)  # type: ignore[arg-type]

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    assert wandb_server.answers("https://example.org") is there


def test_login_is_found_in_netrc(clean_wandb: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "https://wandb.example.org:8443/path"
    assert not wandb_server.has_login(url, None)
    netrc = Path(os.environ["NETRC"])
    netrc.write_text(f"machine wandb.example.org\n  login user\n  password {'a' * 40}\n")
    netrc.chmod(0o600)
    assert wandb_server.has_login(url, None)
    assert not wandb_server.has_login("https://other.example.org", None)
    netrc.write_text("rubbish rubbish")
    assert not wandb_server.has_login(url, None)
    assert wandb_server.has_login(url, "key")
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert wandb_server.has_login(url, None)


def test_masked() -> None:
    config = {
        "token": "t",
        "hf_token": ["a", None],
        "apiKey": "k",
        "access-key": {"id": 1, "on": True},
        "num_tokens": 3,
        "keypoints": "x",
        "monkey": "y",
        "class_token": True,
        "list": [{"password": "p"}, "http://u:p@h/x", "plain"],
        "db": {"DB_PASSWORD": 12, "path": Path("x")},
        3: "three",
    }
    assert masked(config) == {
        "token": "***",
        "hf_token": ["***", None],
        "apiKey": "***",
        "access-key": {"id": "***", "on": True},
        "num_tokens": 3,
        "keypoints": "x",
        "monkey": "y",
        "class_token": True,
        "list": [{"password": "***"}, "http://***@h/x", "plain"],
        "db": {"DB_PASSWORD": "***", "path": Path("x")},
        3: "three",
    }
    assert config["token"] == "t"


@pytest.mark.slow
def test_wandb_is_imported_only_when_used() -> None:
    code = (
        "import sys, pipelines.run.metrics_file, pipelines.run.tracking\n"
        "settings = pipelines.run.tracking.Wandb()\n"
        "pipelines.run.tracking.wandb_logger('x', settings, name='n', run_id='i', config={})\n"
        "sys.exit('wandb' in sys.modules)"
    )
    root = Path(tracking.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
