"""The loop: stages that are never repeated, kills that change nothing, checkpoints that are ordinary, the report."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from datamodules import ClassificationData
from datamodules.common.errors import UserError
from datamodules.readers.lists import read_paths
from pipelines.__main__ import main
from pipelines.noisy_student import command, data_stage, evaluation, stages
from pipelines.noisy_student import loop as loop_module
from pipelines.noisy_student.kinds import boxes, images
from pipelines.noisy_student.kinds.base import Kind
from pipelines.noisy_student.loop import best_generation, stage_seed, steps_per_epoch, with_content
from pipelines.noisy_student.reading import read_settings
from pipelines.noisy_student.results import TrainedModel
from pipelines.noisy_student.settings import Settings, StudentSettings, TeacherSettings, trainer_of
from pipelines.run.checkpoints import read_checkpoint_config
from pipelines.stages import launching, manifest
from pipelines.stages.fits import num_devices
from tasks import NoisyStudent
from tests.conftest import in_child, write_images

CONFIG = """
data:
  class_path: ClassificationData
  init_args: {{source: {source}, image_size: 32, batch_size: 4, num_workers: 0, augment: {{preset: none}}}}
labels_per_class: 4
teacher:
  model:
    class_path: Classification
    init_args: {{backbone: test_resnet, optim: {{lr: 3.0e-3}}}}
  trainer: {{max_epochs: 3}}
students:
  - model:
      class_path: Classification
      init_args: {{backbone: test_resnet, drop_rate: 0.2, drop_path_rate: 0.1, optim: {{lr: 3.0e-3}}}}
    data: {{augment: {{preset: rand, crop: none, rand_magnitude: 5}}}}
    ratio: 2
    trainer: {{max_epochs: 2, save_every_n_steps: 2}}
selection: {{balance: true}}
controls: true
trainer:
  accelerator: cpu
  num_sanity_val_steps: 0
  enable_progress_bar: false
  enable_model_summary: false
  wandb: {{mode: "off"}}
"""
STAGES = ["data", "labels1", "labels_only", "no_noise", "relabelled", "selection1", "student1", "teacher"]


def loop(runs: str | Path, config: Path, *flags: str) -> int:
    return command.main(["--config", str(config), "--runs_dir", str(runs), "--name", "loop", *flags])


def digests(runs: str | Path) -> dict[str, dict]:
    """Stage -> digests of what it left; no times."""
    found = Path(runs, "loop", "seed0").glob("*/manifest.json")
    manifests = {p.parent.name: json.loads(p.read_text()) for p in found if not p.parent.name.endswith(".replaced")}
    return {name: {k: v["digest"] for k, v in m["outputs"].items()} for name, m in sorted(manifests.items())}


def stage(runs: str | Path, name: str) -> Path:
    return Path(runs, "loop", "seed0", name)


def count_opened(limit: int | None, result: Path | None = None) -> None:
    """Kill this process when it opens, renames or makes its `limit`-th file; or count them into a file."""
    seen = [0]

    def hook(event: str, arguments: tuple) -> None:
        if event in ("open", "os.rename", "os.mkdir"):
            seen[0] += 1
            if seen[0] == limit:
                os.kill(os.getpid(), signal.SIGKILL)
            if result is not None and seen[0] % 50 == 0:
                counts.write(f"{seen[0]}\n")
                counts.flush()

    counts = open(result, "w") if result is not None else sys.stdout  # noqa: SIM115
    sys.addaudithook(hook)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A finished, undisturbed loop in `whole`, its config, its data, and the number of files it opened."""
    root = tmp_path_factory.mktemp("loop")
    counts = {f"{split}/{name}": n for split, n in (("train", 12), ("val", 4), ("test", 5)) for name in ("ant", "bee")}
    write_images(root / "pictures", counts, (32, 32))
    (root / "loop.yaml").write_text(CONFIG.format(source=root / "pictures"))

    def work() -> int:
        count_opened(None, root / "opened.txt")
        return loop(root / "whole", root / "loop.yaml")

    assert in_child(work) == 0
    return root


def test_every_stage_leaves_its_files_and_the_report_says_what_they_hold(world):
    assert list(digests(world / "whole")) == STAGES
    root = world / "whole" / "loop"
    report = json.loads((root / "report.json").read_text())
    assert [row["name"] for row in report["rows"]] == ["teacher", "student1", "labels_only", "no_noise"]
    truth = json.loads((stage(world / "whole", "data") / "truth.json").read_text())
    assert (report["labelled"], report["pool"], report["images"]) == (8, 16, 10)
    for row in report["rows"]:
        right = images.correct(stage(world / "whole", row["name"]) / "test.parquet", truth["test"])
        assert row["mean"] == pytest.approx(right.mean())
        assert row["low"] <= row["mean"] <= row["high"]
    means = {row["name"]: row["mean"] for row in report["rows"]}
    gains = {row["name"]: row["mean"] for row in report["differences"]}
    assert gains["unlabeled data"] == pytest.approx(means["student1"] - means["labels_only"])
    assert gains["noise"] == pytest.approx(means["student1"] - means["no_noise"])
    assert gains["size, noise, steps"] == pytest.approx(means["labels_only"] - means["teacher"])
    account = report["pseudo_labels"][0][0]
    assert account["precision"] is not None  # the truth of hidden labels is known
    assert len(set(account["taught_as"].values()) - {0}) == 1  # balanced
    page = (root / "report.html").read_text()
    assert "<svg" in page
    assert "http" not in page  # one file, no links
    # A student and its controls take the same number of steps.
    names = ("student1", "labels_only", "no_noise")
    steps = {torch.load(stage(world / "whole", n) / "student.ckpt", weights_only=True)["global_step"] for n in names}
    assert len(steps) == 1


def test_the_same_command_repeats_nothing(world, capfd):
    """Nor does one that differs in what is shown and saved only."""
    before = {p: p.stat().st_mtime_ns for p in (world / "whole").rglob("*.ckpt")}
    shown = ["--trainer.log_every_n_steps", "7", "--trainer.enable_model_summary", "true"]
    assert in_child(lambda: loop(world / "whole", world / "loop.yaml", *shown)) == 0
    assert {p: p.stat().st_mtime_ns for p in (world / "whole").rglob("*.ckpt")} == before
    said = capfd.readouterr().out
    assert said.count("done before") == len(STAGES)
    assert re.search(r"^accuracy on \d+ test images, .*, intervals of 95 %$", said, re.MULTILINE)
    assert re.search(
        r"^  gain +[+-]0\.\d{4}  \[[+-]\d\.\d{4}, .*the last student over the teacher$", said, re.MULTILINE
    )
    used = re.findall(r"^use it: .* predict --ckpt_path (.*) --source PICTURES$", said, re.MULTILINE)
    assert len(used) == 1
    assert Path(used[0]).is_file()


def test_fit_with_the_loops_config_runs_one_generation_that_the_loop_takes_as_it_is(world, capfd):
    shutil.copytree(world / "whole", "fitted")
    for name in ("student1", "labels_only", "no_noise", "relabelled"):
        shutil.rmtree(stage("fitted", name))
    words = ["fit", "--config", str(world / "loop.yaml"), "--runs_dir", "fitted", "--name", "loop"]
    assert in_child(lambda: main([*words, "--seeds", "[0, 1]"])) == 0
    whole = digests(world / "whole")
    assert digests("fitted") == {name: whole[name] for name in STAGES if name not in ("labels_only", "no_noise")}
    assert capfd.readouterr().out.count("done before") == 4
    assert not Path("fitted", "loop", "seed1").exists()
    config = read_checkpoint_config(stage("fitted", "student1") / "student.ckpt")
    assert config["model"]["class_path"].endswith("Classification")


def test_a_changed_config_restarts_what_depends_on_it_and_says_so(world, capfd):
    shutil.copytree(world / "whole", "changed")
    flags = ["--selection.per_class", "9", "--controls", "false"]
    assert in_child(lambda: loop("changed", world / "loop.yaml", *flags)) == 0
    said = capfd.readouterr().out
    assert "seed0/selection1: selection.per_class was None and is 9; done again" in said
    assert re.search(r"seed0/student1: .*; done again", said)
    assert all(f"seed0/{name}: done before" in said for name in ("data", "teacher", "labels1"))
    old, new = digests(world / "whole"), digests("changed")
    assert {n for n in old if old[n] != new[n]} == {"selection1", "student1", "relabelled"}
    assert stage("changed", "student1.replaced").is_dir()


def disturbed(world: Path, kills: int, seed: int) -> None:
    """Kill the loop at random moments, always go on with the same command, and compare what it leaves."""
    total = int((world / "opened.txt").read_text().split()[-1])
    rng = np.random.default_rng(seed)

    def work(limit: int | None) -> int:
        count_opened(limit)
        return loop("cut", world / "loop.yaml")

    statuses = [in_child(lambda: work(limit)) for limit in rng.integers(1, total // 2, kills).tolist()]  # noqa: B023
    assert -signal.SIGKILL in statuses
    assert in_child(lambda: work(None)) == 0
    assert digests("cut") == digests(world / "whole")
    assert list(Path("cut").rglob(".*.parquet.parts-*")) == []


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_outputs(world):
    disturbed(world, kills=3, seed=0)


@pytest.mark.slow
def test_killed_at_twenty_random_moments_it_ends_with_the_same_outputs(world):
    disturbed(world, kills=20, seed=1)


def test_a_student_killed_inside_an_epoch_goes_on_exactly(world):
    shutil.copytree(world / "whole", "cut")
    shutil.rmtree(stage("cut", "student1"))

    def work() -> int:
        steps, original = [], NoisyStudent.training_step

        def step(self, batch, batch_idx):
            steps.append(1)
            if len(steps) == 4:  # saved behind 2 steps of an epoch of 4
                os.kill(os.getpid(), signal.SIGKILL)
            return original(self, batch, batch_idx)

        NoisyStudent.training_step = step
        return loop("cut", world / "loop.yaml")

    assert in_child(work) == -signal.SIGKILL
    (saved,) = stage("cut", "student1").rglob("last.ckpt")
    assert torch.load(saved, weights_only=True)["global_step"] == 2
    assert in_child(lambda: loop("cut", world / "loop.yaml")) == 0
    assert digests("cut") == digests(world / "whole")


def test_a_students_checkpoint_is_an_ordinary_one(world):
    student = stage(world / "whole", "student1") / "student.ckpt"
    carried = yaml.safe_load(torch.load(student, weights_only=True)["config"])
    assert carried["model"]["class_path"].endswith("Classification")
    quiet = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    off = ["--trainer.wandb.mode", "off"]

    def work() -> int:
        pool = str(world / "pictures" / "test" / "ant")
        statuses = [
            main(["test", "--ckpt_path", str(student), "--name", "t", *quiet]),
            main(["predict", "--ckpt_path", str(student), "--source", pool, "--output", "p", *quiet]),
            main(["probe", "--ckpt_path", str(student), "--name", "probe", *quiet, *off]),
        ]
        return sum(statuses)

    assert in_child(work) == 0
    tested = json.loads((student.parent / "0" / "test.json").read_text())  # in the run that it comes from
    report = json.loads((world / "whole" / "loop" / "report.json").read_text())
    row = next(row for row in report["rows"] if row["name"] == "student1")
    assert tested["test/accuracy"] == pytest.approx(row["mean"])
    assert len(Path("p/predictions.csv").read_text().splitlines()) == 1 + 5
    assert (Path("runs/probe/0/checkpoints/best.ckpt")).exists()


def test_no_student_starts_from_its_teacher(world, capfd):
    config = stage(world / "whole", "student1") / "config.yaml"
    assert "teacher" not in config.read_text()
    teacher = stage(world / "whole", "teacher") / "teacher.ckpt"
    words = ["fit", "--config", str(config), "--name", "warm", "--ckpt_path", str(teacher)]
    assert in_child(lambda: main(words)) == 2
    assert "a noisy student starts from scratch" in capfd.readouterr().err
    # The net as it starts is that of the run's seed alone, whatever the teacher's weights are.
    first, student = (
        torch.load(p, weights_only=True)["state_dict"]
        for p in (teacher, stage(world / "whole", "student1") / "student.ckpt")
    )
    assert not torch.equal(first["network.fc.weight"], student["network.fc.weight"])


def test_pool_hygiene_is_by_content(tmp_path):
    """The same pixels under another name and in another format."""
    write_images(tmp_path / "pictures", {"train/a": 2, "val/a": 2, "train/b": 2, "val/b": 2}, (32, 32))
    data = ClassificationData(str(tmp_path / "pictures"), image_size=32, batch_size=2)
    data.setup("fit")
    evaluated = data.records["val"]
    pixels = cv2.imread(evaluated[1]["path"])
    cv2.imwrite(str(tmp_path / "innocent.bmp"), pixels)
    cv2.imwrite(str(tmp_path / "other.bmp"), 255 - pixels)
    pool = [{"image": str(tmp_path / n), "path": str(tmp_path / n)} for n in ("innocent.bmp", "other.bmp")]
    with pytest.raises(UserError, match=rf"1 of 2 images of the pool .*innocent.bmp is {evaluated[1]['path']}"):
        data_stage.without_overlap(pool, evaluated, data, "error")
    assert data_stage.without_overlap(pool, evaluated, data, "remove") == pool[1:]


def test_a_teacher_that_is_trained_already_is_taken(world):
    """Its checkpoint carries its data's splits; it is evaluated on the loop's."""
    config = yaml.safe_load((world / "loop.yaml").read_text())
    teacher = stage(world / "whole", "teacher") / "teacher.ckpt"
    config |= {"teacher": {"checkpoint": str(teacher)}, "controls": False, "labels_per_class": 5}
    Path("taken.yaml").write_text(yaml.safe_dump(config))
    assert in_child(lambda: loop("taken", Path("taken.yaml"))) == 0
    ours, theirs = digests("taken"), digests(world / "whole")
    assert {k: ours["teacher"][k] for k in ("teacher", "val", "test")} == theirs["teacher"]
    assert not list(stage("taken", "teacher").rglob("last.ckpt"))  # nothing was trained


def test_corrected_labels_and_replaced_pictures_count():
    """The files of the data stage name them; what is in them goes into the digests that later stages ask for."""
    write_images(Path("pictures"), {f"{s}/{c}": 4 for s in ("train", "val") for c in "ab"}, (8, 8))
    write_images(Path("pool"), {"x": 2}, (9, 9))
    Path("loop.yaml").write_text(CONFIG.format(source="pictures").replace("labels_per_class: 4", "pool: pool"))

    def found() -> dict[str, str]:
        settings = read_settings(["noisy-student", "--config", "loop.yaml"])
        made = data_stage.data_settings(settings, data_stage.read_data(settings), 0)
        files = {name: manifest.Output(Path(name), "the same") for name in ("split", "pool", "truth")}
        return {name: output.digest for name, output in with_content(files, made).items()}

    first = found()
    assert found() == first
    write_images(Path("pool"), {"x": 1}, (10, 10))
    second = found()
    assert [name for name in first if first[name] != second[name]] == ["pool"]
    shutil.move("pictures/train/a/000.jpg", "pictures/train/b/corrected.jpg")
    assert not set(found().values()) & {*first.values(), *second.values()}


def test_a_changed_view_of_the_same_weights_labels_again(world):
    """Weights alone do not tell what a teacher says: its config is among what the labels depend on."""
    keys = {p.parent.name: json.loads(p.read_text())["key"] for p in (world / "whole").rglob("manifest.json")}
    for name in ("labels1", "relabelled"):
        assert {"model", "data"} == keys[name]["settings"]["teacher"].keys()


def test_pool_is_read_where_it_is_and_bad_files_are_left_out_by_choice(capfd):
    """A folder named like the loop's own, names with #, and a broken file."""
    write_images(
        Path("pictures"), {"train/a": 4, "val/a": 2, "test/a": 2, "train/b": 4, "val/b": 2, "test/b": 2}, (8, 8)
    )
    write_images(Path("pool"), {"x": 3}, (9, 9))
    first, second, *_ = sorted(Path("pool/x").iterdir())
    first.rename(first.with_name("a#0" + first.suffix))
    second.write_bytes(b"")
    Path("loop.yaml").write_text(CONFIG.format(source="pictures").replace("labels_per_class: 4", "pool: pool"))
    Path("made").mkdir()
    settings = read_settings(["noisy-student", "--config", "loop.yaml"])
    with pytest.raises(ValueError, match=r"1 image file\(s\) cannot be read:\n  pool/x/.*the file is empty"):
        data_stage.make_data(Path("made"), settings, data_stage.read_data(settings), 0)
    settings = read_settings(["noisy-student", "--config", "loop.yaml", "--data.on_corrupt", "skip"])
    data_stage.make_data(Path("made"), settings, data_stage.read_data(settings), 0)
    assert "1 images of the pool cannot be read and are left out" in capfd.readouterr().out
    records = read_paths(Path("made/pool.parquet"))
    assert {Path(r["image"]).name for r in records} == {"002.jpg", "a#0.jpg"}
    assert all(Path(r["image"]).is_file() for r in records)


def test_a_teacher_that_saw_the_evaluated_images_is_refused(world):
    config = yaml.safe_load((world / "loop.yaml").read_text())
    teacher = stage(world / "whole", "teacher") / "teacher.ckpt"
    config["teacher"] = {"checkpoint": str(teacher)}
    Path("taken.yaml").write_text(yaml.safe_dump(config))
    settings = read_settings(["noisy-student", "--config", "taken.yaml"])
    data = data_stage.read_data(settings)
    data.records["test"].append(data.records["train"][0])  # which one the teacher was shown is drawn
    data.records["test"] += data.records["train"][1:]
    Path("taken").mkdir()
    with pytest.raises(UserError, match=r"was trained on \d+ of the validation and test images, among them"):
        stages.take_teacher(Path("taken"), settings, data, [teacher])


def test_a_flag_that_a_part_overrules_is_refused(tmp_path):
    path = tmp_path / "loop.yaml"
    path.write_text(CONFIG.format(source="digits"))
    with pytest.raises(UserError, match=r"--trainer.max_epochs is 9, but teacher.trainer and students.0.trainer"):
        read_settings(["noisy-student", "--config", str(path), "--trainer.max_epochs", "9"])
    assert read_settings(["noisy-student", "--config", str(path), "--trainer.gradient_clip_val", "1"]).trainer


def test_a_launched_stage_is_a_command_of_its_own():
    recorder = [sys.executable, "-c", "import sys, json; json.dump(sys.argv[1:], open('argv.json', 'w'))"]
    launching.run_command(stages.FIT, ["--config", "x.yaml"], recorder)
    assert json.loads(Path("argv.json").read_text()) == [sys.executable, "-m", "pipelines", "fit", "--config", "x.yaml"]
    with pytest.raises(manifest.StageError, match=r"`fit` ended with status 3"):
        launching.run_command(stages.FIT, [], [sys.executable, "-c", "import sys; sys.exit(3)"])


def test_the_best_generation_is_that_of_the_best_score_and_of_equal_ones_the_earliest():
    assert best_generation([0.5, 0.7, 0.6]) == 1
    assert best_generation([0.5, 0.4, 0.6, 0.6]) == 2
    assert best_generation([0.5, 0.5, 0.4]) == 0  # none beats the teacher
    assert best_generation([0.5]) == 0


class Recorded:
    """The stages of a seed, whose models have the given scores; it keeps what it was asked for."""

    kind = images.IMAGES
    found: dict = {}  # noqa: RUF012 - never changed

    def __init__(self, scores: list[float]) -> None:
        self.scores, self.calls = scores, []

    def model(self, name: str) -> TrainedModel:
        return TrainedModel(name, {}, {}, self.scores[int(name[-1])] if name.startswith("student") else self.scores[0])

    def teacher(self) -> TrainedModel:
        return self.model("teacher")

    def label(self, name: str, model: TrainedModel, *, soft: bool = False) -> dict:
        self.calls.append((name, model.name))
        return {}

    def select(self, name: str, teacher: TrainedModel, labels: dict) -> dict:
        self.calls.append((name, teacher.name))
        return {}

    def student(self, name: str, generation: int, selection: dict, **control: bool) -> TrainedModel:
        self.calls.append((name, generation, *control.items()))
        return self.model(name)


@pytest.mark.parametrize(
    ("scores", "min_gain", "generations", "best"),
    [
        ([0.5, 0.625, 0.875], 0.0, 2, 2),
        ([0.5, 0.625, 0.875], 0.125, 1, 1),  # as much is not more
        ([0.5, 0.75, 0.75, 0.875], 0.0, 2, 1),  # a gain over the generation before, not over the teacher
        ([0.5, 0.375, 0.25], -1.0, 2, 0),
    ],
)
def test_generations_end_where_they_gain_too_little_and_controls_are_of_the_last(
    monkeypatch, scores, min_gain, generations, best
):
    recorded = Recorded(scores)
    monkeypatch.setattr(loop_module, "start", lambda *arguments: recorded)
    students = [StudentSettings(model={}) for _ in scores[1:]]
    settings = Settings(data={}, teacher=TeacherSettings(), students=students, min_gain=min_gain, controls=True)
    found = loop_module.run_seed(Path("seed0"), settings, ClassificationData(), 0)
    assert (len(found.selections), found.best, found.last.name) == (generations, best, f"student{generations}")
    expected = [("labels1", "teacher"), ("selection1", "teacher"), ("student1", 1)]
    if generations == 2:
        expected += [("labels2", "student1"), ("selection2", "student1"), ("student2", 2)]
    expected += [("labels_only", generations, ("pseudo_labels", False)), ("no_noise", generations, ("noise", False))]
    assert recorded.calls == [*expected, ("relabelled", f"student{generations}")]


def test_each_generation_of_each_seed_draws_anew():
    seeds = [stage_seed(seed, generation) for seed in range(4) for generation in range(4)]
    assert len(set(seeds)) == 16
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert stage_seed(0, 1) == 417858773  # as ever: a finished training is not repeated


@pytest.mark.parametrize(
    ("student", "steps"),
    [
        ({}, 25),  # 100 images, 4 at once
        ({"ratio": 3}, 8),  # 12 at once
        ({"data": {"batch_size": 10}}, 10),
        ({"data": {"batch_size": 10}, "ratio": 2, "trainer": {"devices": 2}}, 2),
        ({"ratio": 200}, 1),
        ({"data": {"batch_size": None}}, 12),  # 8 at once, with 64 labeled images
    ],
)
def test_an_epoch_is_one_pass_over_the_selected_images(tmp_path, student, steps):
    (tmp_path / "selection.json").write_text('{"images": 100, "kept": 7, "pool": 999}')
    selected = {"account": manifest.Output(tmp_path / "selection.json", "")}
    settings = Settings(data={}, teacher=TeacherSettings(), students=[], launch=["srun"], trainer={"devices": 1})
    part = StudentSettings(model={}, **student)
    data = ClassificationData(batch_size=None if "batch_size" in part.data and not part.data["batch_size"] else 4)
    (tmp_path / "split.json").write_text(json.dumps({"train": ["a picture"] * 64}))
    split = manifest.Output(tmp_path / "split.json", "")
    assert steps_per_epoch(settings, data, part, selected, split) == steps


def test_a_checkpoints_digest_is_of_its_weights_and_of_nothing_else(tmp_path):
    weights = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}

    def digest(state: dict, **more: object) -> str:
        torch.save({"state_dict": state, **more}, tmp_path / "x.ckpt")
        return manifest.digest_of(tmp_path / "x.ckpt")

    first = digest(weights, path="one")
    assert digest(dict(reversed(weights.items())), path="another") == first
    others = [
        {**weights, "a": torch.tensor([1.0, 2.5])},  # a value
        {**weights, "b": torch.tensor([3.0], dtype=torch.float64)},  # a type
        {**weights, "b": torch.tensor([[3.0]])},  # a shape
        {"a": weights["a"], "c": weights["b"]},  # a name
        {"a": weights["b"], "b": weights["a"]},  # values swapped
        {**weights, "c": torch.zeros(0)},  # an empty one
    ]
    assert len({first, *(digest(state) for state in others)}) == 1 + len(others)
    (tmp_path / "x.json").write_text("one")
    (tmp_path / "y.json").write_text("two")
    assert manifest.digest_of(tmp_path / "x.json") != manifest.digest_of(tmp_path / "y.json")


def test_ranks_are_refused(monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert command.main(["--config", "x.yaml"]) == 2
    assert "is one process, but LOCAL_RANK is set" in capsys.readouterr().err


def test_flags_speak_of_what_the_config_names(tmp_path):
    path = tmp_path / "loop.yaml"
    path.write_text(CONFIG.format(source="digits"))
    flags = ["--data.val_fraction", "0.3", "--teacher.model.backbone", "lenet5", "--selection.threshold", "0.5"]
    flags += ["--trainer.wandb.mode", "off"]  # a word, as for the other commands
    settings = read_settings(["noisy-student", "--config", str(path), *flags])
    assert settings.data["init_args"]["val_fraction"] == 0.3
    assert settings.data["init_args"]["source"] == "digits"
    assert settings.teacher.model["init_args"]["backbone"] == "lenet5"
    assert settings.selection.threshold == 0.5
    assert settings.selection.balance
    assert settings.trainer["wandb"]["mode"] == "off"
    with pytest.raises(UserError, match=r"--data.val_fractoin; did you mean --data.val_fraction"):
        read_settings(["noisy-student", "--config", str(path), "--data.val_fractoin", "0.3"])


FINISHED = json.loads(Path(__file__).with_name("finished_loops.json").read_text())


@pytest.mark.parametrize("kind", list(FINISHED))
def test_a_loop_that_an_older_version_finished_is_not_done_again(kind, monkeypatch, capfd):
    """Manifests as commit 93d963b wrote them: the keys of the stages are the same, so all of them are taken."""
    old = FINISHED[kind]
    for name, stage_manifest in old["manifests"].items():
        directory = Path("runs", "loop", "seed0", name)
        directory.mkdir(parents=True)
        (directory / "manifest.json").write_text(json.dumps(stage_manifest))
        for output in stage_manifest["outputs"].values():
            (directory / output["file"]).touch()
    Path("runs/loop/seed0/data/truth.json").write_text(json.dumps({"class_names": old["class_names"], "val": []}))
    for name, number in old["images"].items():
        Path("runs/loop/seed0", name, "selection.json").write_text(json.dumps({"images": number}))
    Path("loop.yaml").write_text(old["config"])
    monkeypatch.setattr(Kind, "score", lambda self, file, truth: old["scores"][file.parent.name])
    monkeypatch.setattr(loop_module, "write_report", lambda *arguments: None)
    monkeypatch.setattr(boxes, "IGNORE", 0.001)
    assert loop("runs", Path("loop.yaml")) == 0
    assert capfd.readouterr().out.count("done before") == len(old["manifests"])


def test_a_launched_loop_evaluates_behind_the_launcher(world, monkeypatch):
    """As it trains and labels: the process that starts the loop may have no accelerator."""
    seen = []

    def launched(words: list[str], check: bool) -> subprocess.CompletedProcess:
        seen.append(words[:4])
        return subprocess.CompletedProcess(words, in_child(lambda: evaluation.main(words[4:])))

    monkeypatch.setattr(launching.subprocess, "run", launched)
    flags = ["--launch", "[srun]", "--trainer.devices", "1"]
    settings = read_settings(["noisy-student", "--config", str(world / "loop.yaml"), *flags])
    data = data_stage.read_data(settings)
    student = stage(world / "whole", "student1") / "student.ckpt"
    Path("again").mkdir()
    assert stages.evaluate(Path("again"), settings, data, [student]) == {"val": "val.parquet", "test": "test.parquet"}
    assert seen == [["srun", sys.executable, "-m", "pipelines.noisy_student.evaluation"]]
    old = digests(world / "whole")["student1"]
    assert {split: manifest.digest_of(Path("again", f"{split}.parquet")) for split in ("val", "test")} == {
        split: old[split] for split in ("val", "test")
    }


def test_all_seeds_decode_the_pool_once(monkeypatch):
    write_images(Path("pictures"), {f"{s}/{c}": 3 for s in ("train", "val") for c in "ab"}, (8, 8))
    write_images(Path("pool"), {"x": 5}, (9, 9))
    Path("loop.yaml").write_text(CONFIG.format(source="pictures").replace("labels_per_class: 4", "pool: pool"))
    settings = read_settings(["noisy-student", "--config", "loop.yaml", "--seeds", "[0, 1]"])
    data = data_stage.read_data(settings)
    read, decoded = data.make_reader(), []

    def counting(record):
        decoded.append(record["path"])
        return read(record)

    monkeypatch.setattr(data, "make_reader", lambda: counting)
    for seed in settings.seeds:
        loop_module.start(Path("loop", f"seed{seed}"), settings, data, seed)
    assert len(decoded) == len(set(decoded)) == 5 + 6


def test_what_the_data_lacks_is_said_before_anything_is_trained(tmp_path, capsys):
    write_images(tmp_path / "few", {"a": 10, "b": 5}, (32, 32))
    path = tmp_path / "loop.yaml"
    path.write_text(CONFIG.format(source=tmp_path / "few").replace("labels_per_class: 4", "labels_per_class: 8"))
    assert loop("runs", path, "--data.val_fraction", "0.2") == 2
    assert "labels_per_class is 8, but class 'b' has 4 training images" in capsys.readouterr().err
    assert loop("runs", path, "--data.val_fraction", "0") == 2
    assert "has no validation split" in capsys.readouterr().err


@pytest.mark.parametrize("split", ["val", "test"])
def test_images_of_both_evaluated_splits_are_kept_out_of_the_pool(split):
    write_images(Path("pictures"), {f"{s}/{c}": 3 for s in ("train", "val", "test") for c in "ab"}, (8, 8))
    write_images(Path("pool"), {"x": 2}, (9, 9))
    shutil.copy(f"pictures/{split}/a/001.jpg", "pool/x/copy.jpg")
    Path("loop.yaml").write_text(CONFIG.format(source="pictures").replace("labels_per_class: 4", "pool: pool"))
    settings = read_settings(["noisy-student", "--config", "loop.yaml"])
    Path("made").mkdir()
    with pytest.raises(UserError, match=rf"1 of 3 images of the pool .*copy.jpg is .*{split}/a/001.jpg"):
        data_stage.make_data(Path("made"), settings, data_stage.read_data(settings), 0)


def test_a_killed_stage_goes_on_only_where_its_settings_are_the_same():
    def run(settings: dict, *, killed: bool = False) -> list[str]:
        seen = []

        def work(directory: Path) -> dict[str, str]:
            seen.extend(p.name for p in directory.iterdir() if p.name != "started.json")
            (directory / "half").write_text(str(settings))
            if killed:
                raise KeyboardInterrupt
            return {"out": "half"}

        if killed:
            with pytest.raises(KeyboardInterrupt):
                manifest.run_stage(Path("stage"), settings, {}, work)
        else:
            manifest.run_stage(Path("stage"), settings, {}, work)
        return seen

    assert run({"x": 1}, killed=True) == []
    assert run({"x": 1}, killed=True) == ["half"]  # continued
    assert run({"x": 2}) == []  # begun anew
    assert Path("stage.replaced/half").read_text() == "{'x': 1}"


def test_a_parts_trainer_stands_before_that_of_all_trainings():
    settings = Settings(
        data={}, teacher=TeacherSettings(), students=[], name="n", trainer={"max_epochs": 5, "devices": 2}
    )
    student = StudentSettings(model={}, trainer={"max_epochs": 9, "wandb": {"mode": "off"}})
    merged = {"max_epochs": 9, "devices": 2, "wandb": {"group": "n", "mode": "off"}}
    assert trainer_of(settings, student) == merged
    assert trainer_of(settings) == {"max_epochs": 5, "devices": 2, "wandb": {"group": "n"}}


@pytest.mark.parametrize(
    ("trainer", "number"),
    [
        ({"devices": 2}, 2),
        ({"devices": "2", "num_nodes": 3}, 6),
        ({"devices": [0, 5], "num_nodes": 3}, 6),
        ({"devices": "auto"}, None),
        ({}, None),
        ({"devices": -1}, None),
    ],
)
def test_devices_are_counted_over_all_nodes(trainer, number):
    assert num_devices(trainer) == number
