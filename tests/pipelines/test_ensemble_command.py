"""The command ``ensemble``: members of all kinds, their combinations, what is refused, and that it goes on."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from datamodules.classification import ClassificationData
from datamodules.common.errors import UserError
from pipelines.__main__ import main
from pipelines.combining import training
from pipelines.combining.command import _side_by_side
from pipelines.combining.joining import answering
from pipelines.combining.settings import Members, check_members, combinations_of
from pipelines.combining.training import Work
from pipelines.report import images, kinds
from pipelines.report.measured import Measured, read
from tasks import Classification, Detection, Segmentation
from tasks.optim import Optim
from tasks.schedules import lr_factor
from tests.conftest import in_child, write_images

WORDS = ["--model=Classification", "--model.backbone=lenet5", "--model.optim={lr: 0.003}", "--data=ClassificationData"]
WORDS += ["--data.source=digits", "--data.in_chans=1", "--data.image_size=32", "--data.augment={preset: none}"]
WORDS += ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
WORDS += ["--trainer.enable_model_summary=false", "--trainer.wandb.mode=off", "--name=some"]
FEW = ["--trainer.limit_train_batches=12"]
ROOT = Path("runs/some-ensemble")


def report() -> dict[str, Any]:
    return json.loads((ROOT / "ensemble.json").read_text())


def scores(found: dict[str, Any]) -> dict[str, float]:
    return {r["name"]: r["scores"]["accuracy"]["mean"] for r in [*found["members"], *found["combinations"]]}


@pytest.mark.slow
def test_members_by_seed_go_on_and_are_reported(capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = training.fit_in

    def stop_at_the_second(folder: Path, *rest: Any) -> Path:
        if folder.name == "member1":
            raise KeyboardInterrupt
        return fit(folder, *rest)

    def stopped() -> int:
        monkeypatch.setattr(training, "fit_in", stop_at_the_second)
        return main(["ensemble", *WORDS, *FEW, "--members.count=3"])

    assert in_child(stopped) == 130
    assert in_child(lambda: main(["ensemble", *WORDS, *FEW, "--members.count=3"])) == 0
    said = capfd.readouterr().out
    assert "ensemble: some-ensemble/member0: done before" in said
    assert "ensemble: some-ensemble/member1: continues" in said
    found = report()
    assert [row["name"] for row in found["members"]] == ["member0", "member1", "member2"]
    assert [row["name"] for row in found["combinations"]] == ["vote", "mean", "stacking", "soup"]
    assert [row["networks"] for row in found["combinations"]] == [3, 3, 3, 1]
    held = {row["name"]: row["val"] for row in found["members"]}
    assert held[found["best"]] == max(held.values())
    reached = scores(found)
    assert reached[found["hindsight"]["best"]] == max(reached[name] for name in held)
    assert {gain["a"] for gain in found["hindsight"]["gains"]} == {found["hindsight"]["best"]}
    # A vote and a mean by hand, of what was measured of the members.
    each = [read(ROOT / f"member{i}" / "test_images.npz") for i in range(3)]
    truth = images.truth_of(each[0])
    probabilities = np.zeros((3, len(truth), 10))
    for own, one in zip(probabilities, each, strict=True):
        np.put_along_axis(own, one.arrays["classes"].astype(int), images.probabilities(one), 1)
    assert scores(found)["mean"] == pytest.approx((probabilities.mean(0).argmax(1) == truth).mean(), abs=0.006)
    ballots = np.eye(10)[probabilities.argmax(2)].sum(0)
    assert scores(found)["vote"] == pytest.approx(((ballots + probabilities.mean(0) / 100).argmax(1) == truth).mean())
    wrong = np.stack([~images.right(one) for one in each]).astype(float)
    table = np.array(found["diversity"]["error_correlation"]["table"])
    assert table == pytest.approx(np.corrcoef(wrong))
    gain = next(g for g in found["gains"] if (g["b"], g["metric"]) == ("mean", "accuracy"))
    assert gain["value"] == pytest.approx(scores(found)["mean"] - scores(found)[found["best"]])
    assert gain["low"] <= gain["value"] <= gain["high"]
    # What is printed to be used gives these scores.
    words = re.search(r"all members: python -m pipelines predict --ckpt_path '?(\[\S+\])", said)
    assert words
    test = ["test", "--ckpt_path", words[1], "--trainer.wandb.mode=off", "--trainer.report=false", "--name=again"]
    assert in_child(lambda: main([*test, "--trainer.accelerator=cpu"])) == 0
    again = json.loads(Path("runs/again/0/test.json").read_text())
    assert again["test/accuracy"] == pytest.approx(scores(found)["mean"])
    assert "Gain over the best member" in (ROOT / "ensemble.html").read_text()
    # Again: nothing is trained; another combination needs no training either.
    assert in_child(lambda: main(["ensemble", *WORDS, *FEW, "--members.count=3", "--combine=[mean]"])) == 0
    assert ": starts" not in capfd.readouterr().out


@pytest.mark.slow
def test_boosted_members_see_what_was_wrong(capfd: Any) -> None:
    words = ["ensemble", *WORDS, *FEW, "--members={by: boosting, count: 2, shrinkage: 0.5}", "--combine=[vote]"]
    assert in_child(lambda: main(words)) == 0
    first = read(ROOT / "member0" / "train_images.npz")
    wrong = {str(path): not right for path, right in zip(first.arrays["path"], images.right(first), strict=True)}
    weights = json.loads((ROOT / "shares" / "weights1.json").read_text())
    assert set(weights) == set(wrong)
    error = np.mean(list(wrong.values()))
    alpha = 0.5 * (np.log((1 - error) / error) + np.log(9))
    heavy, light = (
        sorted({round(weights[path], 6) for path in wrong if wrong[path] is kind}) for kind in (True, False)
    )
    assert len(heavy) == len(light) == 1
    assert heavy[0] / light[0] == pytest.approx(np.exp(alpha), rel=1e-3)
    assert np.mean(list(weights.values())) == pytest.approx(1)
    assert next(row["alpha"] for row in report()["members"]) == pytest.approx(alpha)
    assert f"weighted error {error:.4f}" in capfd.readouterr().out


@pytest.mark.slow
def test_snapshots_are_of_one_training() -> None:
    words = ["ensemble", *WORDS, "--trainer.max_epochs=4", "--trainer.limit_train_batches=6"]
    assert in_child(lambda: main([*words, "--members={by: snapshot, count: 2}", "--combine=[mean, soup]"])) == 0
    found = report()
    assert [row["name"] for row in found["members"]] == ["snapshot0", "snapshot1"]
    saved = sorted(path.name for path in (ROOT / "training" / "0" / "checkpoints").glob("snapshot*"))
    assert saved == ["snapshot-epoch=1.ckpt", "snapshot-epoch=3.ckpt"]


@pytest.mark.slow
@pytest.mark.parametrize("data", ["DetectionData", "SegmentationData"])
def test_boxes_and_masks_on_bootstraps(data: str) -> None:
    detector = ["--model=Detection", "--model.detector=yolo", "--model.backbone=test_resnet"]
    masks = ["--model=Segmentation", "--model.architecture=unet", "--model.backbone=test_resnet"]
    words = [*(detector if data == "DetectionData" else masks), f"--data={data}", "--data.source=digits"]
    words += ["--data.num_scenes={train: 24, val: 6, test: 6}", "--data.image_size=64", "--data.num_workers=0"]
    words += [w for w in WORDS if w.startswith(("--trainer", "--name"))]
    assert in_child(lambda: main(["ensemble", *words, "--members={by: bagging, count: 2}"])) == 0
    found = report()
    assert [row["name"] for row in found["combinations"]] == ["mean", "soup"]
    assert found["independent"] is None
    assert ("disagreement" in found["diversity"]) is (data == "SegmentationData")


@pytest.mark.slow
def test_backbones_behind_a_launcher_side_by_side() -> None:
    words = ["ensemble", *WORDS, "--trainer.limit_train_batches=2", "--trainer.devices=1", "--launch=env A=b"]
    assert in_child(lambda: main([*words, "--members={by: backbone, backbones: [lenet5, cifar_resnet20]}"])) == 0
    assert [row["name"] for row in report()["members"]] == ["lenet5", "cifar_resnet20"]
    assert [row["name"] for row in report()["combinations"]] == ["vote", "mean", "stacking"]


# Parts.


@pytest.fixture
def work(tmp_path: Path) -> Work:
    data = ClassificationData("digits", in_chans=1, image_size=32, num_workers=0)
    data.setup("fit")
    config = {"seed_everything": 3, "data": {"init_args": {}}, "model": {"init_args": {}}, "trainer": {}}
    return Work(tmp_path, config, data, Members("bagging", 4), None, 1)


def paths_of(work: Work) -> list[str]:
    return [record["path"] for record in work.data.records["train"]]


def test_a_bootstrap_counts_what_is_drawn_twice(work: Work) -> None:
    own: dict[str, Any] = {"data": {"init_args": {}}}
    outputs = training._bootstrap(work, 1, own)
    split = json.loads(outputs["split_file"].path.read_text())
    weights = json.loads(outputs["weight_file"].path.read_text())
    everything = paths_of(work)
    assert sorted(split["train"] + split["left_out"]) == sorted(everything)
    assert len(split["train"]) / len(everything) == pytest.approx(1 - np.exp(-1), abs=0.03)
    drawn = np.array([weights[path] for path in split["train"]])
    assert drawn.mean() == pytest.approx(1)
    counts = drawn / drawn.min()
    assert counts.sum() == pytest.approx(len(everything))
    assert counts == pytest.approx(counts.round())
    # The datamodule takes both, and the loss sees them.
    data = ClassificationData("digits", in_chans=1, image_size=32, num_workers=0, **own["data"]["init_args"])
    data.setup("fit")
    assert sorted(r["path"] for r in data.records["train"]) == sorted(split["train"])
    assert {r["path"]: r["weight"] for r in data.records["train"]} == pytest.approx(weights)
    assert not any("weight" in record for record in data.records["val"])
    assert "weight" in next(iter(data.train_dataloader()))
    assert training._bootstrap(work, 2, own)["split_file"].digest != outputs["split_file"].digest


def test_whole_groups_are_drawn_together(work: Work) -> None:
    for i, record in enumerate(work.data.records["train"]):
        record["group"] = f"g{i // 40}"
    outputs = training._bootstrap(work, 0, {"data": {"init_args": {}}})
    weights = json.loads(outputs["weight_file"].path.read_text())
    groups: dict[str, set[float]] = {}
    for record in work.data.records["train"]:
        groups.setdefault(record["group"], set()).add(weights.get(record["path"], 0.0))
    assert all(len(found) == 1 for found in groups.values())


def test_each_fold_is_left_out_once(work: Work) -> None:
    left_out = []
    for number in range(4):
        outputs = training._left_out_fold(work, number, {"data": {"init_args": {}}})
        assert list(outputs) == ["split_file"]  # all count alike
        left_out += json.loads(outputs["split_file"].path.read_text())["left_out"]
    assert sorted(left_out) == sorted(paths_of(work))


def test_a_share_names_what_a_split_file_leaves_out(work: Work, tmp_path: Path) -> None:
    paths = paths_of(work)
    split = {"train": paths[:800], "unused": paths[800:]}
    split |= {name: [r["path"] for r in work.data.records[name]] for name in ("val", "test")}
    (tmp_path / "split.json").write_text(json.dumps(split))
    data = ClassificationData("digits", in_chans=1, split_file=str(tmp_path / "split.json"))
    data.setup("fit")
    outputs = training._left_out_fold(replace(work, data=data), 0, {"data": {"init_args": {}}})
    share = json.loads(outputs["split_file"].path.read_text())
    assert set(split["unused"]) < set(share["left_out"])
    assert len(share["train"]) == 600
    assert sum(map(len, share.values())) == sum(map(len, split.values()))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "a weight is a number of at least 0"),
        ('{"x.png": -1}', "has 'x.png': -1; a weight is a number of at least 0"),
        ('{"x.png": true}', "has 'x.png': True"),
        ('{"x.png": 1}', "names none of the 1258 training images"),
        (None, "does not exist"),
    ],
)
def test_weight_files_that_cannot_be(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "weights.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=message):
        ClassificationData("digits", weight_file=str(file)).setup("fit")


def test_images_that_a_weight_file_does_not_name_count_once(tmp_path: Path) -> None:
    (tmp_path / "weights.json").write_text('{"digits#1": 3}')
    data = ClassificationData("digits", weight_file=str(tmp_path / "weights.json"), num_workers=0, in_chans=1)
    data.setup("fit")
    weights = {record["path"]: record["weight"] for record in data.records["train"]}
    assert (weights["digits#1"], set(weights.values())) == (3, {1, 3})


def test_each_cycle_begins_at_the_full_rate() -> None:
    optim = Optim(cycles=4, warmup=0.0)
    rates = [lr_factor(step, optim, 100, 10) for step in range(100)]
    assert [rates[i] for i in (0, 25, 50, 75)] == [1, 1, 1, 1]
    once = [lr_factor(step, Optim(warmup=0.0), 25, 10) for step in range(25)]
    assert rates == pytest.approx(once * 4)
    warm = [lr_factor(step, Optim(cycles=2, warmup=0.1), 100, 10) for step in range(100)]
    assert (warm[10], warm[50]) == (1, 1)
    assert warm[0] < 0.1
    with pytest.raises(UserError, match=r"model.optim.cycles is 3; schedule: poly ignores it"):
        Optim(cycles=3, schedule="poly")


def config(epochs: int = 4, **optim: Any) -> dict[str, Any]:
    return {"model": {"init_args": {"optim": optim}}, "trainer": {"max_epochs": epochs}}


@pytest.mark.parametrize(
    ("members", "task", "message"),
    [
        (Members("boosting"), Detection(detector="yolo", backbone="test_resnet"), "needs one label an image, and Det"),
        (Members("boosting"), Classification("lenet5", multi_label=True), "needs one label an image"),
        (Members("backbone"), None, r"members.backbones is None, but members.by is 'backbone'"),
        (Members("seed", backbones=["lenet5"]), None, "members.by is 'seed': set by: backbone"),
        (Members("backbone", backbones=["lenet5"]), None, "at least 2 members"),
        (Members("seed", 1), None, "members.count is 1; an ensemble has at least 2 members"),
        (Members("snapshot", 3), None, "trainer.max_epochs is 4, .* give a multiple of 3"),
        (
            Members("backbone", backbones=["lenet5", "lenet6"]),
            None,
            "members.backbones: there is no net",
        ),
        (Members("backbone", 3, ["lenet5", "test_vit"]), None, "members.count is 3, but members.backbones names 2"),
        (Members("seed", shrinkage=0.5), None, "members.shrinkage is 0.5, but members.by is 'seed'"),
        (Members("boosting", shrinkage=0.0), None, "members.shrinkage is 0.0; it must be above 0"),
    ],
)
def test_members_that_cannot_be_made(members: Members, task: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_members(members, config(), task or Classification("lenet5"))


def test_snapshots_need_the_cosine_schedule() -> None:
    with pytest.raises(UserError, match=r"model.optim.schedule is 'poly', but members.by is 'snapshot'"):
        check_members(Members("snapshot", 2), config(schedule="poly"), Classification("lenet5"))


def test_combinations_that_there_are() -> None:
    net, masks = Classification("lenet5"), Segmentation("unet", "test_resnet")
    assert combinations_of(None, Members(), net) == ["vote", "mean", "stacking", "soup"]
    assert combinations_of(None, Members(), masks) == ["mean", "soup"]
    assert combinations_of(None, Members("backbone", backbones=["a", "b"]), net) == ["vote", "mean", "stacking"]
    assert combinations_of(["soup", "soup"], Members(), masks) == ["soup"]
    with pytest.raises(UserError, match="combine has 'stacking', which is for images with one label each"):
        combinations_of(["mean", "stacking"], Members(), masks)
    with pytest.raises(UserError, match=r"combine has 'soup', which averages weights, but .* their networks differ"):
        combinations_of(["soup"], Members("backbone", backbones=["a", "b"]), net)
    assert combinations_of(None, Members(), net, classes=1000) == ["mean", "soup"]
    with pytest.raises(UserError, match=r"combine has 'vote', which needs all probabilities, but of 1,000 classes"):
        combinations_of(["vote"], Members(), net, classes=1000)
    with pytest.raises(UserError, match="combine is empty"):
        combinations_of([], Members(), net)


def test_how_many_are_trained_at_once() -> None:
    assert _side_by_side(Members(), None, None) == 1
    assert _side_by_side(Members(), "srun", None) == 5
    assert _side_by_side(Members("boosting"), "srun", None) == 1
    assert _side_by_side(Members(), "srun", 2) == 2
    with pytest.raises(UserError, match="at_once is 2, but without launch"):
        _side_by_side(Members(), None, 2)
    with pytest.raises(UserError, match="whose members need those before them"):
        _side_by_side(Members("snapshot"), "srun", 2)
    with pytest.raises(UserError, match="at_once is 0"):
        _side_by_side(Members(), "srun", 0)


def test_answers_are_measured_as_a_models_would_be() -> None:
    found = np.array([[0.2, 0.5, 0.3], [0.7, 0.2, 0.1]])
    arrays = {"truth": np.array([2, 0]), "path": np.array(["a", "b"]), "group": np.array(["", ""])}
    facts = {"kind": "images", "class_names": ["x", "y", "z"], "temperature": 2.0}
    measured = answering(Measured(facts, arrays, {}, {}), found)
    assert images.predicted(measured).tolist() == [1, 0]
    assert images.truth_probability(measured, measured.temperature) == pytest.approx([0.3, 0.7], rel=2e-3)
    scored = kinds.scorer(measured)(np.ones((1, 2), np.int64))
    assert scored["accuracy"][0] == 0.5
    assert scored["loss"][0] == pytest.approx(-(np.log(0.3) + np.log(0.7)) / 2, rel=2e-3)


def test_data_without_test_images_is_refused(tmp_path: Path, capsys: Any) -> None:
    source = write_images(tmp_path / "data", {"train/ant": 8, "train/bee": 8})
    words = [word for word in WORDS if not word.startswith("--data.source")]
    assert main(["ensemble", *words, f"--data.source={source}", "--data.val_fraction=0.25"]) == 1
    assert "has no test images" in (said := capsys.readouterr().err)
    assert "Set data.test_fraction" in said


def test_the_command_itself_is_one_process(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("RANK", "0")
    assert main(["ensemble", *WORDS]) == 1
    assert "ensemble is one process, but RANK is set" in capsys.readouterr().err


def test_a_member_has_a_seed_of_its_own(work: Work) -> None:
    assert [training._config_of(work, i)["seed_everything"] for i in range(3)] == [3, 4, 5]
    named = SimpleNamespace(
        members=Members("backbone", backbones=["a", "b"]), config=work.config, root=Path("x"), seed=0
    )
    assert training._config_of(named, 1)["model"]["init_args"]["backbone"] == "b"  # type: ignore[arg-type]
