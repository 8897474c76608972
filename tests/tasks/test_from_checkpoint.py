"""Starting from a checkpoint of ours, whatever its task: what is loaded, what is left out, what is said and refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks import Classification, Detection, Segmentation
from tasks.base import Task
from tasks.noisy_student import NoisyStudent


def make(kind: str, backbone: str = "test_resnet", **arguments: Any) -> Task:
    common = {"num_classes": 3, "in_chans": 3, "image_size": 64} | arguments
    if kind == "classifier":
        return Classification(backbone, **common)
    if kind == "detector":
        return Detection("fcos", backbone, detector_args={"head_channels": 32}, **common)
    return Segmentation("dpt" if backbone == "test_vit" else "unet", backbone, **common)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Any:
    def save(kind: str, backbone: str = "test_resnet", **arguments: Any) -> tuple[str, dict[str, torch.Tensor]]:
        torch.manual_seed(7)
        task = make(kind, backbone, num_classes=5, **arguments)
        task.configure_model()
        for value in task.state_dict().values():
            value.copy_(torch.rand_like(value) if value.is_floating_point() else value + 7)
        path = tmp_path / f"{kind}.ckpt"
        state = {"state_dict": task.state_dict(), "hyper_parameters": {**task.hparams, "pretrained": False}}
        torch.save(state, path)
        return str(path), {name: value.clone() for name, value in task.state_dict().items()}

    return save


def backbone_of(task: Task) -> dict[str, torch.Tensor]:
    """The tensors of the first two stages, by timm's names."""
    found = {}
    for name, value in task.network.state_dict().items():
        for place in ("net.encoder.pyramid.net.model.", "net.encoder.model.", "backbone.net.model."):
            name = name.removeprefix(place)
        found[name] = value
    return {name: value for name, value in found.items() if name.startswith(("layer1.", "layer2.", "blocks.0."))}


KINDS = ("classifier", "detector", "segmenter")


@pytest.mark.parametrize(
    ("source", "target", "backbone"),
    [(kind, kind, "test_resnet") for kind in KINDS]
    + [(source, target, "test_resnet") for source, target in zip(KINDS, [*KINDS[1:], KINDS[0]], strict=True)]
    + [("classifier", "segmenter", "test_vit")],
)
def test_any_task_starts_from_any_task_of_the_same_backbone(checkpoint, caplog, source, target, backbone):
    path, given = checkpoint(source, backbone)
    task = make(target, backbone, pretrained=path)
    with caplog.at_level(logging.INFO):
        task.configure_model()
    (line,) = [record.message for record in caplog.records if record.message.startswith("pretrained:")]
    assert path in line
    assert f", {backbone})" in line
    assert "not loaded: " in line
    assert torch.equal(task.mean, given["mean"])
    loaded = backbone_of(task)
    assert len(loaded) > 10
    for name, value in loaded.items():
        assert any(key.endswith(name) and torch.equal(tensor, value) for key, tensor in given.items()), name
    ours = {f"network.{name}": value for name, value in task.network.state_dict().items()}
    if source == target:
        fitting = [name for name, value in ours.items() if value.shape == given[name].shape]
        assert f"pretrained: {len(fitting)} of {len(given) - 2} tensors" in line
        assert len(fitting) >= len(given) - 2 - 2  # all but the last layer
        assert all(torch.equal(ours[name], given[name]) for name in fitting)
        assert "5 classes there, 3 here" in line


def test_a_noisy_student_starts_from_a_checkpoint(checkpoint):
    path, given = checkpoint("segmenter")
    model = NoisyStudent(make("classifier", pretrained=path))
    model.configure_model()
    assert all(
        torch.equal(value, given[f"network.net.encoder.pyramid.net.model.{name}"])
        for name, value in backbone_of(model.student).items()
    )


def test_another_size_and_number_of_channels(checkpoint):
    """Position embeddings are resampled, the first convolution is summed over its colors."""
    path, given = checkpoint("classifier", "test_vit")
    task = make("classifier", "test_vit", pretrained=path, image_size=96, in_chans=1)
    task.configure_model()
    assert task.network.pos_embed.shape != given["network.pos_embed"].shape
    assert torch.equal(task.network.pos_embed[:, :1], given["network.pos_embed"][:, :1])
    first = given["network.patch_embed.proj.weight"].sum(1, keepdim=True)
    assert torch.allclose(task.network.patch_embed.proj.weight, first)


def test_a_new_classifier_starts_near_zero(checkpoint):
    path, _ = checkpoint("classifier")
    task = make("classifier", pretrained=path)
    task.configure_model()
    assert float(task.network.fc.weight.abs().max()) < 0.1
    assert float(task.network.fc.bias.abs().max()) == 0


def test_what_does_not_fit_is_refused(checkpoint, tmp_path):
    path, _ = checkpoint("classifier")
    with pytest.raises(ValueError, match=r"classifier.ckpt has the backbone 'test_resnet', but .* is 'test_vit'"):
        make("detector", "test_vit", pretrained=path).configure_model()
    vit, _ = checkpoint("segmenter", "test_vit", backbone_args={"embed_dim": 128})
    with pytest.raises(ValueError, match=r"none of its tensors fits the backbone 'test_vit'.*'embed_dim': 128"):
        make("classifier", "test_vit", pretrained=vit).configure_model()
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "best.ckpt").touch()
    with pytest.raises(ValueError, match=r"run is the folder of a run; give its checkpoint, .*best.ckpt"):
        make("classifier", pretrained=str(tmp_path / "run")).configure_model()
    torch.save({"hyper_parameters": {"backbone": "test_resnet"}, "state_dict": Path("x")}, tmp_path / "foreign.ckpt")
    with pytest.raises(ValueError, match=r"foreign.ckpt cannot be read as weights"):
        make("classifier", pretrained=str(tmp_path / "foreign.ckpt")).configure_model()
