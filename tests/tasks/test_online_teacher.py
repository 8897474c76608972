"""FixMatch and the mean teacher: losses by hand, labels without gradients, an average that stands outside."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from tasks import Classification, Detection, NoisyStudent, Segmentation
from tasks.online_teacher import MeanTeacher, confident_labels

SIZE = 32


def classifier(**arguments) -> Classification:
    return Classification("test_resnet", num_classes=3, in_chans=3, image_size=SIZE, **arguments)


def segmenter(classes: int = 3, **arguments) -> Segmentation:
    return Segmentation("unet", "test_resnet", num_classes=classes, in_chans=3, image_size=SIZE, **arguments)


def detector(**arguments) -> Detection:
    return Detection("fcos", "test_resnet", num_classes=2, in_chans=3, image_size=64, **arguments)


def built(task, teacher: str, **arguments) -> NoisyStudent:
    torch.manual_seed(0)
    model = NoisyStudent(task, teacher=teacher, **arguments)
    model.configure_model()
    return model


def images(number: int, seed: int, size: int = SIZE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (number, 3, size, size), generator=generator).to(torch.uint8)


def halves(labeled: int, unlabeled: int, size: int = SIZE, **targets) -> dict:
    """A batch of `SemiSupervised`; ``targets`` are the labelled half's."""
    first = {"image": images(labeled, 1, size), "path": ["l"] * labeled, "id": torch.arange(labeled), **targets}
    weak = images(unlabeled, 2, size)
    second = {"image": 255 - weak, "weak_image": weak, "path": ["u"] * unlabeled, "id": torch.arange(unlabeled)}
    return {"labeled": first, "unlabeled": second}


def classes(labeled: int = 4, unlabeled: int = 12) -> dict:
    return halves(labeled, unlabeled, label=torch.arange(labeled) % 3)


def masks(labeled: int = 2, unlabeled: int = 3) -> dict:
    batch = halves(labeled, unlabeled, mask=torch.zeros(labeled, SIZE, SIZE, dtype=torch.uint8))
    batch["labeled"]["mask"][:, :9] = 1
    shown = torch.zeros(unlabeled, SIZE, SIZE, dtype=torch.uint8)
    shown[:, :, :8] = 255  # a quarter of the canvas is not the picture
    batch["unlabeled"]["mask"] = shown
    return batch


def gradients(model: NoisyStudent) -> list[torch.Tensor]:
    return [p.grad.clone() for p in model.student.network.parameters()]


def test_fixmatch_is_the_published_loss():
    """Against a plain computation in which the weak view's labels are constants: the loss and all gradients."""
    model, batch = built(classifier(), "fixmatch", unlabeled_weight=2.0).train(), classes()
    twin = copy.deepcopy(model.student.network)  # batch norm sees all three kinds of images together
    with torch.no_grad():
        seen = model.student(torch.cat([*(batch[h]["image"] for h in batch), batch["unlabeled"]["weak_image"]]))
    sure, guess = seen[16:].softmax(1).max(1)
    model.threshold = float(sure.median())
    keep = sure >= model.threshold
    assert 0 < keep.sum() < 12

    model.student.network.load_state_dict(twin.state_dict())
    losses = model.loss(model.augment(batch))
    losses["loss"].backward()
    ours = gradients(model)

    model.student.network.load_state_dict(twin.state_dict())
    model.student.zero_grad()
    logits = model.student(torch.cat([*(batch[h]["image"] for h in batch), batch["unlabeled"]["weak_image"]]))
    labeled = F.cross_entropy(logits[:4], batch["labeled"]["label"])
    strong = F.cross_entropy(logits[4:16], guess, reduction="none")
    unlabeled = strong[keep].sum() / 12  # those below the threshold stay in the mean
    (labeled + 2.0 * unlabeled).backward()
    assert losses["loss"].item() == pytest.approx((labeled + 2.0 * unlabeled).item(), rel=1e-5)
    assert losses["loss_unlabeled"].item() == pytest.approx(unlabeled.item(), rel=1e-5)
    assert losses["kept"].item() == pytest.approx(keep.float().mean().item())
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, gradients(model), strict=True))


def test_smoothing_is_of_true_labels_alone():
    model, plain = (built(classifier(label_smoothing=s), "fixmatch", threshold=0.0).eval() for s in (0.3, 0.0))
    plain.load_state_dict(model.state_dict())
    smoothed, sharp = (m.loss(m.augment(classes())) for m in (model, plain))
    assert smoothed["loss_unlabeled"].item() == pytest.approx(sharp["loss_unlabeled"].item())
    assert abs(smoothed["loss_labeled"].item() - sharp["loss_labeled"].item()) > 1e-3


def test_weights_scale_the_labeled_images_of_online_methods():
    weight = torch.tensor([2.0, 0.0, 1.0, 5.0])
    for teacher, limit in (("fixmatch", 1.0), ("mean_teacher", 1.0)):
        model, batch = built(classifier(), teacher, threshold=limit).eval(), classes()
        batch["labeled"]["weight"] = weight
        each = F.cross_entropy(model(batch["labeled"]["image"]), batch["labeled"]["label"], reduction="none")
        loss = model.loss(model.augment(batch))["loss"]
        assert loss.item() == pytest.approx((weight * each).mean().item(), rel=1e-4), teacher


def test_nothing_sure_is_labels_only():
    model, batch = built(classifier(), "fixmatch", threshold=1.0).eval(), classes()
    losses = model.loss(model.augment(batch))
    assert losses["loss"].item() == pytest.approx(model.student.loss(batch["labeled"])["loss"].item(), rel=1e-5)
    assert losses["kept"] == losses["loss_unlabeled"] == 0


def test_device_noise_is_not_the_weak_views():
    model, batch = built(classifier(erasing=1.0, color_jitter=0.4), "fixmatch").train(), classes()
    out = model.augment(batch)
    assert out["unlabeled"]["weak_image"] is batch["unlabeled"]["weak_image"]
    assert not torch.equal(out["unlabeled"]["image"], batch["unlabeled"]["image"].float() / 255)
    assert torch.isfinite(model.loss(out)["loss"])  # bytes beside floats


@pytest.mark.parametrize("decay", [0.999, 0.6])
def test_mean_teacher_is_the_closed_form_average(decay):
    """The mean of all weights at first; then decay * old + (1 - decay) * new. Statistics of batch norm likewise."""
    student = classifier()
    student.configure_model()
    teacher, states = MeanTeacher(student, decay), []
    for _ in range(3):
        with torch.no_grad():
            for value in student.network.state_dict().values():
                if value.is_floating_point():
                    value.add_(torch.randn_like(value))
        states.append({k: v.clone() for k, v in student.network.state_dict().items() if v.is_floating_point()})
        teacher.update(student)
    second, third = min(1 / 2, decay), min(2 / 3, decay)
    average = teacher.task.network.state_dict()
    for name, (a, b, c) in {n: [s[n] for s in states] for n in states[0]}.items():
        expected = third * (second * a + (1 - second) * b) + (1 - third) * c
        assert torch.allclose(average[name], expected, atol=1e-5), name


def test_mean_teacher_stands_outside_and_stays_in_evaluation():
    model = built(classifier(drop_rate=0.5), "mean_teacher", ema_decay=0.5)
    plain = {name for name, _ in built(classifier(), "fixmatch").state_dict().items()}
    model.on_fit_start()
    model.train()
    model.loss(model.augment(classes()))["loss"].backward()
    teacher = model.mean_teacher.task
    assert not any(module.training for module in teacher.modules())
    assert model.student.network.training
    assert model.state_dict().keys() == plain
    inside = {id(p) for p in model.parameters()} | {id(b) for b in model.buffers()}
    assert not inside & {id(p) for p in teacher.parameters()}
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert not any(module is teacher for module in copy.deepcopy(model).modules())


def test_burn_in_learns_from_labels_alone_and_the_teacher_follows():
    model, batch = built(classifier(), "mean_teacher", threshold=0.0, burn_in_steps=2).eval(), classes()
    joined, only = model.augment(batch), model.student.loss(batch["labeled"])["loss"]
    for step in range(4):
        loss = model.loss(joined)["loss"]
        assert torch.isclose(loss, only, rtol=1e-4).item() == (step < 2)
        with torch.no_grad():
            model.student.network.fc.bias.add_(1)  # the same for all classes: no loss changes
        model.mean_teacher.update(model.student)
    biases = model.mean_teacher.task.network.fc.bias - model.student.network.fc.bias
    assert torch.allclose(biases, torch.full_like(biases, -0.5))  # a copy up to step 3, then the mean of two


def test_mean_teacher_of_masks_counts_unsure_pixels_as_nothing():
    model, batch = built(segmenter(), "mean_teacher", unlabeled_weight=0.5).eval(), masks()
    scores = model.start_teacher().task.scores(batch["unlabeled"]["weak_image"])
    sure, guess = scores.detach().max(1)
    inside = batch["unlabeled"]["mask"] != 255
    model.threshold = float(sure[inside].median())
    keep = (sure >= model.threshold) & inside
    losses = model.loss(model.augment(batch))
    labeled = F.cross_entropy(model(batch["labeled"]["image"]), batch["labeled"]["mask"].long())
    strong = F.cross_entropy(model(batch["unlabeled"]["image"]), guess, reduction="none")
    unlabeled = (strong * keep).sum() / inside.sum()  # the mean over all pixels of the pictures
    assert losses["loss"].item() == pytest.approx((labeled + 0.5 * unlabeled).item(), rel=1e-4)
    assert losses["kept"].item() == pytest.approx((keep.sum() / inside.sum()).item())
    losses["loss"].backward()


@pytest.mark.parametrize(("kind", "arguments"), [("binary", {"classes": 2}), ("multilabel", {"multi_label": True})])
def test_masks_of_one_map_and_of_several(kind, arguments, monkeypatch):
    """Confident of 0 as of 1, by each map; nothing off the picture."""
    task = segmenter(**arguments)
    assert task.kind == kind
    maps = 1 if kind == "binary" else 3
    scores = torch.full((3, maps, SIZE, SIZE), 0.6)
    scores[:, :, :4], scores[:, :, 4:8] = 0.97, 0.02
    monkeypatch.setattr(task, "scores", lambda image: scores)
    targets, part = confident_labels(task, masks()["unlabeled"], 0.95)
    mask = targets["mask"]
    assert mask.dtype == torch.uint8
    assert mask.shape == ((3, SIZE, SIZE) if kind == "binary" else (3, 3, SIZE, SIZE))
    assert (mask[..., :8] == 255).all()
    assert (mask[..., :4, 8:] == 1).all()
    assert (mask[..., 4:8, 8:] == 0).all()
    assert (mask[..., 8:, :] == 255).all()
    assert part.tolist() == pytest.approx([8 / SIZE] * 3)


def test_mean_teacher_of_boxes(monkeypatch):
    """The boxes above the threshold are the strong view's targets; an image without any is not taught to be empty."""
    boxes = torch.tensor([[[4.0, 4, 40, 40]], [[10, 20, 60, 60]]])
    batch = halves(2, 3, 64, boxes=boxes, labels=torch.tensor([[0], [1]]), iscrowd=torch.zeros(2, 1, dtype=torch.uint8))
    model = built(detector(), "mean_teacher").eval()
    assert model.threshold == 0.7
    teacher = model.start_teacher().task
    found = [
        ([[0, 0, 20, 30], [8, 8, 50, 50], [1, 1, 9, 9]], [0.9, 0.8, 0.6], [1, 0, 0]),
        ([[5, 5, 30, 30]], [0.3], [1]),
    ]
    found.append(([], [], []))

    def find(image):
        assert torch.equal(image, batch["unlabeled"]["weak_image"])
        return [
            {"boxes": torch.tensor(b).float().view(-1, 4), "scores": torch.tensor(s), "labels": torch.tensor(k).long()}
            for b, s, k in found
        ]

    monkeypatch.setattr(teacher, "find", find)
    losses = model.loss(model.augment(batch))
    targets = {"boxes": torch.tensor([found[0][0][:2]]).float(), "labels": torch.tensor([[1, 0]])}
    taught = model.student.loss({"image": batch["unlabeled"]["image"][:1], **targets})["loss"]
    labeled = model.student.loss(batch["labeled"])["loss"]
    assert losses["loss"].item() == pytest.approx((labeled + taught / 3).item(), rel=1e-4)
    assert losses["kept"].item() == pytest.approx(1 / 3)
    losses["loss"].backward()


def test_a_real_detector_teaches_itself():
    batch = halves(1, 2, 64, boxes=torch.tensor([[[4.0, 4, 40, 40]]]), labels=torch.tensor([[0]]))
    batch["labeled"]["iscrowd"] = torch.zeros(1, 1, dtype=torch.uint8)
    model = built(detector(), "mean_teacher", threshold=0.0).train()
    losses = model.loss(model.augment(batch))
    losses["loss"].backward()
    assert losses["kept"] == 1
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        (classifier, {"threshold": 0.9}, r"model.threshold is 0.9, but model.teacher is 'offline'"),
        (classifier, {"teacher": "fixmatch", "ema_decay": 0.9}, r"model.ema_decay is 0.9.*only mean_teacher"),
        (classifier, {"teacher": "fixmatch", "burn_in_steps": 9}, r"model.burn_in_steps is 9"),
        (classifier, {"teacher": "fixmatch", "labels": "hard"}, r"model.labels is 'hard'.*only offline"),
        (classifier, {"teacher": "mean_teacher", "loss": "code"}, r"model.loss is 'code'"),
        (classifier, {"teacher": "mean_teacher", "temperature": 0.5}, r"model.temperature is 0.5"),
        (classifier, {"teacher": "mean_teacher", "burn_in_steps": -1}, r"model.burn_in_steps is -1"),
        (classifier, {"teacher": "mean_teacher", "ema_decay": 1.0}, r"model.ema_decay is 1.0"),
        (classifier, {"teacher": "fixmatch", "threshold": 95}, r"model.threshold is 95"),
        (segmenter, {"teacher": "fixmatch"}, r"for Segmentation take mean_teacher"),
        (lambda: classifier(cutmix=1.0), {"teacher": "fixmatch"}, r"model.student.cutmix is 1.0"),
        (lambda: Detection("mask_rcnn", "test_resnet"), {"teacher": "mean_teacher"}, r"'mask_rcnn' learns masks"),
    ],
)
def test_what_has_no_effect_or_cannot_work_is_refused(task, arguments, message):
    with pytest.raises(ValueError, match=message):
        NoisyStudent(task(), **arguments)


def test_data_of_the_wrong_kind_is_refused_before_the_first_batch():
    spec = {"num_classes": 3, "in_chans": 3, "image_size": [SIZE, SIZE]}
    NoisyStudent(classifier(), teacher="fixmatch").resolve({**spec, "two_views": True}, "data")
    with pytest.raises(ValueError, match=r"'fixmatch', which labels unlabeled images itself: give them as data.pool"):
        NoisyStudent(classifier(), teacher="fixmatch").resolve({**spec, "two_views": False}, "data")
    with pytest.raises(ValueError, match=r"model.teacher is 'offline', which teaches labels that are there"):
        NoisyStudent(classifier()).resolve({**spec, "two_views": True}, "data")
    batch = classes()
    with pytest.raises(ValueError, match=r"model.teacher is 'offline'"):
        built(classifier(), "offline").augment(batch)
    del batch["unlabeled"]["weak_image"]
    with pytest.raises(ValueError, match=r"data.pool of SemiSupervised"):
        built(classifier(), "mean_teacher").augment(batch)
