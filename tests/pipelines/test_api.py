"""The Python API: it predicts what ``test`` predicts, from any kind of source, and leaves the process as it was."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning.callbacks import Callback

import pipelines
from datamodules.decoding.images import read_image
from tests.checkpoints import CASES, write_checkpoint
from tests.conftest import write_images
from tests.pipelines.test_detection import write_coco
from tests.pipelines.test_segmentation import write_pairs

QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "num_sanity_val_steps": 0, "wandb": {"mode": "off"}}


class Seen(Callback):
    """Keeps what the task predicts in ``test``, one dict an image, by path."""

    found: ClassVar[dict[str, dict[str, Any]]] = {}

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        for i, path in enumerate(batch["path"]):
            self.found[path] = {key: values[i] for key, values in outputs.items()}


@pytest.fixture
def blank(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figures: they have tests of their own, and take most of a short command's time."""
    monkeypatch.setattr("pipelines.preparation.Pictures", lambda *_: Callback())
    monkeypatch.setattr("pipelines.preparation.Curves", lambda *_: Callback())


def write_source(case: str) -> tuple[Path, Path]:
    """A data set, and the folder of its five test pictures."""
    root = Path("pictures")
    if case == "classification":
        counts = {"train/ant": 1, "train/bee": 1, "val/ant": 1, "test/ant": 3, "test/bee": 2}
        return write_images(root, counts, (50, 70)), root / "test"
    counts = {"train": 1, "val": 1, "test": 5}
    if case == "segmentation":
        return write_pairs(root, counts), root / "images/test"
    return write_coco(root, counts), root / "test"


def plain(result: Any) -> dict[str, Any]:
    """A result's values as ``Task.predict`` names them."""
    if isinstance(result, pipelines.ClassificationResult):
        return {"probabilities": result.probabilities}
    if isinstance(result, pipelines.SegmentationResult):
        return {"mask": result.mask}
    assert isinstance(result, pipelines.DetectionResult)
    boxes: dict[str, Any] = {key: getattr(result, key) for key in ("boxes", "scores", "labels")}
    return boxes if result.run_lengths is None else {**boxes, "masks": list(result.run_lengths)}


def assert_equal(result: Any, expected: dict[str, Any]) -> None:
    for key, values in plain(result).items():
        if key == "masks":
            assert values == expected[key]
        else:
            assert np.array_equal(values, expected[key].numpy()), key


def assert_near(result: Any, expected: dict[str, Any]) -> None:
    """To 1e-5; at another batch size a pixel on the border of two classes may be the other one's."""
    for key, values in plain(result).items():
        if key == "mask":
            assert (values != expected[key].numpy()).mean() < 1e-3
        elif key != "masks":
            assert values == pytest.approx(expected[key].numpy(), rel=1e-5, abs=1e-5), key


@pytest.mark.parametrize("case", CASES)
def test_predictions_are_those_of_test(case, blank, monkeypatch):
    """Bit for bit at one batch size, from the folder, paths, arrays and tensors; pictures are turned by EXIF."""
    source, folder = write_source(case)
    checkpoint = write_checkpoint(Path("model.ckpt"), case, source)
    monkeypatch.setattr(Seen, "found", {})
    run = pipelines.evaluate(checkpoint, trainer={**QUIET, "callbacks": f"{__name__}.Seen"})
    assert run.directory is not None
    assert all(name.startswith("test/") for name in run.metrics)
    written = json.loads((run.directory / "test.json").read_text())
    assert run.metrics.keys() <= written.keys()
    paths = list(Seen.found)
    assert len(paths) == 5

    model = pipelines.load(checkpoint, device="cpu")
    everything: dict[str, Any] = {"threshold": 0.0} if "test/map" in run.metrics else {}
    arrays = [read_image(path) for path in paths]
    tensors = [torch.from_numpy(array).permute(2, 0, 1) for array in arrays]
    for given in (folder, paths, arrays, tensors):
        results = model.predict(given, **everything)
        assert len(results) == 5
        for result, expected, array in zip(results, Seen.found.values(), arrays, strict=True):
            assert_equal(result, expected)
            assert result.size == array.shape[:2]
    one_by_one = model.predict(iter(arrays), stream=True, batch_size=1, **everything)
    for result, expected in zip(one_by_one, Seen.found.values(), strict=True):
        assert_near(result, expected)
    if everything:  # what `predict` shows reaches the thresholds
        assert all((result.scores >= 0.5).all() for result in model.predict(paths))

    features = model.features(folder)
    assert features.dtype == np.float32
    assert features.shape == (5, 96)
    assert np.ptp(features, axis=0).max() > 0


@pytest.mark.slow
def test_tiles_are_those_of_test(blank, monkeypatch):
    source = write_pairs(Path("pictures"), {"train": 1, "val": 1, "test": 2}, (90, 100))
    checkpoint = write_checkpoint(Path("model.ckpt"), "segmentation", source)
    tiles = {"tile": 64, "resize": "native"}
    monkeypatch.setattr(Seen, "found", {})
    pipelines.evaluate(checkpoint, data=tiles, trainer={**QUIET, "callbacks": f"{__name__}.Seen"})
    results = pipelines.load(checkpoint, "cpu", data=tiles).predict(list(Seen.found))
    for result, expected in zip(results, Seen.found.values(), strict=True):
        assert_equal(result, expected)
    assert results[0].mask.shape == (90, 100)


# Results.


def test_a_result_of_each_kind_is_saved_drawn_and_handed_on(tmp_path):
    supervision = pytest.importorskip("supervision")
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)
    for case in CASES:
        model = pipelines.load(write_checkpoint(tmp_path / "model.ckpt", case, "nowhere"), "cpu")
        (result,) = model.predict(image, **({"threshold": 0.0} if "Detection" in CASES[case][0] else {}))
        assert result.path == "image0"
        assert result.size == (40, 60)
        assert result.plot().shape == (40, 60, 3)
        assert not np.array_equal(result.plot(), image)
        assert case in ("classification", "segmentation") or len(result) > 1
        written = json.loads(result.save(tmp_path / case).read_text())
        assert (written["height"], written["width"]) == (40, 60)
        assert Image.open(tmp_path / case / "overlays/image0.jpg").size == (60, 40)
        coco = result.to_coco(image_id=9)
        assert all(one["image_id"] == 9 for one in coco)
        handed_on = result.to_supervision()
        if case == "classification":
            assert result.class_name == result.top(1)[0][0] == CASES[case][3]["class_names"][result.label]
            assert handed_on.get_top_k(1)[0].tolist() == [result.label]
            assert written["labels"] == [result.class_name]
        elif case == "segmentation":
            assert np.array_equal(np.asarray(Image.open(tmp_path / case / "masks/image0.png")), result.mask)
            assert handed_on.class_id.tolist() == result.labels
            assert handed_on.mask.sum() == 40 * 60
            assert sum(result.areas.values()) == pytest.approx(1)
        else:
            assert isinstance(handed_on, supervision.Detections)
            assert np.array_equal(handed_on.xyxy, result.boxes)
            assert handed_on.data["class_name"].tolist() == result.names
            assert {one["category_id"] for one in coco} <= {7, 3}
            assert (result.masks is not None) == (case == "instances") == ("segmentation" in coco[0])
            x, y, width, height = coco[0]["bbox"]
            assert [x, y, x + width, y + height] == pytest.approx(result.boxes[0].tolist(), abs=1e-4)


def test_without_supervision_one_message_says_what_to_install(tmp_path, monkeypatch):
    model = pipelines.load(write_checkpoint(tmp_path / "model.ckpt", "classification", "nowhere"), "cpu")
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(pipelines.UserError, match=r"pip install .*supervision"):
        model.predict(np.zeros((8, 8, 3), np.uint8))[0].to_supervision()


# Sources.


def test_every_kind_of_source(tmp_path):
    folder = write_images(tmp_path / "new", {"a": 2, "b": 1})
    model = pipelines.load(write_checkpoint(tmp_path / "model.ckpt", "classification", "nowhere"), "cpu")
    paths = sorted(str(path) for path in folder.rglob("*.jpg"))
    assert [r.path for r in model.predict(folder)] == paths
    assert [r.name for r in model.predict(folder)] == ["a/000", "a/001", "b/000"]
    assert [r.path for r in model.predict(f"{folder}/a/*.jpg")] == paths[:2]
    assert [r.path for r in model.predict([paths[2], paths[2], Path(paths[0])])] == [paths[2], paths[2], paths[0]]
    grey = np.zeros((20, 30), np.uint8)
    batch = torch.rand(2, 3, 20, 30)
    mixed = [Image.open(paths[0]), grey, batch, batch[0].half(), batch.permute(0, 2, 3, 1).numpy()]
    results = model.predict(mixed)
    assert [r.path for r in results] == [f"image{i}" for i in range(7)]
    from_file = model.predict(paths[0])[0].probabilities
    assert np.array_equal(model.predict(Image.open(paths[0]))[0].probabilities, from_file)
    assert np.array_equal(results[2].probabilities, results[5].probabilities)
    assert model.predict([]) == []


def test_a_stream_is_read_as_its_results_are_taken(tmp_path):
    model = pipelines.load(write_checkpoint(tmp_path / "model.ckpt", "classification", "nowhere"), "cpu")
    taken = []

    def camera():
        for i in range(1000):
            taken.append(i)
            yield np.full((8, 8, 3), i % 255, np.uint8)

    results = model.predict(camera(), stream=True, batch_size=2)
    assert not taken
    assert [next(results).path, next(results).path, next(results).path] == ["image0", "image1", "image2"]
    assert len(taken) == 4


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere/*.jpg", "nowhere/\\*.jpg matches no file"),
        (3, "given a int; it takes a path"),
        (np.zeros(5, np.uint8), "an array with 1 axes"),
        (np.zeros((4, 4, 3), np.int64), "int64 have no known range"),
        (torch.full((3, 4, 4), 9.0), r"must lie in \[0, 1\]"),
    ],
)
def test_a_source_that_is_none_is_refused(tmp_path, source, message):
    model = pipelines.load(write_checkpoint(tmp_path / "model.ckpt", "classification", "nowhere"), "cpu")
    with pytest.raises(pipelines.UserError, match=message):
        model.predict(source)


def test_mistakes_in_load_are_named(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "model.ckpt", "classification", "nowhere")
    for arguments, message in (
        ({"checkpoint": "none.ckpt"}, "none.ckpt does not exist"),
        ({"checkpoint": []}, "empty list"),
        ({"device": "tpu9"}, "device is 'tpu9'"),
        ({"data": {"image_sise": 3}}, "data.image_sise is unknown"),
        ({"dat": {}}, "no argument dat"),
    ):
        with pytest.raises(pipelines.UserError, match=message):
            pipelines.load(**{"checkpoint": checkpoint, "device": "cpu", **arguments})
    model = pipelines.load(checkpoint, "cpu", data={"image_size": 40})
    with pytest.raises(pipelines.UserError, match="finds no boxes"):
        model.predict([], threshold=0.5)
    with pytest.raises(pipelines.UserError, match="batch_size is 0"):
        model.predict([], batch_size=0)


# Training.


def process() -> dict[str, Any]:
    """What belongs to the caller."""
    import matplotlib

    handlers = [h for name in ("pytorch_lightning", None) for h in logging.getLogger(name).handlers]
    return {
        "random": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
        "torch": torch.get_rng_state().tolist(),
        "environment": dict(os.environ),
        "signals": [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)],
        "warnings": list(warnings.filters),
        "logging": [(h, list(h.filters)) for h in handlers],
        "figures": matplotlib.get_backend(),
        "deterministic": (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark),
    }


def test_two_trainings_in_one_process_are_alike_and_leave_it_as_it_was(folder, blank):
    config = {
        "model": {"class_path": "Classification", "init_args": {"backbone": "test_resnet"}},
        "data": {"class_path": "ClassificationData", "init_args": {"source": str(folder), "image_size": 32}},
    }
    changes = {"data": {"num_workers": 0, "batch_size": 4}, "trainer": {**QUIET, "deterministic": True}}
    before = process()
    runs = [pipelines.train(config, name="birds", **changes, **{"trainer.max_epochs": 1}) for _ in range(2)]
    assert process() == before
    assert [run.directory for run in runs] == [Path("runs/birds/0"), Path("runs/birds/1")]
    assert runs[0].metrics == runs[1].metrics
    assert {"train/loss", "val/accuracy"} <= runs[0].metrics.keys()
    written = json.loads(
        (pipelines.evaluate(runs[0].checkpoint, "val", trainer=QUIET).directory / "validate.json").read_text()
    )
    assert written["val/accuracy"] == pytest.approx(runs[0].metrics["val/accuracy"])
    assert pipelines.load(runs[1].checkpoint, "cpu").class_names == ("ant", "bee")


def test_mistakes_in_train_are_the_commands(tmp_path):
    for words, keys, message in (
        ("nowhere.yaml", {}, "no ready config of that name"),
        ("quickstart", {"model": {"backbon": "x"}}, "did you mean --model.backbone?"),
        ("quickstart", {"trainer": {"max_epochs": "many"}}, "--trainer.max_epochs is 'many'"),
        ("noisy_student/digits", {}, "train is one training"),
    ):
        with pytest.raises(pipelines.UserError, match=message.replace("?", "\\?")):
            pipelines.train(words, **keys)
    with pytest.raises(pipelines.UserError, match=r"nowhere\.ckpt does not exist"):
        pipelines.evaluate("nowhere.ckpt")
    with pytest.raises(pipelines.UserError, match="split is 'train'"):
        pipelines.evaluate("nowhere.ckpt", "train")  # type: ignore[arg-type]
    assert not Path("runs").exists()


# Importing.


def test_importing_is_cheap_and_all_public_names_are_there():
    code = (
        "import sys, pipelines; print(sorted({m.partition('.')[0] for m in sys.modules} & {'torch', 'numpy', 'yaml'}))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, check=True)
    assert found.stdout.decode().strip() == "[]"
    for name in pipelines.__all__:
        assert getattr(pipelines, name) is not None
    assert {*pipelines._MODULES, "__version__"} == set(pipelines.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        pipelines.trian  # noqa: B018


def test_public_names_are_documented():
    page = (Path(__file__).parents[2] / "docs/python.md").read_text(encoding="utf-8")
    assert [name for name in pipelines.__all__ if f"`{name}" not in page and f"pipelines.{name}" not in page] == []
