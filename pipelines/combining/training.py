"""Trains the members: each is a stage that is done once and found again."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.base import DataModule
from datamodules.common.errors import UserError
from datamodules.common.files import read_json, write_json
from datamodules.folds import fold_numbers
from datamodules.groups import by_group
from datamodules.splits import left_out
from pipelines.combining.measuring import MEASURE, flags_of_measure
from pipelines.combining.settings import Members
from pipelines.combining.votes import samme
from pipelines.config.allowed import trust_flags
from pipelines.config.carried import packages_of
from pipelines.report import images
from pipelines.report.measured import Measured, read
from pipelines.run.student import export
from pipelines.stages.fits import best_of, fit_in, flags_of_test, grouped, outcome, words_of
from pipelines.stages.launching import StageCommand, run_command
from pipelines.stages.manifest import Output, Outputs, digest_of, run_stage, say

PROGRAM = "ensemble"
OUT = "left_out"  # of a split file: training images that a member does not see
SPLITS = ("val", "test")
SNAPSHOT = "snapshot-{epoch}"


@dataclass(frozen=True)
class Member:
    """A model, and what was measured of it.

    Attributes:
        name: Of it.
        checkpoints: Its file; of an ensemble several.
        outputs: ``val`` and ``test``, what was measured there.
        alpha: Its weight in the vote, of a boosted one.
    """

    name: str
    checkpoints: list[Path]
    outputs: Outputs
    alpha: float | None = None
    _read: dict[str, Measured] = field(default_factory=dict, repr=False)

    def measured(self, split: str) -> Measured:
        """What was measured on a split."""
        if split not in self._read:
            self._read[split] = read(self.outputs[split].path)
        return self._read[split]


@dataclass(frozen=True)
class Work:
    """Where and how an ensemble is made.

    Attributes:
        root: Its folder.
        config: Of one training.
        data: The data, set up.
        members: What is asked for.
        launch: Words before each command.
        at_once: Members that are trained side by side.
    """

    root: Path
    config: dict[str, Any]
    data: DataModule
    members: Members
    launch: str | None
    at_once: int

    @property
    def seed(self) -> int:
        """Of the first member."""
        return int(self.config.get("seed_everything") or 0)

    def stage(self, name: str, key: dict[str, Any], inputs: Outputs, work: Callable[[Path], dict[str, str]]) -> Outputs:
        """Do a stage, see ``manifest.run_stage``."""
        return run_stage(self.root / name, key, inputs, work, PROGRAM)

    def run(self, command: StageCommand, words: list[str]) -> None:
        """Run a command that trains nothing, where the trainings run."""
        quiet = ["--trainer.wandb.mode=off", "--trainer.enable_progress_bar=false"]
        given = [word for word in flags_of_test(self.config) if "report" not in word and "progress" not in word]
        trust = trust_flags(packages_of(self.config))
        run_command(command, [*words, *given, *quiet, *trust], words_of(self.launch))

    def measure(self, checkpoints: list[Path], folder: Path, splits: tuple[str, ...] = SPLITS) -> dict[str, str]:
        """Measure a checkpoint, or several together, on splits; the files, by split."""
        self.run(MEASURE, flags_of_measure(checkpoints, folder, list(splits)))
        return {split: f"{split}_images.npz" for split in splits}


def train_members(work: Work) -> list[Member]:
    """All members, trained and measured, or as they were left before."""
    if work.members.by == "boosting":
        return _boosted(work)
    if work.members.by == "snapshot":
        return _snapshots(work)
    if work.at_once == 1:  # in the main thread, where a training saves its state when it is told to end
        return [_one(work, number) for number in range(work.members.size)]
    with ThreadPoolExecutor(work.at_once) as pool:
        return list(pool.map(lambda number: _one(work, number), range(work.members.size)))


def _one(work: Work, number: int) -> Member:
    """A member that does not depend on the others."""
    name, own, inputs = f"member{number}", _config_of(work, number), {}
    if work.members.by in ("fold", "bagging"):
        draw = _left_out_fold if work.members.by == "fold" else _bootstrap
        inputs = draw(work, number, own)

    def train(folder: Path) -> dict[str, str]:
        return _fit(work, folder, own)

    outputs = work.stage(name, outcome(own), inputs, train)
    networks = work.members.backbones or []
    is_told = networks and networks.count(networks[number]) == 1
    return Member(networks[number] if is_told else name, [outputs["checkpoint"].path], outputs)


def _config_of(work: Work, number: int) -> dict[str, Any]:
    """The config of one member's training."""
    own = copy.deepcopy(work.config)
    own["seed_everything"] = work.seed + number
    own["trainer"] = grouped(own["trainer"], work.root.name, "member") | {"report": False}
    if work.members.backbones is not None:
        own["model"]["init_args"]["backbone"] = work.members.backbones[number]
    return own


def _fit(work: Work, folder: Path, config: dict[str, Any], splits: tuple[str, ...] = SPLITS) -> dict[str, str]:
    """Train, keep the checkpoint, and measure it."""
    run = fit_in(folder, config, work.launch)
    export(best_of(run), folder / "member.ckpt")
    return {"checkpoint": "member.ckpt", **work.measure([folder / "member.ckpt"], folder, splits)}


# Which training images a member sees, and how much they count.


def _left_out_fold(work: Work, number: int, config: dict[str, Any]) -> Outputs:
    """All training images but those of one fold."""
    records = work.data.records["train"]
    folds = fold_numbers(records, work.members.count, work.seed)
    seen = [record["path"] for record, fold in zip(records, folds, strict=True) if fold != number]
    return _write_shares(work, number, config, dict.fromkeys(seen, 1.0))


def _bootstrap(work: Work, number: int, config: dict[str, Any]) -> Outputs:
    """As many images as there are, drawn with replacement, whole groups together; one drawn twice counts twice."""
    records = work.data.records["train"]
    units = [[r["path"]] for r in records if "group" not in r]
    units += [[r["path"] for r in own] for _, own in sorted(by_group(records).items())]
    drawn = np.random.default_rng([work.seed, number]).integers(0, len(units), len(units))
    counts = Counter(drawn.tolist())
    weights = {path: float(count) for unit, count in counts.items() for path in units[unit]}
    mean = sum(weights.values()) / len(weights)  # of the loss: 1, or the learning rate would be another
    return _write_shares(work, number, config, {path: weight / mean for path, weight in weights.items()})


def _write_shares(work: Work, number: int, config: dict[str, Any], weights: dict[str, float]) -> Outputs:
    """Write the splits and the weights of a member, and name them in its config."""
    folder = work.root / "shares"
    listed = {split: [record["path"] for record in own] for split, own in work.data.records.items() if own}
    out = left_out(getattr(work.data, "split_file", None), listed)
    train = listed.pop("train")
    split = {"train": [p for p in train if p in weights], OUT: [p for p in train if p not in weights] + out, **listed}
    files = {"split_file": folder / f"split{number}.json"}
    write_json(files["split_file"], split)
    if set(weights.values()) != {1.0}:
        files["weight_file"] = folder / f"weights{number}.json"
        write_json(files["weight_file"], weights)
    config["data"]["init_args"] |= {key: str(file) for key, file in files.items()}
    return {key: Output(file, digest_of(file)) for key, file in files.items()}


# Members that depend on those before.


def _boosted(work: Work) -> list[Member]:
    """AdaBoost.SAMME: each member is trained on images that weigh more the more often they were wrong."""
    paths = [record["path"] for record in work.data.records["train"]]
    classes = len(work.data.class_names or ())
    weights = np.ones(len(paths))
    members: list[Member] = []
    for number in range(work.members.count):
        own = _config_of(work, number)
        inputs = _write_shares(work, number, own, dict(zip(paths, weights.tolist(), strict=True)))

        def train(folder: Path, own: dict[str, Any] = own) -> dict[str, str]:
            return _fit(work, folder, own, ("train", *SPLITS))

        name = f"member{number}"
        outputs = work.stage(name, outcome(own), inputs, train)
        seen = read(outputs["train"].path)
        place = {path: i for i, path in enumerate(seen.arrays["path"].tolist())}
        wrong = ~images.right(seen)[[place[path] for path in paths]]
        error, alpha, weights = samme(weights, wrong, classes, work.members.shrinkage)
        say(f"{name}: weighted error {error:.4f} on the training images, alpha {alpha:.3f}", PROGRAM)
        if alpha <= 0:
            say(f"{name} is no better than chance on its weighted images: it is left out, and boosting ends", PROGRAM)
            break
        is_perfect = math.isinf(alpha)
        counted = work.members.shrinkage * _largest(len(paths)) if is_perfect else alpha
        members.append(Member(name, [outputs["checkpoint"].path], outputs, counted))
        if is_perfect:
            say(f"{name} has every training image right: there is nothing to weigh anew, and boosting ends", PROGRAM)
            break
    return _enough(members)


def _largest(number: int) -> float:
    """A finite alpha for a member without an error on so many images: that of half an error."""
    return math.log(2 * number - 1)


def _enough(members: list[Member]) -> list[Member]:
    """At least two.

    Raises:
        UserError: If there are fewer.
    """
    if len(members) < 2:
        raise UserError(
            f"members.by is 'boosting', but it ended with {len(members)} member(s), for the reason above: a member"
            " must have some training images wrong, and fewer than chance. Take a smaller net or fewer epochs, more"
            " augmentation, or another members.by."
        )
    return members


def _snapshots(work: Work) -> list[Member]:
    """One training with as many cycles as there are members."""
    own = _config_of(work, 0)
    own["model"]["init_args"]["optim"] = {
        **(own["model"]["init_args"].get("optim") or {}),
        "cycles": work.members.count,
    }
    every = own["trainer"]["max_epochs"] // work.members.count
    saves = {"filename": SNAPSHOT, "every_n_epochs": every, "save_top_k": -1, "save_on_train_epoch_end": True}
    keeping = {"class_path": "pytorch_lightning.callbacks.ModelCheckpoint", "init_args": saves}
    own["trainer"]["callbacks"] = [*(own["trainer"].get("callbacks") or []), keeping]

    def train(folder: Path) -> dict[str, str]:
        run = fit_in(folder, own, work.launch)
        found = sorted((run / "checkpoints").glob("snapshot-*.ckpt"), key=_epoch_of)
        files = {}
        for number, file in enumerate(found[: work.members.count]):
            export(file, folder / f"snapshot{number}.ckpt")
            measured = work.measure([folder / f"snapshot{number}.ckpt"], folder / f"snapshot{number}")
            files[f"snapshot{number}"] = f"snapshot{number}.ckpt"
            files |= {f"{split}{number}": f"snapshot{number}/{name}" for split, name in measured.items()}
        return files

    outputs = work.stage("training", outcome(own), {}, train)
    return [
        Member(
            f"snapshot{number}",
            [outputs[f"snapshot{number}"].path],
            {split: outputs[f"{split}{number}"] for split in SPLITS},
        )
        for number in range(work.members.count)
    ]


def _epoch_of(file: Path) -> int:
    return int(file.stem.rpartition("=")[2])


def seconds(root: Path) -> dict[str, float]:
    """How long each stage took."""
    found = {path.parent.name: read_json(path)["seconds"] for path in sorted(root.glob("*/manifest.json"))}
    return {name: value for name, value in found.items() if not name.endswith(".replaced")}
