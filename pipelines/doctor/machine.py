"""What ``doctor`` tells of the installation and the machine, and what of it will not do."""

from __future__ import annotations

import importlib.metadata
import os
import resource
import shutil
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

import torch
from packaging.requirements import Requirement

from datamodules.common.errors import UserError
from datamodules.loaders import available_cores
from pipelines import __version__
from pipelines.advice import SHARED
from pipelines.doctor.two_ranks import TOLERANCE, difference
from pipelines.hardware import memory
from pipelines.listing import HOME
from pipelines.outputs.fonts import has_font, system_fonts
from pipelines.run.environment import environment, version_of
from pipelines.run.tracking import why_offline
from pipelines.run.wandb_server import mode_of_environment

LEAST_SHARED = 256 * 2**20  # bytes; a container has 64 MiB unless told otherwise
LEAST_FILES = 1024
RANKS_SECONDS = 90.0
#: One character of each script that pictures are most often captioned in.
SCRIPTS = {"Chinese": "中", "Japanese": "あ", "Korean": "한", "Arabic": "ع", "Hindi": "ह"}


@dataclass(frozen=True)
class Row:
    """A row of the page.

    Attributes:
        title: A word.
        lines: What was found.
        problem: What is wrong with it and what to do, a sentence; None where all is well.
    """

    title: str
    lines: list[str]
    problem: str | None = None


def rows_of_machine() -> list[Row]:
    """All that can be told without a config; some seconds."""
    found = [_packages(), _devices(), _memory(), _shared(), _files(), _disk(), _fonts(), _ranks(), _tracker()]
    return [Row("version", [_version()]), *found]


def _version() -> str:
    about = environment()
    git = f", git {about['git']}" if about["git"] else ""
    return f"pipelines {__version__}{git}, python {about['python']}, {about['platform']}"


def _packages() -> Row:
    wrong = [reason for requirement in _requirements() if (reason := _unmet(requirement))]
    versions = [f"{package} {version}" for package, version in environment()["packages"].items()]
    lines = [", ".join(versions[i : i + 4]) for i in range(0, len(versions), 4)]
    advice = "install the project again in a fresh environment"
    return Row("packages", lines, f"{'; '.join(wrong)}: {advice}." if wrong else None)


def _requirements() -> list[Requirement]:
    """What the project needs, without its extras."""
    try:
        texts = importlib.metadata.requires("vision-pipelines") or []
    except importlib.metadata.PackageNotFoundError:  # a checkout
        file = HOME / "pyproject.toml"
        texts = tomllib.loads(file.read_text(encoding="utf-8"))["project"]["dependencies"] if file.is_file() else []
    found = [Requirement(text) for text in texts]
    return [one for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]


def _unmet(requirement: Requirement) -> str | None:
    version = version_of(requirement.name)
    if version is None:
        return f"{requirement.name} is not installed"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} is {version}, but {requirement.specifier} is needed"
    return None


def _devices() -> Row:
    cores = f"CPU: {available_cores()} of {os.cpu_count()} cores, torch computes with {torch.get_num_threads()}"
    if not torch.cuda.is_available():
        unused = (
            "This machine has a GPU, but torch cannot use it (torch.cuda.is_available() is false): install a driver and"
            " a torch that fit together."
        )
        return Row("devices", [cores, "no GPU"], unused if Path("/dev/nvidia0").exists() else None)
    lines = [f"cuda:{i}: {_gpu(i)}" for i in range(torch.cuda.device_count())]
    return Row("devices", [cores, *lines], _gpu_problem())


def _gpu(index: int) -> str:
    free, total = torch.cuda.mem_get_info(index)
    properties = torch.cuda.get_device_properties(index)
    return (
        f"{properties.name}, {gib(free)} of {gib(total)} free,"
        f" compute capability {properties.major}.{properties.minor}, CUDA {torch.version.cuda}"
    )


def _gpu_problem() -> str | None:
    """A product on each GPU: a torch without kernels for it fails only there."""
    for index in range(torch.cuda.device_count()):
        try:
            ones = torch.ones(16, 16, device=f"cuda:{index}")
            assert float((ones @ ones).sum()) == 16**3
        except RuntimeError as error:
            return f"cuda:{index} does not compute ({str(error).splitlines()[0]}): install a torch that fits it."
    return None


def _memory() -> Row:
    limit, free = memory()
    return Row("memory", [f"{gib(free)} of {gib(limit)} free"])


def _shared() -> Row:
    if not SHARED.is_dir():
        return Row(str(SHARED), ["none"])
    usage = shutil.disk_usage(SHARED)
    small = (
        f"{SHARED} has {usage.free / 2**20:.0f} MiB free, in which loader processes hold their batches: give the"
        " container more (docker --shm-size 8g), or set data.num_workers to 0."
    )
    line = f"{gib(usage.free)} of {gib(usage.total)} free"
    return Row(str(SHARED), [line], small if usage.free < LEAST_SHARED else None)


def _files() -> Row:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    texts = ["any number" if limit == resource.RLIM_INFINITY else f"{limit:,}" for limit in (soft, hard)]
    few = f"Only {soft} files may be open, too few for loader processes: `ulimit -n 4096`."
    is_few = soft != resource.RLIM_INFINITY and soft < LEAST_FILES
    return Row("open files", [f"{texts[0]} may be open, at most {texts[1]}"], few if is_few else None)


def _disk() -> Row:
    free = shutil.disk_usage(".").free
    writable = os.access(".", os.W_OK)
    locked = "The working directory cannot be written: set --runs_dir to a place that can."
    return Row("disk", [f"{gib(free)} free in the working directory"], None if writable else locked)


def _fonts() -> Row:
    lacking = [script for script, character in SCRIPTS.items() if not has_font(character)]
    shown = (
        f"; none for {', '.join(lacking)} captions (fonts-noto-cjk and fonts-noto-core have them)" if lacking else ""
    )
    return Row("fonts", [f"{len(system_fonts())} beside matplotlib's{shown}"])


def _ranks() -> Row:
    start = time.monotonic()
    try:
        off = difference(RANKS_SECONDS)
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error).strip() else ''}"
        return Row(
            "two ranks",
            [f"failed ({reason})"],
            f"Two processes of this machine do not train together ({reason}): trainer.devices above 1 will not work."
            " Often the host's name does not resolve; GLOO_SOCKET_IFNAME=lo is a way around.",
        )
    line = f"gloo, 3 steps: the weights of one process (largest difference {off:.0e}), {time.monotonic() - start:.1f} s"
    wrong = f"Two ranks give other weights than one process (difference {off:.1e}): please report it."
    return Row("two ranks", [line], None if off <= TOLERANCE else wrong)


def _tracker() -> Row:
    try:
        mode = mode_of_environment()
    except UserError as error:
        return Row("tracker", ["W&B"], f"{error}.")
    if mode in ("offline", "off"):
        return Row("tracker", [f"W&B: {mode}, by WANDB_MODE"])
    reason = why_offline()
    return Row("tracker", [f"W&B: offline, {reason}" if reason else "W&B: online"])


def gib(size: float) -> str:
    """``1.5 GiB``."""
    return f"{size / 2**30:,.1f} GiB"
