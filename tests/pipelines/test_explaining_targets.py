"""What is explained: boxes by what made them in every family of detectors, pixels of every kind of segmentation."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from datamodules.common.errors import UserError
from pipelines.explaining.attribution import Settings, explain_target, methods_of
from pipelines.explaining.maps import activations, find_place
from pipelines.explaining.targets import Wanted, find_targets, label_of, scores_of
from tasks.classification import Classification
from tasks.detection.detectors.families import Name
from tasks.detection.task import Detection
from tasks.segmentation.task import Segmentation

SMALL: dict[str, dict[str, Any]] = {
    "fcos": {"head_channels": 16, "head_depth": 1},
    "retinanet": {"head_channels": 16, "head_depth": 1},
    "faster_rcnn": {"head_channels": 16, "box_head_width": 16, "proposals": [20, 20]},
    "mask_rcnn": {"head_channels": 16, "box_head_width": 16, "proposals": [20, 20], "mask_head_width": 8},
    "yolo": {"width": 16},
    "rtdetr": {"width": 16, "heads": 2, "queries": 20, "decoder_layers": 1, "ffn_width": 16},
    "box_regression": {"head_channels": 16},
}
NAMES = ["ant", "bee", "fly"]
WHOLE = (64, 96, 1, 1, 0, 0)


def batch_of(image: Tensor, geometry: tuple[float, ...] = WHOLE) -> dict[str, Any]:
    return {"image": image, "geometry": torch.tensor([geometry]), "path": ["a.png"]}


def detection(family: str) -> Detection:
    torch.manual_seed(0)
    task = Detection(
        detector=family,  # type: ignore[arg-type]
        backbone="test_resnet",
        num_classes=3,
        in_chans=3,
        image_size=[64, 96],
        detector_args=SMALL[family],
        min_score=0.001,
    )
    task.configure_model()
    if family != "rtdetr":  # heads start near 0, and all boxes would be alike
        for parameter in task.network.parameters():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    return task.eval()


QUICK = ("yolo", "fcos", "faster_rcnn", "box_regression")
FAMILIES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in get_args(Name)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_box_is_explained_by_what_made_it(family: str):
    if family == "rtdetr":
        pytest.importorskip("transformers")
    task, image = detection(family), torch.rand(1, 3, 64, 96)
    found = task.find(image)[0]
    targets = find_targets(task, batch_of(image), Wanted(boxes=3), NAMES)
    assert 1 <= len(targets) <= 3
    for target in targets:
        best = (found["boxes"] - target.box).abs().amax(1).argmin()
        torch.testing.assert_close(target.box, found["boxes"][best])
        assert target.label == int(found["labels"][best])
        pair = torch.cat([image, image.flip(3)])
        logits, scores = scores_of(task, target, pair)
        assert logits.shape == scores.shape == (2,)
        assert float(scores[0]) == pytest.approx(float(found["scores"][best]), abs=1e-4)
    first = targets[0]
    x, y = ((first.box[:2] + first.box[2:]) / 2).int().tolist()
    at = find_targets(task, batch_of(image), Wanted(label=first.label, at=[x, y]), NAMES)[0]
    torch.testing.assert_close(at.box, first.box)
    heat = explain_target(task, first, image, "layercam", Settings()).values
    assert heat.shape == (64, 96)
    assert heat.max() > 0


@pytest.mark.parametrize("family", ["yolo", "fcos", "faster_rcnn"])
def test_relevance_of_a_box_is_conserved(family: str):
    task, image = detection(family), torch.rand(1, 3, 64, 96)
    target = find_targets(task, batch_of(image), Wanted(), NAMES)[0]
    assert explain_target(task, target, image, "lrp", Settings()).conserved == pytest.approx(1, abs=0.01)


@pytest.mark.slow
def test_relevance_of_attention_is_refused():
    pytest.importorskip("transformers")
    task, image = detection("rtdetr"), torch.rand(1, 3, 64, 96)
    target = find_targets(task, batch_of(image), Wanted(), NAMES)[0]
    with pytest.raises(UserError, match="lrp has no rule for"):
        explain_target(task, target, image, "lrp", Settings())


def segmentation(classes: int = 3, *, multi_label: bool = False) -> Segmentation:
    torch.manual_seed(0)
    task = Segmentation("unet", "test_resnet", classes, in_chans=3, image_size=[64, 96], multi_label=multi_label)
    task.configure_model()
    return task.eval()


@pytest.mark.parametrize(("classes", "multi_label"), [(3, False), (2, False), (3, True)])
def test_pixels_of_masks(classes: int, multi_label: bool):
    task, image = segmentation(classes, multi_label=multi_label), torch.rand(1, 3, 64, 96)
    scores = task.outputs(image)["scores"][0]
    if classes == 2:
        scores = torch.cat([1 - scores, scores])
    said = scores.argmax(0)
    target = find_targets(task, batch_of(image), Wanted(), NAMES[:classes])[0]
    label = int(torch.bincount(said.flatten()).argmax())
    assert target.label == label
    assert target.pixels.equal(said == label)
    assert target.probability == pytest.approx(float(scores[label][said == label].mean()), abs=1e-5)
    assert float(scores_of(task, target, image)[1][0]) == pytest.approx(target.probability, abs=1e-5)
    for name in ("lrp", "layercam", "gradient"):
        heat = explain_target(task, target, image, name, Settings())
        assert heat.values.abs().max() > 0
    assert explain_target(task, target, image, "lrp", Settings()).conserved == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("size", [(64, 96), (60, 90)])
def test_an_encoders_first_level_is_no_map_where_it_is_the_image(size: tuple[int, int]):
    """The image is padded to multiples of 32: Grad-CAM once gave the photograph itself, as a map of three channels."""
    task, image = segmentation(), 255 * torch.rand(1, 3, *size)  # so large that the first level matters most
    target = find_targets(task, batch_of(image), Wanted(), NAMES)[0]
    features, _ = activations(find_place(task, image), lambda x: scores_of(task, target, x)[0], image)
    assert len(features) > 3
    assert max(features.shape[1:]) < 96


def test_a_pixel_in_original_coordinates_and_a_background_that_is_left_out():
    task, image = segmentation(), torch.rand(1, 3, 64, 96)
    half = (32, 40, 2.0, 2.0, 8.0, 0.0)  # a picture of 32 x 40 in the middle of the canvas
    pixel = find_targets(task, batch_of(image, half), Wanted(at=[3, 10]), NAMES)[0]
    assert np.argwhere(pixel.pixels.numpy()).tolist() == [[20, 14], [20, 15], [21, 14], [21, 15]]
    area = find_targets(task, batch_of(image, half), Wanted(label=1, at=[0, 0, 40, 32]), NAMES)[0]
    assert (area.label, int(area.pixels.sum())) == (1, 64 * 80)
    with pytest.raises(UserError, match=r"--at 40 3 lies outside of a\.png, 40 x 32 pixels"):
        find_targets(task, batch_of(image, half), Wanted(at=[40, 3]), NAMES)
    names = ["background", "a", "b"]
    assert find_targets(task, batch_of(image), Wanted(), names)[0].label != 0


def test_labels_of_several_and_names():
    torch.manual_seed(0)
    task = Classification("test_resnet", 3, in_chans=3, image_size=64, multi_label=True)
    task.configure_model()
    image = torch.rand(1, 3, 64, 64)
    task.eval()
    with torch.no_grad():
        task.network.get_classifier().bias.copy_(torch.tensor([5.0, -5.0, 5.0]))
    found = find_targets(task, batch_of(image), Wanted(), NAMES)
    assert [target.label for target in found] == [0, 2]
    assert label_of("bee", NAMES) == label_of("1", NAMES) == 1
    with pytest.raises(UserError, match="did you mean bee"):
        label_of("beee", NAMES)
    with pytest.raises(UserError, match="tiles"):
        find_targets(task, batch_of(image) | {"tiles": torch.zeros(1, 4)}, Wanted(), NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("family", get_args(Name))
def test_every_method_explains_a_box_of_every_family(family: str):
    task, image = detection(family), torch.rand(1, 3, 64, 96)
    target = find_targets(task, batch_of(image), Wanted(), NAMES)[0]
    for method in methods_of(None):
        if (method, family) == ("lrp", "rtdetr"):
            continue
        heat = explain_target(task, target, image, method, Settings(steps=4, samples=2))
        assert heat.values.isfinite().all(), method
        assert heat.values.std() > 0 or method == "gradcam", method  # what speaks against a box is left out of it
        # The coordinates that are the head's input in box_regression take their part.
        assert heat.conserved is None or heat.conserved == pytest.approx(1, abs=0.01) or family == "box_regression"
