"""Rows 13 and 15 and the scripts for clusters: jobs of a simulated SLURM are taken back, requeued and lose nothing."""

from __future__ import annotations

import csv
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import Callback

from pipelines import listing
from pipelines.__main__ import main
from tests.conftest import write_images
from tests.ranks import in_ranks

HOUSE = Path(__file__).parents[2]
SCRIPTS = sorted((HOUSE / "configs" / "cluster").glob("*.sh"))
CONFIG = """
model:
  class_path: Classification
  init_args:
    backbone: test_resnet
    drop_rate: 0.3
    mixup: 0.4
    optim: {{name: sgd, lr: 0.05, lr_scaling: linear, lr_base_batch: 8}}
data:
  class_path: ClassificationData
  init_args: {{source: {source}, image_size: 32, batch_size: 2, augment: {{preset: light, crop: pad}}}}
trainer:
  max_epochs: 4
  ema_decay: 0.9
  accumulate_grad_batches: 2
  save_every_n_steps: 2
  log_every_n_steps: 1
  enable_model_summary: false
  num_sanity_val_steps: 0
  val_check_interval: 4
"""
# What stands in for SLURM, in front of the PATH. srun starts the tasks on this machine, and passes signals on.
SRUN = """
import os, signal, subprocess, sys
words = sys.argv[1:]
while words[0].startswith("--"):
    words.pop(0)
tasks = []
def forward(number, _):
    for task in tasks:
        task.send_signal(number)
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, forward)
for rank in range(int(os.environ["SLURM_NTASKS"])):
    own = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0"}
    tasks.append(subprocess.Popen(words, env={**os.environ, **own}))
statuses = [task.wait() for task in tasks]
sys.exit(max(128 - status if status < 0 else status for status in statuses))
"""
SCONTROL = """#!/bin/sh
if [ "$1" = requeue ]; then echo "$2" >> requeued; else echo 127.0.0.1; fi
"""


class Beacon(Callback):
    """Says where the training is, and gives the signal time to come."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        Path(f"process.{trainer.global_rank}").write_text(str(os.getpid()))
        if trainer.is_global_zero:
            Path("step").write_text(str(trainer.global_step))
        time.sleep(0.05)


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """The environment of a job, with what stands in for SLURM."""
    programs = {
        "srun": f"#!{sys.executable}\n{SRUN}",
        "scontrol": SCONTROL,
        "python": f'#!/bin/sh\nexec {sys.executable} "$@"\n',
        "torchrun": f'#!/bin/sh\nexec {sys.executable} -m torch.distributed.run "$@"\n',
    }
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    job = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "pipelines", "SLURM_NNODES": "1", "SLURM_CPUS_PER_TASK": "2"}
    tasks = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NODELIST": "127.0.0.1"}
    places = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": f"{HOUSE}:{Path(__file__).parent}"}
    return {**os.environ, **job, **tasks, **places, "MASTER_PORT": port}


def config(tmp_path: Path) -> Path:
    counts = {"train/a": 22, "train/b": 22, "val/a": 4, "val/b": 3}
    source = write_images(tmp_path / "pictures", counts, (32, 32))
    (tmp_path / "job.yaml").write_text(CONFIG.format(source=source))
    return tmp_path / "job.yaml"


FLAGS = ["--trainer.accelerator=cpu", "--data.num_workers=1", "--trainer.enable_progress_bar=false"]


def start(script: str, environment: dict[str, str], restarts: int) -> subprocess.Popen[bytes]:
    """A job's script as SLURM starts it, in a process group of its own."""
    for path in (Path("step"), *Path().glob("process.*")):
        path.unlink(missing_ok=True)
    words = ["bash", str(HOUSE / "configs" / "cluster" / f"{script}.sh"), "job.yaml", *FLAGS]
    words += ["--name=job", f"--trainer.callbacks={__name__}.Beacon"]
    log = open(f"job.{restarts}.log", "wb")  # noqa: SIM115
    environment = {**environment, "SLURM_RESTART_COUNT": str(restarts)}
    return subprocess.Popen(words, env=environment, stdout=log, stderr=log, start_new_session=True)


def reach(step: int, job: subprocess.Popen[bytes], restarts: int) -> None:
    """Wait until the training is there."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and job.poll() is None:
        text = Path("step").read_text() if Path("step").exists() else ""
        if text and int(text) >= step:
            return
        time.sleep(0.01)
    raise AssertionError(Path(f"job.{restarts}.log").read_text())


def ended(job: subprocess.Popen[bytes]) -> int:
    """The status of a job, of which nothing goes on."""
    # torchrun gives each rank a session of its own.
    ranks = [int(path.read_text()) for path in Path().glob("process.*")]
    try:
        status = job.wait(timeout=600)
        deadline = time.monotonic() + 30
        while group_lives(job.pid) or any(map(lives, ranks)):
            assert time.monotonic() < deadline, "orphans"
            time.sleep(0.05)
    finally:
        if group_lives(job.pid):
            os.killpg(job.pid, signal.SIGKILL)
        for rank in filter(lives, ranks):
            os.kill(rank, signal.SIGKILL)
    return status


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def states(run: Path) -> list[dict]:
    return [torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True) for name in ("last", "best")]


def rows(run: Path) -> list[dict[str, str]]:
    with open(run / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def assert_the_same(run: Path, whole: Path) -> None:
    for ours, theirs in zip(states(run), states(whole), strict=True):
        assert ours["global_step"] == theirs["global_step"]
        for key in ("state_dict", "current_model_state"):
            for name, value in theirs[key].items():
                assert torch.equal(value, ours[key][name]), (key, name)
    assert rows(run) == rows(whole)


@pytest.mark.slow
def test_a_job_that_is_preempted_three_times_is_the_undisturbed_one(tmp_path: Path, cluster: dict[str, str]):
    """Time is over, then a preemption, then a node dies, and the job comes back on another machine."""
    path = config(tmp_path)
    words = ["fit", "--config", str(path), *FLAGS, "--trainer.devices=2", "--trainer.strategy=ddp", "--name=whole"]
    assert in_ranks(lambda: main([*words, "--data.num_workers=0", "--trainer.wandb.mode=off"])) == [0, 0]
    assert states(Path("runs/whole/0"))[0]["global_step"] == 24

    job = start("slurm", cluster, 0)
    reach(4, job, 0)
    os.killpg(job.pid, signal.SIGUSR1)
    assert ended(job) == 138, Path("job.0.log").read_text()
    assert Path("requeued").read_text().split() == ["4711"]
    first = states(Path("runs/job/0"))[0]["global_step"]
    assert 4 <= first < 24

    job = start("slurm", cluster, 1)
    reach(10, job, 1)
    os.killpg(job.pid, signal.SIGTERM)  # SLURM requeues it by itself
    ended(job)
    second = states(Path("runs/job/0"))[0]["global_step"]
    assert 10 <= second < 24

    job = start("slurm", cluster, 2)
    reach(16, job, 2)
    os.killpg(job.pid, signal.SIGKILL)
    ended(job)
    lock = Path("runs/job/0/run.lock")
    lock.write_text(re.sub(r"^\S+", "node17", lock.read_text()))  # of the node that has died
    assert 14 <= states(Path("runs/job/0"))[0]["global_step"] < 24

    job = start("slurm", cluster, 3)
    assert ended(job) == 0, Path("job.3.log").read_text()
    assert Path("requeued").read_text().split() == ["4711"]
    assert [path.name for path in Path("runs/job").iterdir()] == ["0"]
    assert not lock.exists()
    assert_the_same(Path("runs/job/0"), Path("runs/whole/0"))
    identity = Path("runs/job/0/wandb_id.txt").read_text().strip()
    tracked = [path.name for path in Path("runs/job/0/wandb").glob("offline-run-*")]
    assert len(tracked) == 4
    assert {name.rpartition("-")[2] for name in tracked} == {identity}


@pytest.mark.slow
def test_a_job_of_torchrun_outlives_its_ranks_and_its_launcher(tmp_path: Path, cluster: dict[str, str]):
    """Rows 14 and 17: a rank is killed, the time is over, the launcher is killed, all processes are signalled."""
    path = config(tmp_path)
    words = ["fit", "--config", str(path), *FLAGS, "--trainer.devices=2", "--trainer.strategy=ddp", "--name=whole"]
    assert in_ranks(lambda: main([*words, "--data.num_workers=0", "--trainer.wandb.mode=off"])) == [0, 0]
    one_task = {"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "RANKS_PER_NODE": "2", "WANDB_MODE": "disabled"}
    environment = {**cluster, **one_task, "RDZV_PORT": cluster["MASTER_PORT"]}

    job = start("torchrun", environment, 0)
    reach(4, job, 0)
    killed = process_of(1)
    os.kill(killed, signal.SIGKILL)
    reach(9, job, 0)
    assert process_of(1) != killed  # torchrun has started both ranks again, and they have gone on
    os.kill(job.pid, signal.SIGUSR1)  # to the script only
    ended(job)
    assert Path("requeued").read_text().split() == ["4711"], Path("job.0.log").read_text()
    assert states(Path("runs/job/0"))[0]["global_step"] >= 9

    job = start("torchrun", environment, 1)
    reach(13, job, 1)
    launcher = int(Path(f"/proc/{process_of(0)}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(launcher, signal.SIGKILL)
    seconds = time.monotonic()
    assert ended(job) != 0
    print(f"without its launcher a job ended in {time.monotonic() - seconds:.1f} s")
    assert states(Path("runs/job/0"))[0]["global_step"] >= 13

    job = start("torchrun", environment, 2)
    reach(17, job, 2)
    os.killpg(job.pid, signal.SIGTERM)
    seconds = time.monotonic()
    assert ended(job) != 0
    print(f"told to end a job ended in {time.monotonic() - seconds:.1f} s")
    assert states(Path("runs/job/0"))[0]["global_step"] >= 17

    job = start("torchrun", environment, 3)
    assert ended(job) == 0, Path("job.3.log").read_text()
    assert [path.name for path in Path("runs/job").iterdir()] == ["0"]
    assert_the_same(Path("runs/job/0"), Path("runs/whole/0"))


def process_of(rank: int) -> int:
    return int(Path(f"process.{rank}").read_text())


def test_scripts_are_shown_and_say_what_slurm_needs(capsys: pytest.CaptureFixture[str]):
    assert {path.stem for path in SCRIPTS} == set(listing.list_scripts())
    for path in SCRIPTS:
        text = path.read_text()
        assert listing.main(["scripts", path.stem]) == 0
        assert capsys.readouterr().out == text
        assert f"list scripts {path.stem} > job.sh" in text
        assert subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True).stderr == ""
        options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", text, re.MULTILINE))
        assert {"nodes", "ntasks-per-node", "gres", "cpus-per-task", "time", "requeue"} <= options.keys()
        assert options["open-mode"] == "append"
        assert re.fullmatch(r"(B:)?USR1@\d+", options["signal"])
        assert "--resume auto" in text
        assert 'scontrol requeue "$SLURM_JOB_ID"' in text
    assert listing.main(["scripts"]) == 0
    assert "A SLURM job with one task per GPU" in capsys.readouterr().out
