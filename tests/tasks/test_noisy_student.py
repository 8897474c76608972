"""The student's step: both halves at once, the loss's two scales, labels, noise, and checkpoints that are ordinary."""

from __future__ import annotations

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F

from tasks import Classification, NoisyStudent
from tasks.joined import join_batches
from tasks.student import without_noise


def student(**arguments) -> Classification:
    torch.manual_seed(0)
    return Classification("test_resnet", num_classes=3, in_chans=3, image_size=32, **arguments)


def batch(size: int, soft: bool, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (size, 3, 32, 32), generator=generator).to(torch.uint8)
    hard = torch.randint(0, 3, (size,), generator=generator)
    label = torch.rand(size, 3, generator=generator).softmax(1) if soft else hard
    return {"image": image, "label": label, "path": [f"{seed}/{i}" for i in range(size)], "id": torch.arange(size)}


def built(task: Classification, **arguments) -> NoisyStudent:
    model = NoisyStudent(task, **arguments)
    model.configure_model()
    return model


def test_loss_scales_of_paper_and_code():
    labeled, unlabeled = batch(4, soft=False), batch(12, soft=True, seed=1)
    model = built(student()).eval()
    with torch.no_grad():
        of_labeled = F.cross_entropy(model(labeled["image"]), labeled["label"], reduction="none")
        of_unlabeled = F.cross_entropy(model(unlabeled["image"]), unlabeled["label"], reduction="none")
        paper = model.loss(model.join(labeled, unlabeled))["loss"]
        model.loss_scale = "code"
        code = model.loss(model.join(labeled, unlabeled))["loss"]
    ratio = 3
    assert paper == pytest.approx(torch.cat([of_labeled, of_unlabeled]).mean().item(), rel=1e-5)
    assert code == pytest.approx((of_labeled.mean() + ratio * of_unlabeled.mean()).item(), rel=1e-5)
    assert code / paper == pytest.approx(1 + ratio, rel=1e-5)  # in effect another learning rate
    model.unlabeled_weight = 0.0
    assert model.loss(model.join(labeled, unlabeled))["loss"].item() == pytest.approx(
        of_labeled.mean().item(), rel=1e-5
    )


def test_both_halves_are_one_forward():
    """Batch norm's statistics are those of all images together, not of one half after the other."""
    labeled, unlabeled = batch(4, soft=False), batch(8, soft=True, seed=1)
    unlabeled["image"] = unlabeled["image"] // 8  # of another brightness
    model, plain = built(student()).train(), student()
    plain.configure_model()
    plain.train()
    calls = []
    model.student.network.register_forward_hook(lambda *_: calls.append(1))
    model.loss(model.augment({"labeled": labeled, "unlabeled": unlabeled}))
    plain(torch.cat([labeled["image"], unlabeled["image"]]))
    assert len(calls) == 1
    ours, theirs = model.state_dict(), plain.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs if "running" in name)


def test_labels_soft_hard_and_sharpened():
    p = torch.tensor([[0.5, 0.3, 0.2]])
    soft = built(student()).pseudo_targets({"label": p})["label"]
    assert torch.equal(soft, p)
    sharp = built(student(), temperature=0.5).pseudo_targets({"label": p})["label"]
    assert torch.allclose(sharp, p**2 / (p**2).sum())
    hard = built(student(), labels="hard", smoothing=0.1).pseudo_targets({"label": p})["label"]
    assert torch.allclose(hard, torch.tensor([[0.9 + 0.1 / 3, 0.1 / 3, 0.1 / 3]]))
    numbers = torch.tensor([1, 2])  # corrected by hand into classes: ordinary targets
    assert built(student()).pseudo_targets({"label": numbers})["label"] is numbers


def test_labels_are_made_hard_before_mixup_mixes_them():
    model = built(student(mixup=1.0), labels="hard").train()
    torch.manual_seed(0)
    label = model.augment({"labeled": batch(4, soft=False), "unlabeled": batch(8, soft=True, seed=1)})["label"][4:]
    assert torch.allclose(label.sum(1), torch.ones(8))
    assert ((label > 0.01) & (label < 0.99)).any(), "labels of mixed images are mixed"


def test_the_control_has_no_noise_whatever_the_nets_own_defaults():
    def noise(network: torch.nn.Module) -> list[float]:
        found = [getattr(m, name, 0.0) for m in network.modules() for name in ("p", "drop_prob", "drop_rate")]
        return [rate for rate in found if isinstance(rate, float) and rate > 0]

    net = smp.DeepLabV3Plus("resnet18", encoder_weights=None)  # dropout of 0.5 by its own default
    assert noise(net)
    without_noise(net)
    assert noise(net) == []
    arguments = {"drop_rate": 0.3, "drop_path_rate": 0.2}
    assert noise(built(student(**arguments)).student.network)
    assert noise(built(student(**arguments), noise=False).student.network) == []


def test_drop_path_rate_is_a_drop_rate():
    """The paper's survival of 0.8 in the last layer is drop_path_rate 0.2."""
    model = built(student(drop_path_rate=0.2))
    drops = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    assert drops
    assert max(drops) == pytest.approx(0.2)


def test_checkpoints_are_those_of_the_student():
    model, plain = built(student()), student()
    plain.configure_model()
    ours = model.state_dict()
    assert ours.keys() == plain.state_dict().keys()
    assert not any(name.startswith("student.") for name in ours)
    changed = {name: torch.full_like(value, 2) for name, value in ours.items()}
    model.load_state_dict(changed)
    assert all((value == 2).all() for value in model.student.state_dict().values())
    plain.load_state_dict(model.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({name: value for name, value in ours.items() if "fc" not in name})


def test_join_fills_up_boxes_and_keeps_what_both_have():
    a = {"image": torch.zeros(1, 3, 8, 8), "boxes": torch.ones(1, 2, 4), "labels": torch.ones(1, 2, dtype=torch.int64)}
    b = {"image": torch.zeros(2, 3, 8, 8), "boxes": torch.ones(2, 1, 4), "labels": torch.ones(2, 1, dtype=torch.int64)}
    joined = join_batches(a, b | {"extra": torch.zeros(2)}, 3)
    assert joined["boxes"].shape == (3, 2, 4)
    assert joined["labels"].tolist() == [[1, 1], [1, -1], [1, -1]]
    assert "extra" not in joined
    bytes_beside_floats = join_batches(
        {"image": torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)}, {"image": torch.ones(1, 3, 2, 2)}, 3
    )
    assert (bytes_beside_floats["image"] == 1).all()


def test_a_control_on_labels_only_is_the_task_itself():
    model = built(student(drop_rate=0.0)).eval()
    labeled = batch(4, soft=False)
    joined = model.augment({"labeled": labeled})
    assert torch.equal(model.loss(joined)["loss"], model.student.loss(labeled)["loss"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "model.temperature is 0.0"),
        ({"temperature": 0.5, "labels": "hard"}, "'hard', which has none"),
        ({"smoothing": 0.1}, "soft labels need none"),
        ({"smoothing": 1.0, "labels": "hard"}, "model.smoothing is 1.0"),
        ({"unlabeled_weight": -1.0}, "model.unlabeled_weight is -1.0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        NoisyStudent(student(), **arguments)


def test_a_student_is_no_noisy_student_and_needs_pairs():
    with pytest.raises(ValueError, match=r"model.student is a NoisyStudent"):
        NoisyStudent(NoisyStudent(student()))
    with pytest.raises(ValueError, match="SemiSupervised"):
        built(student()).augment(batch(2, soft=False))
