"""The classification task: labels of all kinds, weights, mixing, normalisation, views."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from tasks import Classification
from tasks.device_augment import color_jitter, mix, random_erasing
from tasks.losses import classification_loss


def task(**arguments) -> Classification:
    torch.manual_seed(0)
    made = Classification(**{"backbone": "test_resnet", "num_classes": 3, "in_chans": 3, **arguments})
    made.configure_model()
    return made.eval()


def batch(**more) -> dict:
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (4, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return {"image": image, "label": torch.tensor([0, 1, 2, 0]), "path": list("abcd"), **more}


def test_the_weight_scales_each_images_loss():
    model = task()
    each = [float(model.loss({k: v[i : i + 1] for k, v in batch().items()})["loss"]) for i in range(4)]
    weight = torch.tensor([0.0, 2.0, 1.0, 0.5])
    weighted = float(model.loss(batch(weight=weight))["loss"])
    assert weighted == pytest.approx(sum(w * x for w, x in zip(weight.tolist(), each, strict=True)) / 4, rel=1e-5)


def test_float_and_uint8_images_give_the_same():
    model = task()
    whole = batch()
    as_float = {**whole, "image": whole["image"].float() / 255}
    assert torch.allclose(model.predict(whole)["logits"], model.predict(as_float)["logits"], atol=1e-5)


def test_forward_normalises_with_the_networks_own_statistics():
    model = task()
    image = batch()["image"]
    expected = model.network((image.float() / 255 - model.mean) / model.std)
    assert torch.allclose(model(image), expected, atol=1e-5)
    assert model.mean.flatten().tolist() == pytest.approx([0.5, 0.5, 0.5])  # test_resnet's


def test_soft_and_hard_labels_agree():
    model = task(label_smoothing=0.1)
    soft = torch.nn.functional.one_hot(batch()["label"], 3).float()
    assert float(model.loss(batch())["loss"]) == pytest.approx(float(model.loss(batch(label=soft))["loss"]), rel=1e-5)


def test_several_labels():
    model = task(multi_label=True)
    label = torch.tensor([[1, 1, 0], [0, 0, 0], [0, 1, 0], [1, 0, 1]]).float()
    predictions = model.predict(batch())
    expected = torch.nn.functional.binary_cross_entropy_with_logits(predictions["logits"], label)
    assert float(model.loss(batch(label=label))["loss"]) == pytest.approx(float(expected), rel=1e-5)
    model.update_metrics(batch(label=label), predictions)
    assert {"map", "f1", "f1_micro", "loss"} <= set(model.eval_metrics.compute())
    assert model.monitor == "val/map"
    assert model.rows(batch(label=label), predictions, list("xyz"))[0]["truth"] == "x;y"


def test_mixing_keeps_the_sum_of_labels_and_mixes_both_alike():
    torch.manual_seed(0)
    mixed = mix({**batch(), "image": torch.rand(4, 3, 8, 8), "weight": torch.arange(4.0)}, 3, 0.4, 1.0, 1.0)
    assert mixed["label"].shape == (4, 3)
    assert torch.allclose(mixed["label"].sum(1), torch.ones(4))
    image = torch.eye(4).view(4, 1, 2, 2)
    label = torch.eye(4)
    both = mix({"image": image.clone(), "label": label}, 4, 0.4, 0.0, 1.0)
    assert torch.allclose(both["image"].view(4, 4), both["label"], atol=1e-6)


def test_mixup_blends_whole_images_and_cutmix_pastes_a_piece():
    image = torch.tensor([0.0, 1.0, 3.0, 7.0]).view(4, 1, 1, 1).expand(4, 3, 16, 16)  # plain: no two blends are alike
    inputs = {"image": image, "label": torch.arange(4)}
    np.random.seed(0)
    blended = mix({**inputs, "image": image.clone()}, 4, 1.0, 0.0, 1.0)["image"].flatten(1)
    assert (blended == blended[:, :1]).all()
    assert not torch.isin(blended, image).any()
    pasted = mix({**inputs, "image": image.clone()}, 4, 0.0, 1.0, 1.0)["image"].flatten(1)
    assert torch.isin(pasted, image).all()
    assert [len(values.unique()) for values in pasted] == [2, 2, 2, 2]


def test_the_weight_is_mixed_like_the_labels():
    torch.manual_seed(0)
    weight = torch.tensor([1.0, 2.0, 4.0, 8.0])
    mixed = mix({"image": torch.rand(4, 3, 8, 8), "label": torch.eye(4), "weight": weight}, 4, 0.4, 0.0, 1.0)
    assert torch.allclose(mixed["weight"], mixed["label"] @ weight)
    assert not torch.allclose(mixed["weight"], weight)


def test_jitter_is_torchvisions_with_factors_of_each_image():
    image = torch.rand(1, 3, 16, 16).expand(4, -1, -1, -1)
    torch.manual_seed(3)
    jittered = color_jitter(image, 0.4)
    torch.manual_seed(3)
    factors = torch.empty(3, 4).uniform_(0.6, 1.4)
    assert len(factors.unique()) == 12
    for i in range(4):
        expected = functional.adjust_brightness(image[i], float(factors[0, i]))
        expected = functional.adjust_contrast(expected, float(factors[1, i]))
        expected = functional.adjust_saturation(expected, float(factors[2, i]))
        assert torch.allclose(jittered[i], expected, atol=1e-3)  # torchvision rounds its weights of gray to 4 digits


def test_erasing_draws_noise_of_the_models_normalization():
    """Erased pixels are mean + std * normal noise."""
    torch.manual_seed(0)
    mean, std = torch.full((1, 3, 1, 1), 0.3), torch.full((1, 3, 1, 1), 0.1)
    image = torch.full((64, 3, 32, 32), 7.0)
    erased = random_erasing(image, 1.0, mean, std)
    noise = erased[(erased - 7).abs() > 1e-4]
    assert float(noise.mean()) == pytest.approx(0.3, abs=0.01)
    assert float(noise.std()) == pytest.approx(0.1, abs=0.01)


def test_the_task_erases_with_the_noise_of_its_normalization():
    torch.manual_seed(0)
    model = task(erasing=1.0)
    model.mean.fill_(0.3)
    model.std.fill_(0.1)
    erased = model.augment({"image": torch.full((64, 3, 32, 32), 7.0)})["image"]
    noise = erased[(erased - 7).abs() > 1e-4]
    assert float(noise.mean()) == pytest.approx(0.3, abs=0.01)
    assert float(noise.std()) == pytest.approx(0.1, abs=0.01)


def test_jitter_and_erasing_keep_shape_and_range():
    image = torch.rand(6, 3, 16, 16)
    jittered = color_jitter(image, 0.4)
    assert jittered.shape == image.shape
    assert jittered.min() >= 0
    assert jittered.max() <= 1
    assert not torch.equal(jittered, image)
    mean, std = torch.full((1, 3, 1, 1), 0.5), torch.full((1, 3, 1, 1), 0.25)
    erased = random_erasing(image, 1.0, mean, std)
    changed = (erased - image).abs() > 1e-5
    assert 0 < changed.float().mean() < 0.5


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize(("view", "axes"), [("hflip", (3,)), ("vflip", (2,)), ("rot180", (2, 3))])
def test_probabilities_of_views_are_averaged(view, axes, multi_label):
    model, plain = (task(tta=tta, multi_label=multi_label) for tta in ([view], []))
    for made in (model, plain):  # far from linear: the mean of probabilities is not that of logits
        made.network.fc.weight.data.mul_(100)
    flipped = {**batch(), "image": batch()["image"].flip(axes)}
    expected = (plain.predict(batch())["probabilities"] + plain.predict(flipped)["probabilities"]) / 2
    found = model.predict(batch())
    assert torch.allclose(found["probabilities"], expected, atol=1e-5)
    again = found["logits"].sigmoid() if multi_label else found["logits"].softmax(1)
    assert torch.allclose(again, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "label"),
    [
        ({}, torch.tensor([0, 1, 2, 0])),
        ({"multi_label": True}, torch.tensor([[1, 1, 0], [0, 0, 0], [0, 1, 0], [1, 0, 1]]).float()),
    ],
)
def test_the_evaluated_loss_has_no_smoothing_and_no_weight(arguments, label):
    model = task(label_smoothing=0.3, **arguments)
    inputs = batch(label=label, weight=torch.tensor([9.0, 1, 1, 1]))
    predictions = model.predict(inputs)
    model.update_metrics(inputs, predictions)
    plain = torch.nn.functional.binary_cross_entropy_with_logits if arguments else torch.nn.functional.cross_entropy
    assert float(model.eval_metrics.compute()["loss"]) == pytest.approx(float(plain(predictions["logits"], label)))


@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        ({"loss": "focal"}, {"loss": "focal", "focal_gamma": 4.0}),
        ({}, {"class_weights": [1.0, 2.0, 3.0]}),
        ({}, {"label_smoothing": 0.2}),
        ({}, {"loss": "bce"}),
    ],
)
def test_arguments_of_the_loss_arrive_there(arguments, changed):
    model = task(**changed)
    label, logits = batch()["label"], model(batch()["image"])
    expected = classification_loss(
        logits,
        label,
        kind=changed.get("loss", "cross_entropy"),
        label_smoothing=changed.get("label_smoothing", 0.0),
        class_weights=torch.tensor(changed["class_weights"]) if "class_weights" in changed else None,
        focal_gamma=changed.get("focal_gamma", 2.0),
    ).mean()
    assert float(model.loss(batch())["loss"]) == pytest.approx(float(expected))
    assert abs(float(expected) - float(task(**arguments).loss(batch())["loss"])) > 1e-4


def test_names_of_soft_labels_are_whole():
    """One sure class by its whole name, others with their fractions; none without a fraction."""
    label = torch.tensor([[0.0, 1.0, 0.0], [0.75, 0.25, 0.0], [0.0, 0.0, 1.0], [0.5, 0.3, 0.2]])
    names = ["tabby cat", "golden retriever", "ox"]
    found = task().captions({**batch(), "label": label}, None, names)
    assert found[0] == "golden retriever"
    assert found[1] == "tabby cat 0.75 golden retriever 0.25"
    assert found[2] == "ox"
    assert found[3] == "tabby cat 0.50 golden retriever 0.30"


def test_captions_name_the_truth_of_wrong_guesses_alone():
    probabilities = torch.tensor([[0.1, 0.7, 0.2], [0.6, 0.3, 0.1]])
    inputs = {"image": batch()["image"][:2], "path": ["a", "b"], "label": torch.tensor([1, 2])}
    predictions, names = {"probabilities": probabilities}, ["cat", "dog", "ox"]
    assert task().captions(inputs, predictions, names) == ["dog 0.70", "cat 0.60 (ox)"]
    assert task().captions(inputs, None, names) == ["dog", "ox"]
    del inputs["label"]
    assert task().captions(inputs, predictions, names) == ["dog 0.70", "cat 0.60"]


@pytest.mark.parametrize("channels_last", [True, False, "auto"])
def test_memory_formats_give_the_same(channels_last):
    expected = task(channels_last=False).predict(batch())["logits"]
    assert torch.allclose(task(channels_last=channels_last).predict(batch())["logits"], expected, atol=1e-4)


def test_compiled_network_keeps_its_names():
    assert task(compile=True).state_dict().keys() == task().state_dict().keys()


def test_values_that_differ_from_the_datas_are_refused():
    model = Classification("test_resnet", num_classes=5)
    with pytest.raises(ValueError, match=r"model\.num_classes is 5, but the data \(pictures\) has 3"):
        model.resolve({"num_classes": 3}, "pictures")


def test_what_the_data_resolves_is_kept_for_the_checkpoint():
    """A checkpoint builds its network without the data, from the hyper-parameters."""
    model = Classification("test_resnet", in_chans=1)
    model.resolve({"num_classes": 3, "in_chans": 1, "image_size": [32, 48], "unknown": 7}, "pictures")
    kept = {key: model.hparams[key] for key in ("num_classes", "in_chans", "image_size")}
    assert kept == {"num_classes": 3, "in_chans": 1, "image_size": [32, 48]}
    assert "unknown" not in model.hparams


def test_frozen_parts_stay_still():
    model = task(freeze_backbone=True)
    model.train()
    before = {k: v.clone() for k, v in model.network.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model.loss(batch())["loss"].backward()
    optimizer.step()
    after = model.network.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed == model.head_names()


def test_frozen_norms_keep_their_statistics_but_learn():
    model = task(freeze_norm=True)
    model.train()
    before = {k: v.clone() for k, v in model.network.named_buffers()}
    model.loss(batch())["loss"].backward()
    assert all(torch.equal(v, before[k]) for k, v in model.network.named_buffers())
    assert all(p.grad is not None for p in model.network.parameters())
