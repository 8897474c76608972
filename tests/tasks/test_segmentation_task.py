"""The segmentation task around its network: views, the presence head, weights, soft masks, windows, rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks import Segmentation
from tasks.segmentation.losses import segmentation_loss


class Pixelwise(nn.Module):
    """Logits of each pixel from its own three channels, so what is flipped gives what is flipped."""

    def __init__(self, classes: int, presence: Tensor | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, classes, 1)
        self.presence = presence

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        logits: Tensor = 3 * self.layer(image)
        return logits if self.presence is None else (logits, self.presence)


class Ramp(nn.Module):
    """Two logits a pixel: the column, counted from the left, and the row from the top, whatever the image shows."""

    def forward(self, image: Tensor) -> Tensor:
        batch, _, height, width = image.shape
        columns = torch.arange(width).expand(height, width).float()
        rows = torch.arange(height).unsqueeze(1).expand(height, width).float()
        return torch.stack([columns, rows, 0 * rows]).expand(batch, -1, -1, -1)


def task(network: nn.Module | None = None, num_classes: int = 3, **arguments) -> Segmentation:
    made = Segmentation("unet", "test_resnet", num_classes=num_classes, in_chans=3, image_size=32, **arguments)
    made.configure_model()
    made.network = network or Pixelwise(1 if made.kind == "binary" else num_classes)
    return made.eval()


def images(number: int = 2, height: int = 8, width: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (number, 3, height, width), generator=generator).to(torch.uint8)


def batch(**more) -> dict:
    generator = torch.Generator().manual_seed(2)
    mask = torch.randint(0, 3, (2, 8, 12), generator=generator).to(torch.uint8)
    mask[0, :2] = 255
    return {"image": images(), "mask": mask, **more}


# Scores and views.


@pytest.mark.parametrize("tta", [["hflip"], ["vflip"], ["hflip", "vflip"]])
def test_flipped_views_are_flipped_back(tta):
    plain, flipped = task(), task(tta=tta)
    assert torch.allclose(flipped.scores(images()), plain.scores(images()), atol=1e-6)


@pytest.mark.parametrize(("tta", "axis"), [("hflip", 3), ("vflip", 2)])
def test_views_are_flipped_along_their_axis_and_averaged(tta, axis):
    scores = task(Ramp()).scores(images())
    expected = (scores + scores.flip(axis)) / 2
    assert torch.allclose(task(Ramp(), tta=[tta]).scores(images()), expected, atol=1e-6)
    assert not torch.allclose(scores, expected, atol=0.1)


def test_scaled_views_are_resized_there_and_back():
    plain, scaled = task(), task(tta_scales=[0.5, 2.0])
    image = images()
    expected = [plain.scores(image)]
    for size, antialias in (((4, 6), True), ((16, 24), False)):
        resized = F.interpolate(image.float(), size, mode="bilinear", antialias=antialias).round().to(torch.uint8)
        expected.append(F.interpolate(plain.scores(resized), (8, 12), mode="bilinear"))
    assert torch.allclose(scaled.scores(image), torch.stack(expected).mean(0), atol=1e-6)


def test_scores_are_a_softmax_or_sigmoids():
    assert torch.allclose(task().scores(images()).sum(1), torch.ones(2, 8, 12))
    assert task(num_classes=2).scores(images()).shape == (2, 1, 8, 12)
    made = task(multi_label=True)
    assert torch.allclose(made.scores(images()), made(images()).sigmoid())


# The loss.


def test_weights_scale_each_images_loss():
    made = task()
    each = [made.loss({k: v[i : i + 1] for k, v in batch().items()})["loss"].item() for i in range(2)]
    weighted = made.loss(batch(weight=torch.tensor([3.0, 0.5])))["loss"].item()
    assert weighted == pytest.approx((3 * each[0] + 0.5 * each[1]) / 2, rel=1e-5)


def test_soft_masks_are_the_targets():
    made, soft = task(), torch.rand(2, 3, 8, 12).softmax(1)
    found = made.loss(batch(soft_mask=soft.half()))["loss"].item()
    expected = segmentation_loss(
        made(images()), batch()["mask"], kind="multiclass", losses={"cross_entropy": 1.0}, soft_mask=soft.half()
    )
    assert found == pytest.approx(expected["loss"].item())
    assert abs(found - made.loss(batch())["loss"].item()) > 0.01


@pytest.mark.parametrize(
    ("losses", "arguments"),
    [
        ({"cross_entropy": 1.0}, {"label_smoothing": 0.2}),
        ({"cross_entropy": 1.0}, {"class_weights": [0.5, 1.0, 2.0]}),
        ({"focal": 1.0}, {"focal_gamma": 4.0}),
        ({"tversky": 1.0}, {"tversky_alpha": 0.9}),
        ({"tversky": 1.0}, {"tversky_beta": 0.1}),
        ({"cross_entropy": 0.5, "dice": 2.0}, {}),
    ],
)
def test_arguments_of_the_losses_arrive_there(losses, arguments):
    made = task(losses=losses, **arguments)
    as_tensors = {k: torch.tensor(v) if isinstance(v, list) else v for k, v in arguments.items()}
    common = {"kind": "multiclass", "losses": losses}
    logits, mask = made(images()), batch()["mask"]
    expected = segmentation_loss(logits, mask, **common, **as_tensors)
    found = made.loss(batch())
    assert found.keys() == expected.keys()
    assert {k: v.item() for k, v in found.items()} == pytest.approx({k: v.item() for k, v in expected.items()})
    if arguments:
        assert abs(found["loss"] - segmentation_loss(logits, mask, **common)["loss"]) > 1e-3


def presence_loss(logits: list[list[float]], present: list[list[float]]) -> list[float]:
    """Of each image, by hand: the mean over the classes of the negative log of the right answer."""
    p = torch.tensor(logits).sigmoid()
    target = torch.tensor(present)
    return (-(target * p.log() + (1 - target) * (1 - p).log())).mean(1).tolist()


def test_the_presence_head_learns_which_classes_an_image_holds():
    logits = [[2.0, -1.0, 0.5], [0.0, 1.0, -3.0]]
    made = task(Pixelwise(3, torch.tensor(logits)), aux_weight=0.4)
    mask = torch.full((2, 8, 12), 255, dtype=torch.uint8)
    mask[0, 0, 0], mask[0, 1, 1], mask[1, 3, 3] = 0, 2, 1
    first, second = presence_loss(logits, [[1, 0, 1], [0, 1, 0]])
    found = made.loss({"image": images(), "mask": mask})
    assert found["presence"].item() == pytest.approx((first + second) / 2)
    rest = task().loss({"image": images(), "mask": mask})["loss"].item()
    assert found["loss"].item() == pytest.approx(rest + 0.4 * (first + second) / 2)
    weighted = made.loss({"image": images(), "mask": mask, "weight": torch.tensor([3.0, 0.0])})
    assert weighted["presence"].item() == pytest.approx(3 * first / 2)


def test_the_presence_of_overlapping_labels():
    logits = [[2.0, -1.0, 0.5], [0.0, 1.0, -3.0]]
    made = task(Pixelwise(3, torch.tensor(logits)), multi_label=True, aux_weight=1.0)
    mask = torch.zeros(2, 3, 8, 12, dtype=torch.uint8)
    mask[0, 1, 4, 4], mask[1, 2] = 1, 255  # what is ignored is not there
    first, second = presence_loss(logits, [[0, 1, 0], [0, 0, 0]])
    assert made.loss({"image": images(), "mask": mask})["presence"].item() == pytest.approx((first + second) / 2)


# Predictions.

WHOLE = torch.tensor([8.0, 12, 1, 1, 0, 0])


def test_windows_give_what_the_whole_picture_gives():
    made = task()
    whole = made.predict({"image": images(), "geometry": WHOLE.expand(2, -1)})["mask"]
    windows = torch.tensor([[y, x, y + 6, x + 8] for y in (0, 2) for x in (0, 4)])
    tiled = made.predict({"image": images(), "tiles": [windows, windows]})["mask"]
    assert all(torch.equal(a, b) for a, b in zip(whole, tiled, strict=True))
    assert torch.equal(whole[0], made.scores(images())[0].argmax(0).to(torch.uint8))


def test_confidence_and_second_class():
    made, inputs = task(), {"image": images(1), "geometry": WHOLE.unsqueeze(0)}
    made.with_confidence = 2
    found, scores = made.predict(inputs), made.scores(images(1))[0]
    ranked = scores.sort(0, descending=True)
    assert torch.equal(found["mask"][0], ranked.indices[0].to(torch.uint8))
    assert torch.equal(found["confidence"][0], (ranked.values[0] * 255).to(torch.uint8))
    assert torch.equal(found["second"][0], torch.stack([ranked.indices[1], (ranked.values[1] * 255)]).to(torch.uint8))
    made.with_confidence = 1
    assert made.predict(inputs).keys() == {"mask", "confidence"}


def test_rows_are_fractions_of_each_image_alone():
    made = task()
    mask = torch.zeros(4, 5, dtype=torch.uint8)
    mask[0, :4], mask[1, 0] = 2, 255
    truth = mask.clone()
    truth[0, 0], truth[1, 0] = 1, 0
    inputs = {"path": ["a/b.png"], "target": [{"mask": truth}]}
    (row,) = made.rows(inputs, {"mask": [mask]}, ["sky", "tree", "car"])
    areas = {name: row[f"area_{name}"] for name in ("sky", "tree", "car")}
    assert areas == pytest.approx({"sky": 15 / 20, "tree": 0, "car": 4 / 20})
    assert row["accuracy"] == pytest.approx(18 / 20)
    assert row["miou"] == pytest.approx((15 / 16 + 0 + 3 / 4) / 3)
    assert (row["height"], row["width"]) == (4, 5)
    caption = made.captions(inputs, {"mask": [mask]}, ["sky", "tree", "car"])
    assert caption == ["b.png · sky 75% · car 20%"]


def test_evaluation_is_against_the_original_masks():
    made = task()
    prediction = torch.tensor([[0, 1], [2, 2]], dtype=torch.uint8)
    target = torch.tensor([[0, 1], [2, 255]], dtype=torch.uint8)
    made.update_metrics({"target": [{"mask": target}, {"mask": 0 * target}]}, {"mask": [prediction, 0 * prediction]})
    assert float(made.eval_metrics.compute()["accuracy"]) == 1
