"""A linear probe's regression as the weights of the head."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from pipelines.commands.probe import fit_head


class Features(nn.Module):
    """Features are the image's three channels."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(3, classes)

    def get_classifier(self) -> nn.Linear:
        return self.fc

    def forward(self, image):
        return self.fc(image[:, :, 0, 0])


class Model(nn.Module):
    backbone = "features"

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.network = Features(classes)

    def forward(self, image):
        return self.network(image)


@pytest.mark.parametrize(("present", "classes"), [([0, 2], 4), ([0, 1, 3], 4), ([0, 1], 2)])
def test_the_head_gives_the_regressions_probabilities(present, classes):
    """Classes without training images are never predicted."""
    rng = np.random.default_rng(0)
    labels = np.array(present * 20)
    x = rng.normal(labels[:, None] * 0.5, 1, (len(labels), 3)) * [1, 5, 0.2] + 3
    image = torch.from_numpy(x).float().view(-1, 3, 1, 1)
    batches = [{"image": image[i : i + 7], "label": torch.from_numpy(labels[i : i + 7])} for i in range(0, len(x), 7)]
    model = Model(classes)
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")))
    fit_head(trainer, model, SimpleNamespace(train_features_dataloader=lambda: batches), C=0.1)
    scaler = StandardScaler().fit(image.double().view(-1, 3).numpy())
    scaled = scaler.transform(image.double().view(-1, 3).numpy())
    expected = LogisticRegression(C=0.1, max_iter=5000).fit(scaled, labels).predict_proba(scaled)
    with torch.no_grad():
        found = model(image).softmax(1)
    assert torch.allclose(found[:, present].double(), torch.from_numpy(expected), atol=1e-4)
    assert float(found.sum(1).max()) == pytest.approx(1)
    assert all((found[:, k] == 0).all() for k in range(classes) if k not in present)
