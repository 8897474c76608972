"""Several checkpoints as one model: means of probabilities, fused boxes; what does not go together is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import Callback

import pipelines
from pipelines.__main__ import main
from pipelines.fusion import fused, fused_found
from tests.checkpoints import write_checkpoint
from tests.conftest import write_images
from tests.pipelines.test_detection import write_coco
from tests.pipelines.test_segmentation import write_pairs

QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


def two(case: str, source: Path | str, **model: object) -> list[Path]:
    pairs = enumerate("ab")
    return [write_checkpoint(Path(f"{name}.ckpt"), case, source, seed=seed, model=model) for seed, name in pairs]


@pytest.mark.slow
def test_probabilities_of_classes_are_averaged_by_every_way(monkeypatch):
    """By the API, and by the commands, which leave the members' runs alone."""
    monkeypatch.setattr("pipelines.preparation.Pictures", lambda *_: Callback())
    source = write_images(
        Path("pictures"), {"train/ant": 1, "train/bee": 1, "val/ant": 1, "test/ant": 2, "test/bee": 1}
    )
    files = two("classification", source)
    each = [[r.probabilities for r in pipelines.load(file, "cpu").predict(source / "test")] for file in files]
    mean = np.mean(each, axis=0)
    assert np.abs(each[0][0] - each[1][0]).max() > 1e-3
    found = pipelines.load(files, "cpu").predict(source / "test")
    assert np.array([r.probabilities for r in found]) == pytest.approx(mean, abs=1e-6)

    words = ["--ckpt_path", "[a.ckpt,b.ckpt]", *QUIET]
    assert main(["test", *words]) == 0
    run = Path("runs/classification-ensemble/0")
    assert json.loads((run / "ensemble.json").read_text()) == {"checkpoints": ["a.ckpt", "b.ckpt"]}
    tested = json.loads((run / "test.json").read_text())
    nll = -np.log(mean[[0, 1, 2], [0, 0, 1]]).mean()
    assert tested["test/loss"] == pytest.approx(nll, abs=1e-5)
    sources = f"[{source}/test/ant/*.jpg,{source}/test/bee]"
    assert main(["predict", *words, "--source", sources, "--output", "out"]) == 0
    assert Path("out/predictions.csv").read_text().count("\n") == 4
    assert main(["predict", "--ckpt_path", "a.ckpt", "--source", sources, "--output", "one", *QUIET]) == 0
    assert not (Path("one") / "ensemble.json").exists()


@pytest.mark.slow
def test_scores_of_pixels_are_averaged():
    source = write_pairs(Path("pictures"), {"test": 2})
    files = two("segmentation", source)
    models = [pipelines.load(file, "cpu") for file in files]
    together = pipelines.load(files, "cpu")
    path = str(source / "images/test/00.jpg")
    batch = models[0].predictor.batch([{"image": path, "path": path}])
    with torch.inference_mode():
        scores = torch.stack([model.predictor.task.scores(batch["image"]) for model in models]).mean(0)
        expected = models[0].predictor.task.predict(batch, lambda image: scores)["mask"][0].numpy()
    (found,) = together.predict(path)
    assert np.array_equal(found.mask, expected)
    assert not np.array_equal(found.mask, models[0].predict(path)[0].mask)
    with pytest.raises(pipelines.UserError, match="load one checkpoint"):
        together.features(path)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["detection", "instances"])
def test_boxes_and_masks_are_fused(case):
    """A model joined with itself says what it says alone; two models what weighted boxes fusion makes of them."""
    source = write_coco(Path("pictures"), {"test": 2})
    files = two(case, source, nms_iou=0.2)  # so that no two boxes of one model are one object
    alone = [pipelines.load(file, "cpu").predict(source / "test", threshold=0.0) for file in files]
    for result, expected in zip(
        pipelines.load([files[0]] * 2, "cpu").predict(source / "test", threshold=0.0), alone[0], strict=True
    ):
        assert len(result) == len(expected) > 3
        assert result.boxes == pytest.approx(expected.boxes, abs=1e-3)
        assert result.scores == pytest.approx(expected.scores, abs=1e-6)
        assert result.run_lengths == expected.run_lengths
    joined = pipelines.load(files, "cpu").predict(source / "test", threshold=0.0)
    for result, first, second in zip(joined, *alone, strict=True):
        entries = [
            {
                "bbox": [one["bbox"] for one in r.to_coco()],
                "scores": r.scores.tolist(),
                "labels": r.labels.tolist(),
                "size": r.size,
            }
            for r in (first, second)
        ]
        expected = fused(entries)
        most = len(result)
        assert result.scores == pytest.approx(np.array(expected["scores"][:most]), abs=1e-6)
        corners = np.array(expected["bbox"][:most])
        corners[:, 2:] += corners[:, :2]
        assert result.boxes == pytest.approx(corners, abs=1e-3)


def test_the_mask_of_an_object_is_the_weighted_majority():
    from datamodules.common import rle

    masks = torch.zeros(3, 4, 6, dtype=torch.bool)
    masks[0, :, :2], masks[1, :, :4], masks[2, :, :6] = True, True, True
    encoded = rle.of_masks(masks)
    box = torch.tensor([[0.0, 0.0, 6.0, 4.0]])

    def detector(score: float, mask: int) -> dict[str, list[object]]:
        return {
            "boxes": [box],
            "scores": [torch.tensor([score])],
            "labels": [torch.tensor([0])],
            "masks": [[encoded[mask]]],
        }

    found = fused_found([detector(0.5, 0), detector(0.4, 1), detector(0.3, 2)], 10)
    (mask,) = found["masks"][0]
    assert rle.area(mask) == 16  # (0.4 + 0.3) / 1.2 of the columns 2 and 3, 0.3 / 1.2 of the last two
    assert found["scores"][0].tolist() == pytest.approx([0.4])


def test_what_does_not_go_together_is_refused(capsys):
    first = write_checkpoint(Path("a.ckpt"), "classification", "nowhere")
    for case, changes, message in (
        ("detection", {}, "a Detection and a Classification. Give checkpoints of one task"),
        ("classification", {"class_names": ["bee", "ant"]}, "their classes are ['bee', 'ant'] and ['ant', 'bee']"),
        ("classification", {"image_size": 32}, "data.image_size is 32 and 48"),
        ("classification", {"resize": "stretch"}, "data.resize is stretch and crop"),
    ):
        other = write_checkpoint(Path("b.ckpt"), case, "nowhere", data=changes)
        with pytest.raises(pipelines.UserError) as caught:
            pipelines.load([first, other], "cpu")
        assert message in str(caught.value)
        assert main(["test", "--ckpt_path", "[a.ckpt,b.ckpt]"]) != 0
        assert message in capsys.readouterr().err
    assert main(["test", "--ckpt_path", "[a.ckpt,none.ckpt]"]) != 0
    assert "none.ckpt does not exist" in capsys.readouterr().err
    Path("x.yaml").write_text("{}")
    assert main(["test", "--config", "x.yaml", "--ckpt_path", "[a.ckpt,b.ckpt]"]) == 2
    assert "leave --config out" in capsys.readouterr().err
    assert main(["probe", "--ckpt_path", "[a.ckpt,b.ckpt]"]) != 0
    assert "names several checkpoints; this command takes one" in capsys.readouterr().err
