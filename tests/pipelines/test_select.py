"""The command ``select``: values by hand, the order, and files that our own readers read."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from benchmarks.planted import write_planted
from datamodules import ClassificationData
from datamodules.annotations.instance_masks import masks_of
from datamodules.common import rle
from datamodules.readers.box_sources import read_boxes
from datamodules.readers.cvat import read_cvat
from datamodules.readers.labelstudio import read_labelstudio
from pipelines.__main__ import main
from pipelines.outputs.formats.labeling import Annotated, Thing, write_cvat, write_labelstudio
from pipelines.selecting.choosing import choose, k_center
from pipelines.selecting.uncertainty import of_boxes, of_probabilities
from tests.checkpoints import write_checkpoint
from tests.conftest import write_images

FLAGS = ["--trainer.accelerator=cpu", "--output=out"]


def test_values_of_classes():
    a = torch.tensor([[0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3]])
    b = torch.tensor([[0.1, 0.8, 0.1], [1 / 3, 1 / 3, 1 / 3]])
    first, second = of_probabilities([a, b])
    mean = (a[0] + b[0]) / 2
    total = entropy(mean.numpy()) / np.log(3)
    assert first["entropy"] == pytest.approx(total, rel=1e-5)
    assert first["margin"] == pytest.approx(1 - (0.5 - 0.4), rel=1e-5)
    each = (entropy([0.7, 0.2, 0.1]) + entropy([0.1, 0.8, 0.1])) / 2 / np.log(3)
    assert first["disagreement"] == pytest.approx(total - each, rel=1e-5)
    assert second["entropy"] == pytest.approx(1)
    assert second["margin"] == pytest.approx(1)
    assert second["disagreement"] == pytest.approx(0, abs=1e-6)
    (several,) = of_probabilities([torch.tensor([[0.5, 1.0]])], multi_label=True)
    assert several["entropy"] == pytest.approx(0.5, abs=1e-6)  # one bit of two


def test_values_of_pixels_are_means():
    scores = torch.zeros(1, 2, 2, 2)
    scores[0, 0] = torch.tensor([[1.0, 1.0], [1.0, 0.5]])
    scores[0, 1] = 1 - scores[0, 0]
    (value,) = of_probabilities([scores])
    assert value["entropy"] == pytest.approx(0.25, abs=1e-6)
    assert of_probabilities([scores[:, 1:]]) == [pytest.approx(value)]  # one score a pixel, of two classes


def test_values_of_boxes():
    def found(*boxes):
        array = np.array(boxes, float).reshape(-1, 6)
        return {"boxes": array[:, :4], "scores": array[:, 4], "labels": array[:, 5].astype(int)}

    a = found((0, 0, 4, 4, 0.5, 0), (8, 8, 12, 12, 0.9, 1), (20, 0, 24, 4, 0.01, 0))
    b = found((0, 0, 4, 4, 0.8, 0))
    value = of_boxes([a, b], [0.4, 0.4])
    assert value["entropy"] == pytest.approx(1 + entropy([0.9, 0.1], base=2))
    assert value["margin"] == pytest.approx(1 + 0.2)
    assert value["disagreement"] == pytest.approx(1 - 2 / 3)  # one of two and one
    assert of_boxes([found(), found()], [0.4, 0.4])["disagreement"] == 0


def test_k_center_takes_the_farthest():
    vectors = np.random.default_rng(0).normal(size=(40, 3))
    chosen, far = k_center(vectors, 6, vectors[:2] + 0.01)
    centers = list(vectors[:2] + 0.01)
    for pick, distance in zip(chosen, far, strict=True):
        distances = np.min([np.linalg.norm(vectors - center, axis=1) for center in centers], 0)
        assert pick == distances.argmax()
        assert distance == pytest.approx(distances.max())
        centers.append(vectors[pick])
    assert k_center(vectors, 3)[0][0] == np.linalg.norm(vectors - vectors.mean(0), axis=1).argmin()
    same = np.ones((5, 2))
    assert sorted(k_center(same, 5)[0]) == [0, 1, 2, 3, 4]
    assert len(k_center(vectors, 100)[0]) == 40


def test_strategies():
    vectors = np.array([[0.0], [0.1], [5.0], [9.0]])
    values = {"entropy": [0.9, 0.8, 0.1, 0.7], "margin": [0.1, 0.2, 0.9, 0.3]}
    order, columns = choose("entropy", 2, values, None, size=4)
    assert (order, columns["margin"]) == ([0, 1], [0.1, 0.2])
    order, columns = choose(
        "mix", 2, values, vectors, shortlist=1.5, uncertainty="entropy", size=4, centers=np.array([[0.0]])
    )
    assert order == [3, 1]  # of the three least sure the farthest from what is labeled, and then from that
    assert columns["distance"] == pytest.approx([9, 0.1])
    assert choose("coreset", 2, {}, vectors, size=4, centers=np.array([[0.0]]))[0] == [3, 2]
    assert choose("random", 4, {}, None, size=4, seed=1)[0] != choose("random", 4, {}, None, size=4, seed=2)[0]
    flat = {"entropy": [0.5] * 50}
    assert choose("entropy", 50, flat, None, size=50)[0] != list(range(50))  # equal ones in no order of the folder


@pytest.fixture
def drawn(tmp_path: Path) -> list[Annotated]:
    write_images(tmp_path / "pool", {"x": 3}, size=(40, 48))
    mask = np.zeros((2, 40, 48), bool)
    mask[0, 3:9, 5:20] = mask[0, 5:30, 5:8] = True  # an L
    mask[1, 20:40, 30:48] = True
    mask[1, 25:30, 35:40] = False  # a hole
    runs = rle.of_masks(torch.from_numpy(mask))
    paths = [str(tmp_path / "pool" / "x" / f"{i:03d}.jpg") for i in range(3)]
    boxes = [Thing("ant", (1.25, 2.0, 30.5, 20.75), 0.9), Thing("bee", (10.0, 11.0, 48.0, 40.0), 0.6)]
    masks = [Thing("bee", (5.0, 3.0, 20.0, 30.0), 0.8, runs[0]), Thing("ant", (30.0, 20.0, 48.0, 40.0), None, runs[1])]
    return [
        Annotated(paths[0], (40, 48), things=boxes),
        Annotated(paths[1], (40, 48), things=masks),
        Annotated(paths[2], (40, 48)),
    ]


def check_read(records, drawn):
    by_name = {Path(record["path"]).name: record for record in records}
    first, second, third = (by_name[Path(one.path).name] for one in drawn)
    np.testing.assert_allclose(first["boxes"], [thing.box for thing in drawn[0].things], atol=0.01)
    assert first["labels"].tolist() == [0, 1]
    assert second["labels"].tolist() == [1, 0]
    layers = masks_of(second, 40, 48)
    for number, thing in enumerate(drawn[1].things, 1):
        mine = rle.decoded([thing.mask], 40, 48)[0]
        np.testing.assert_array_equal((layers == number).any(0), mine)
    assert len(third["boxes"]) == 0


def test_cvat_is_read_back(drawn, tmp_path):
    write_cvat(tmp_path / "annotations.xml", drawn, [Path(one.path).name for one in drawn])
    listing = read_cvat(tmp_path / "annotations.xml", ["ant", "bee"], tmp_path / "pool" / "x")
    check_read(listing.records, drawn)


def test_label_studio_is_read_back(drawn, tmp_path):
    """As Label Studio exports it once the predictions are taken over as annotations."""
    names = [f"x/{Path(one.path).name}" for one in drawn]
    write_labelstudio(tmp_path / "tasks.json", drawn, names)
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert tasks[0]["predictions"][0]["score"] == 0.75
    done = [{"data": task["data"], "annotations": task["predictions"]} for task in tasks]
    (tmp_path / "done.json").write_text(json.dumps(done))
    listing = read_labelstudio(tmp_path / "done.json", ["ant", "bee"], tmp_path / "pool")
    check_read(listing.records, drawn)


def rows_of(path: str) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_classes(folder: Path, capsys: pytest.CaptureFixture[str]):
    write_checkpoint(Path("a.ckpt"), "classification", folder)
    words = ["--ckpt_path=a.ckpt", f"--source={folder}", "--count=4", *FLAGS]
    assert main(["select", *words, "--strategy=entropy", "--copy=true"]) == 0
    rows = rows_of("out/selected.csv")
    values = [float(row["entropy"]) for row in rows]
    assert values == sorted(values, reverse=True)
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"]
    data = ClassificationData("out/selected.csv", image_size=48, val_fraction=0.25)
    data.setup("fit")
    assert sum(len(records) for records in data.records.values()) == 4
    assert all("/out/images/" in record["path"] for record in data.records["train"])
    tasks = json.loads(Path("out/label_studio.json").read_text())
    choices = [task["predictions"][0]["result"][0]["value"]["choices"] for task in tasks]
    assert choices == [[row["label"]] for row in rows]
    assert Path("out/cvat.xml").read_text().count("<tag label=") == 4
    assert '<Choice value="bee" />' in Path("out/label_studio.xml").read_text()
    assert "4 of 28 pictures by entropy" in capsys.readouterr().out


@pytest.mark.parametrize("strategy", ["mix", "coreset"])
def test_labeled_pictures_are_kept_away_from(strategy: str, folder: Path, capsys: pytest.CaptureFixture[str]):
    write_checkpoint(Path("a.ckpt"), "classification", folder)
    words = ["--ckpt_path=a.ckpt", "--count=3", *FLAGS, f"--strategy={strategy}"]
    write_images(Path("new"), {"pictures": 9}, seed=5)
    assert main(["select", *words, f"--source=[{folder / 'train'},new]"]) == 0
    assert "3 of 9 pictures" in capsys.readouterr().out
    rows = rows_of("out/selected.csv")
    assert float(rows[0]["distance"]) >= float(rows[1]["distance"]) > 0
    assert main(["select", *words, f"--source={folder / 'train'}"]) == 2
    assert "pictures are labeled already" in capsys.readouterr().err


def test_a_committee(folder: Path):
    for name, seed in (("a", 0), ("b", 1)):
        write_checkpoint(Path(f"{name}.ckpt"), "classification", folder, seed=seed)
    words = ["--ckpt_path=[a.ckpt,b.ckpt]", f"--source={folder / 'test'}", "--count=2", *FLAGS]
    assert main(["select", *words, "--strategy=disagreement"]) == 0
    assert float(rows_of("out/selected.csv")[0]["disagreement"]) > 0


@pytest.mark.parametrize(
    "case",
    [
        "detection",
        pytest.param("segmentation", marks=pytest.mark.slow),
        pytest.param("instances", marks=pytest.mark.slow),
    ],
)
def test_boxes_and_masks(case: str, tmp_path: Path):
    kind = "masks" if case == "segmentation" else "boxes"
    source = write_planted(tmp_path / kind, kind, {"train": 2, "val": 5}, side=64, classes=2)
    names = ["checks", "columns"] if kind == "boxes" else ["background", "checks", "columns"]
    more = {"class_names": names, "image_size": 64, **({"class_ids": [1, 2]} if kind == "boxes" else {})}
    model = {"score_threshold": 0.05} if kind == "boxes" else {}
    write_checkpoint(Path("a.ckpt"), case, source, data=more, model=model)
    pool = source / "images" / "val"
    words = ["--ckpt_path=a.ckpt", f"--source={pool}", "--count=3", "--strategy=disagreement", *FLAGS]
    assert main(["select", *words]) == 0
    rows = rows_of("out/selected.csv")
    values = [float(row["disagreement"]) for row in rows]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0
    ours = read_boxes(Path("out/coco.json"), image_root=pool)
    cvat = read_cvat(Path("out/cvat.xml"), ours.class_names, pool)
    counts = [{Path(r["path"]).name: len(r["boxes"]) for r in listing.records} for listing in (ours, cvat)]
    assert counts[0] == counts[1]
    assert sum(counts[0].values()) > 0
    assert set(counts[0]) == {Path(row["path"]).name for row in rows}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--source is not set"),
        (["--source=SOURCE", "--count=0"], "--count is 0"),
        (["--source=SOURCE", "--shortlist=0.5"], "--shortlist is 0.5"),
        (["--source=SOURCE", "--views=[hflip]"], "only --strategy disagreement uses"),
        (["--source=SOURCE", "--views=[]", "--strategy=disagreement"], "nobody to disagree with"),
        (["--source=SOURCE", "--data.source=nowhere"], "--labeled false"),
    ],
)
def test_mistakes_of_select(words: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]):
    write_checkpoint(Path("a.ckpt"), "classification", folder)
    words = [word.replace("SOURCE", str(folder)) for word in words]
    assert main(["select", "--ckpt_path=a.ckpt", *words]) in (1, 2)
    assert message in capsys.readouterr().err
