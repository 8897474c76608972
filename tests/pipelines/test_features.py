"""The command ``features``, and what it computes against the same by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA

from benchmarks.planted import write_planted
from datamodules import ClassificationData
from datamodules.common.batch import windows
from datamodules.common.errors import UserError
from pipelines.__main__ import main
from pipelines.features.clock import Clock
from pipelines.features.embedding import Embedded, alike_neighbors, plane
from pipelines.features.exemplars import find_exemplars
from pipelines.features.filters import first_filters
from pipelines.features.optimizing import dream, grow, of_channels
from pipelines.features.scores import class_scores, relevance, scores_of
from pipelines.features.settings import Settings
from pipelines.features.work import picture_size
from tasks.classification import Classification
from tasks.maps import choose_maps, list_maps, run_to
from tests.checkpoints import write_checkpoint
from tests.conftest import write_images

QUICK = ["--steps=2", "--num_channels=2", "--exemplars=2", "--size=32", "--trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def task() -> Classification:
    torch.manual_seed(0)
    made = Classification(backbone="test_resnet", num_classes=2, image_size=48, in_chans=3)
    made.configure_model()
    return made.eval().requires_grad_(False)


@pytest.fixture
def batches(folder: Path):
    data = ClassificationData(str(folder), image_size=48, batch_size=4, num_workers=0, cache="none")
    data.setup("validate")
    return list(data.val_dataloader())


def test_exemplars_are_the_largest_activations(task: Classification, batches):
    (layer,) = choose_maps(task, list_maps(task), ["layer1"])
    (found,) = find_exemplars(task, [layer], [[3, 7]], batches, 2, ["ant", "bee"], Clock(None))
    image = torch.cat([batch["image"] for batch in batches])
    with torch.no_grad():
        (output,) = run_to(task, [layer], image)
    assert found.images == len(image) == 6
    for channel, mine, mean in zip([3, 7], found.exemplars, found.means, strict=True):
        largest = output[:, channel].flatten(1).max(1)
        order = largest.values.argsort(descending=True)[:2]
        assert [one.number for one in mine] == order.tolist()
        torch.testing.assert_close(torch.tensor([one.value for one in mine]), largest.values[order])
        assert [one.unit for one in mine] == [divmod(int(largest.indices[i]), output.shape[3]) for i in order]
        assert mean == pytest.approx(float(largest.values.mean()))
    one = found.exemplars[0][0]
    assert one.caption in ("ant", "bee")
    assert one.caption in one.path
    assert 0 <= one.box[0] <= one.place[0] < one.place[2] <= one.box[2] <= 48  # of the original, 40 x 48
    assert one.box[3] <= 40


def test_relevance_of_the_last_layer_is_weight_times_activation(task: Classification, batches):
    """Of the pooled features of a linear head by hand: what a channel adds to the best class's logit."""
    (layer,) = choose_maps(task, list_maps(task), ["layer4"])
    image = torch.cat([batch["image"] for batch in batches])
    (found,) = relevance(task, [layer], [image[:4], image[4:]], 6)
    with torch.no_grad():
        (output,) = run_to(task, [layer], image)
        best = task(image).argmax(1)
        expected = (output.mean((2, 3)) * task.network.fc.weight[best]).abs().mean(0)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_what_grows_is_what_is_asked_for(task: Classification):
    """A picture grown for red is red; the same seed gives the same picture; without time there are no steps."""

    def red(image: torch.Tensor) -> torch.Tensor:
        return image[:, 0].mean((1, 2)) - image[:, 1:].mean((1, 2, 3))

    grown = grow(task, red, 2, (24, 32), 40, 0, Clock(None))
    assert grown.pictures.shape == (2, 3, 24, 32)
    means = grown.pictures.mean((0, 2, 3))
    assert means[0] > means[1] + 0.05
    assert means[0] > means[2] + 0.05
    assert min(grown.after) > max(grown.before) + 0.05
    again = grow(task, red, 2, (24, 32), 40, 0, Clock(None))
    assert torch.equal(grown.pictures, again.pictures)
    other = grow(task, red, 2, (24, 32), 40, 1, Clock(None))
    assert not torch.equal(grown.pictures, other.pictures)
    late = grow(task, red, 2, (24, 32), 40, 0, Clock(1e-9))
    assert late.steps == 0
    assert late.before == pytest.approx(late.after, abs=1e-6)


@pytest.mark.parametrize("neuron", [False, True])
def test_channels_and_neurons_grow(task: Classification, neuron: bool):
    (layer,) = choose_maps(task, list_maps(task), ["layer2"])
    objective = of_channels(task, layer, [1, 5], neuron)
    grown = grow(task, objective, 2, (48, 48), 48, 0, Clock(None), 2 if neuron else 8)
    assert all(after > before for after, before in zip(grown.after, grown.before, strict=True))
    with torch.no_grad():
        (output,) = run_to(task, [layer], grown.pictures)
    mine = output[torch.arange(2), torch.tensor([1, 5])]
    expected = mine[:, 3, 3] if neuron else mine.mean((1, 2))
    torch.testing.assert_close(torch.tensor(grown.after), expected)


def test_a_dream_makes_the_layer_larger(task: Classification):
    (layer,) = choose_maps(task, list_maps(task), ["layer2"])
    picture = torch.rand(3, 40, 48, generator=torch.Generator().manual_seed(0))
    dreamed = dream(task, layer, picture, 2, 4, 0, Clock(None))
    assert dreamed.shape == picture.shape
    with torch.no_grad():
        before, after = (run_to(task, [layer], one[None])[0].square().mean() for one in (picture, dreamed))
    assert after > before
    torch.testing.assert_close(dream(task, layer, picture, 2, 4, 0, Clock(1e-9)), picture)


def test_class_scores_are_the_logits(task: Classification, batches):
    image = batches[0]["image"]
    with torch.no_grad():
        torch.testing.assert_close(class_scores(task, image), task(image))
        picked = scores_of(task, image[:3], [1, 0, 1])
        torch.testing.assert_close(picked, task(image[:3])[[0, 1, 2], [1, 0, 1]])


def test_tiles_are_seen_one_by_one():
    image = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    tiles = [torch.tensor([[0, 0, 4, 4], [0, 2, 4, 6]]), torch.tensor([[0, 2, 4, 6]])]
    found = list(windows({"image": image, "tiles": tiles}))
    assert [(places, corners) for places, corners, _ in found] == [([0], [(0, 0)]), ([0], [(0, 2)]), ([1], [(0, 2)])]
    assert torch.equal(found[2][2], image[1:2, :, :, 2:])


def test_the_first_filters(task: Classification):
    found = first_filters(task)
    assert found is not None
    assert found[0] == "conv1.0"  # a deep stem
    weight = task.network.conv1[0].weight[0]
    pixel = found[1][8 + 20, 8 + 20]  # the middle of the first of 16 tiles, 42 pixels wide
    expected = 127.5 + 127.5 * weight[:, 1, 1] / weight.abs().max()
    np.testing.assert_allclose(pixel, expected.numpy(), atol=1)


def test_pictures_are_as_large_as_the_network_takes_them(task: Classification):
    maps = list_maps(task)
    assert picture_size(task, [], 24) == (24, 24)
    assert picture_size(task, choose_maps(task, maps, ["act1"]), 48) == (32, 32)  # units see 11 pixels
    fixed = Classification(backbone="mixer_s32_224", num_classes=2, image_size=224, in_chans=3)
    fixed.configure_model()
    assert picture_size(fixed, [], 64) == (224, 224)


def test_a_map_of_a_set():
    rng = np.random.default_rng(0)
    classes = np.repeat([0, 1], 15)
    vectors = rng.normal(size=(30, 6)) + 8.0 * classes[:, None]
    places = plane(vectors, 0, Clock(None))
    np.testing.assert_allclose(places["PCA"][0], PCA(2, random_state=0).fit_transform(vectors))
    assert places["t-SNE"][0].shape == (30, 2)
    assert list(plane(vectors, 0, Clock(1e-9))) == ["PCA"]
    assert alike_neighbors(vectors, classes) == 1.0
    of_pixels = Embedded(amounts=[np.array([90.0, 10, 0]), np.array([80.0, 0, 20]), np.array([95.0, 5, 0])])
    assert of_pixels.classes().tolist() == [1, 2, 0]  # there is background everywhere


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]):
    write_checkpoint(Path("a.ckpt"), "classification", folder)
    picture = str(next(folder.rglob("*.jpg")))
    parts = "--parts=[filters,exemplars,embedding,channels,neurons,classes]"
    layers = ["act1", "layer3"]
    for name in ("one", "two"):
        words = [
            *QUICK,
            "--ckpt_path=a.ckpt",
            f"--output={name}",
            f"--dream={picture}",
            "--octaves=2",
            parts,
            f"--layers=[{','.join(layers)}]",
        ]
        assert main(["features", *words]) == 0
    assert "one/index.html: 2 layers" in capsys.readouterr().out
    names = {path.name for path in Path("one").iterdir()}
    pages = {f"{layer}.{kind}" for layer in layers for kind in ("html", "png")}
    assert names == pages | {"index.html", "features.json", "filters.png", "classes.png", "dream.png"}
    for name in names - {"features.json", "index.html"}:
        if name.endswith("png"):
            assert Path("one", name).read_bytes() == Path("two", name).read_bytes(), name
    found = json.loads(Path("one/features.json").read_text())
    assert [layer["name"] for layer in found["layers"]] == layers
    channel = found["layers"][1]["channels"][0]
    assert len(channel["exemplars"]) == 2
    assert channel["exemplars"][0]["value"] >= channel["exemplars"][1]["value"]
    assert set(found["seconds"]) == {
        "choice",
        "filters",
        "exemplars",
        "embedding",
        "classes",
        *parts[9:-1].split(","),
        "dream",
    }
    assert Image.open("one/dream.png").width > 100
    page = Path("one/index.html").read_text()
    assert "PCA" in page
    assert "wrong" in page or "right" in page


@pytest.mark.parametrize("case", ["detection", "tokens", pytest.param("segmentation", marks=pytest.mark.slow)])
def test_other_networks(case: str, tmp_path: Path):
    if case == "tokens":
        source = write_images(tmp_path / "pictures", {"val/ant": 3, "val/bee": 3, "train/ant": 2, "train/bee": 2})
        net = {"backbone": "test_vit"}
        write_checkpoint(Path("a.ckpt"), "classification", source, model=net, data={"image_size": 160})
    else:
        kind = "boxes" if case == "detection" else "masks"
        source = write_planted(tmp_path / kind, kind, {"train": 2, "val": 6}, side=32, classes=2)
        names = ["checks", "columns"] if kind == "boxes" else ["background", "checks", "columns"]
        more = {"class_names": names, "image_size": 64, **({"class_ids": [1, 2]} if kind == "boxes" else {})}
        write_checkpoint(Path("a.ckpt"), case, source, data=more)
    words = ["--ckpt_path=a.ckpt", "--output=out", *QUICK]
    assert main(["features", *words]) == 0
    found = json.loads(Path("out/features.json").read_text())
    assert not found["notes"]
    assert len(found["layers"]) in (4, 5)
    assert len(found["classes"]) == (3 if case == "segmentation" else 2)
    assert all(row["relevance"] > 0 for layer in found["layers"] for row in layer["channels"])
    assert 0 <= found["neighbors_of_one_class"] <= 1


def test_pictures_without_labels(folder: Path):
    write_checkpoint(Path("a.ckpt"), "classification", folder)
    words = ["--ckpt_path=a.ckpt", f"--source={folder / 'test'}", "--output=out", "--parts=[exemplars,embedding]"]
    assert main(["features", *words, *QUICK, "--layers=[layer2]", "--channels=[4,1]"]) == 0
    found = json.loads(Path("out/features.json").read_text())
    assert [row["channel"] for row in found["layers"][0]["channels"]] == [4, 1]
    assert found["neighbors_of_one_class"] is None
    assert "/test/" in found["layers"][0]["channels"][0]["exemplars"][0]["path"]


def test_the_time_is_kept(folder: Path, capsys: pytest.CaptureFixture[str]):
    write_checkpoint(Path("a.ckpt"), "classification", folder)
    words = ["--ckpt_path=a.ckpt", "--output=out", *QUICK, "--steps=100000", "--time_limit=1.5"]
    assert main(["features", *words]) == 0
    found = json.loads(Path("out/features.json").read_text())
    assert sum(found["seconds"].values()) < 6
    assert any("of 100000 steps" in note for note in found["notes"])
    assert "warning: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layers=[layer9]"], "--layers names 'layer9'"),
        (["--channels=[9999]"], "--channels names 9999, but act1 has channels 0 to"),
        (["--dream=nothing.jpg"], "--dream nothing.jpg does not exist"),
    ],
)
def test_mistakes_that_the_network_or_the_disk_tells(words, message, folder, capsys):
    write_checkpoint(Path("a.ckpt"), "classification", folder)
    assert main(["features", "--ckpt_path=a.ckpt", *words]) in (1, 2)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"channels": ()}, "--channels is an empty list"),
        ({"parts": ()}, "--parts is an empty list"),
        ({"steps": 0}, "--steps is 0"),
        ({"time_limit": 0}, "--time_limit is 0"),
        ({"size": 8}, "--size is 8"),
    ],
)
def test_settings_that_make_no_sense(values, message):
    with pytest.raises(UserError, match=message):
        Settings(**values).check()
