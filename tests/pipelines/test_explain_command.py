"""The command ``explain``: what it writes, prints and refuses, for classes, boxes and masks."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

import pipelines
from benchmarks.planted import picture_with_discs, write_planted
from pipelines.__main__ import main
from tests.checkpoints import write_checkpoint

QUICK = ["--steps=4", "--samples=2", "--trainer.accelerator=cpu"]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three pictures of two sizes."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, side in enumerate((64, 64, 80)):
        scene = picture_with_discs(np.random.default_rng(number), side, 8, 2)
        cv2.imwrite(str(folder / f"{number}.png"), scene.image[:56])
    return folder


def explained(words: list[str], folder: Path, quick: list[str] = QUICK) -> dict:
    assert main(["explain", *words, *quick, f"--output={folder}"]) == 0
    return json.loads((folder / "explain.json").read_text())


def test_a_classifier(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    checkpoint = write_checkpoint(tmp_path / "a.ckpt", "classification", pictures)
    values = explained([f"--ckpt_path={checkpoint}", f"--source={pictures}"], tmp_path / "out")
    printed = capsys.readouterr().out
    names = ["gradient", "integrated_gradients", "smoothgrad", "occlusion", "gradcam", "layercam", "lrp"]
    assert sorted(values["pictures"][0]["methods"]) == sorted(names)
    assert values["methods"][-1]["method"] == "random"
    gains = [one["gain"] for one in values["methods"][:-1]]
    assert gains == sorted(gains, reverse=True)
    assert all(f"\n{name} " in printed for name in [*names, "random"])
    assert len(values["pictures"]) == 3
    for one in values["pictures"]:
        assert one["methods"]["lrp"]["conserved"] == pytest.approx(1, abs=0.01)
        areas = [of[key] for of in one["methods"].values() for key in ("deletion", "insertion")]
        assert all(0 <= area <= 1 for area in areas)
    assert "<svg" in (tmp_path / "out" / "explain.html").read_text()
    sheet = cv2.imread(str(tmp_path / "out" / "overlays" / "2.jpg"))
    assert sheet.shape[1] > 8 * 320


def test_one_method_and_a_class_of_a_token_net(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = {"backbone": "test_vit"}
    checkpoint = write_checkpoint(tmp_path / "a.ckpt", "classification", pictures, model=model)
    words = [f"--ckpt_path={checkpoint}", f"--source={pictures / '0.png'}", "--target=bee"]
    values = explained([*words, "--method=layercam,gradcam", "--faithful=false"], tmp_path / "out", QUICK[2:])
    assert [one["target"].split()[0] for one in values["pictures"]] == ["bee"]
    assert list(values["pictures"][0]["methods"]) == ["layercam", "gradcam"]
    assert values["methods"] == []
    explained([*words, "--faithful=false"], tmp_path / "all")
    assert "lrp is left out: lrp has no rule for Attention" in capsys.readouterr().out
    assert main(["explain", *words, "--method=lrp", f"--output={tmp_path / 'no'}"]) == 1
    assert "lrp has no rule for Attention (blocks.0.attn)" in capsys.readouterr().err


MISTAKES = [
    (["--method=gradcm"], "--method is 'gradcm'; 'gradcm' is none of gradient, "),
    (["--target=bea"], "--target is 'bea', which is no class of the checkpoint; did you mean bee?"),
    (["--at=[1,2,3]"], "--at is [1, 2, 3]; it takes a point [x, y] or a rectangle [x1, y1, x2, y2]."),
    (["--at=[1,2]"], "--at is for boxes and masks"),
    (["--layer=layer7"], "--layer layer7: the network has no such layer. Did you mean layer"),
    (["--limit=0"], "--limit is 0"),
    (["--steps=0"], "--steps is 0; it must be at least 1."),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_mistakes(words: list[str], message: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    checkpoint = write_checkpoint(tmp_path / "a.ckpt", "classification", pictures)
    given = [f"--ckpt_path={checkpoint}", f"--source={pictures}", "--method=gradcam", f"--output={tmp_path / 'o'}"]
    assert main(["explain", *given, *words]) in (1, 2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_the_report_explains_the_worst_images(tmp_path: Path):
    source = write_planted(tmp_path / "data", "classes", {"train": 4, "val": 8}, side=48, classes=2)
    checkpoint = write_checkpoint(
        tmp_path / "a.ckpt", "classification", source, data={"class_names": ["checks", "columns"], "cache": "none"}
    )
    words = [f"--ckpt_path={checkpoint}", "--trainer.accelerator=cpu", f"--runs_dir={tmp_path / 'runs'}"]
    for number in (2, 0):
        given = [f"--name=r{number}", f"--trainer.report_explanations={number}", "--trainer.enable_progress_bar=false"]
        assert main(["validate", *words, *given]) == 0
        (run,) = (tmp_path / "runs" / f"r{number}").iterdir()
        assert (run / "pictures" / "val_explanations.jpg").is_file() == bool(number)
        assert ("What the network looked at" in (run / "report.html").read_text()) == bool(number)
    height, width = cv2.imread(str(tmp_path / "runs" / "r2" / "0" / "pictures" / "val_explanations.jpg")).shape[:2]
    assert width > 2 * 320
    assert height > 2 * 320


@pytest.mark.slow
def test_boxes_and_masks(tmp_path: Path, pictures: Path):
    for case, data in (("detection", {"image_size": 64}), ("segmentation", {"image_size": 64})):
        checkpoint = write_checkpoint(tmp_path / f"{case}.ckpt", case, pictures, data=data)
        words = [
            f"--ckpt_path={checkpoint}",
            f"--source={pictures}",
            "--method=layercam,lrp",
            "--limit=2",
            "--faithful=false",
        ]
        values = explained(words, tmp_path / case)
        assert len(values["pictures"]) == 2
        assert all((one["box"] is not None) == (case == "detection") for one in values["pictures"])
        assert [one["methods"]["lrp"]["conserved"] for one in values["pictures"]] == pytest.approx([1, 1], abs=0.01)
        at = explained(
            [*words[:2], "--method=layercam", "--at=[30,30]", "--limit=1", "--faithful=false"], tmp_path / f"{case}_at"
        )
        assert len(at["pictures"]) == 1


def test_from_python(tmp_path: Path, pictures: Path):
    model = pipelines.load(write_checkpoint(tmp_path / "a.ckpt", "classification", pictures), "cpu")
    image = np.asarray(cv2.imread(str(pictures / "2.png")))[..., ::-1]
    (one,) = model.explain(image, method=["gradcam", "gradient"], target="bee", faithful=False)
    assert (one.path, one.target.label, list(one.methods)) == ("image0", 1, ["gradcam", "gradient"])
    assert one.methods["gradient"].heat.shape == image.shape[:2]
    assert one.methods["gradient"].areas is None
    with pytest.raises(pipelines.UserError, match="explain has no argument step; "):
        model.explain(image, step=3)
