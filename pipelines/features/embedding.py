"""A map of a data set: each picture a point, near to those that the network takes for alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.features.clock import Clock
from pipelines.outputs.box_errors import f1_of_boxes
from tasks.base import Task
from tasks.embeddings import embed

Floats = NDArray[np.float64]
LEAST = 5  # pictures, for a map
PERPLEXITY = 30.0  # t-SNE's, where there are pictures enough


@dataclass
class Embedded:
    """What is known of the pictures of a set.

    Attributes:
        vectors: float32 (D,) of each picture.
        paths: Of each picture.
        amounts: Of each picture how much of each class it holds, (K,); empty where there is no truth.
        quality: How right the prediction is, 0 to 1: of a class 0 or 1, of masks the mean IoU, of boxes the F1 at an
            IoU of 0.5; empty where there is no truth.
    """

    vectors: list[NDArray[np.float32]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    amounts: list[Floats] = field(default_factory=list)
    quality: list[float] = field(default_factory=list)

    def classes(self) -> NDArray[np.int64]:
        """The class of each picture (N,): of several the one that there is most of, compared with other pictures."""
        amounts = np.stack(self.amounts)
        usual = amounts.mean(0)
        return np.asarray((amounts / np.where(usual > 0, usual, np.inf)).argmax(1), np.int64)


@torch.inference_mode()
def collect(task: Task, batches: Iterable[Mapping[str, Any]], class_names: list[str], clock: Clock) -> Embedded:
    """Embed, predict and judge the pictures of batches; pictures that are predicted by tiles are left out.

    Args:
        task: Its network is built.
        batches: Of an evaluation loader, see ``datamodules.common.batch``.
        class_names: K.
        clock: No further batch is begun once it is over.
    """
    found = Embedded()
    for batch in batches:
        if "tiles" in batch:
            continue
        shown = {**batch, "image": batch["image"].to(task.mean.device)}
        found.vectors += list(embed(task, shown["image"]).cpu().numpy())
        found.paths += batch["path"]
        if "label" in batch or "target" in batch:
            _judge(found, task, shown, class_names)
        if clock.over:
            break
    return found


def _judge(found: Embedded, task: Task, batch: dict[str, Any], class_names: list[str]) -> None:
    predictions = task.predict(batch)
    if "label" in batch:
        label = batch["label"]
        every = label if label.ndim == 2 else torch.nn.functional.one_hot(label, len(class_names))
        found.amounts += list(every.double().numpy())
        if not getattr(task, "multi_label", False):
            found.quality += (predictions["logits"].argmax(1).cpu() == every.argmax(1)).double().tolist()
    elif task.finds_boxes:
        for i, truth in enumerate(batch["target"]):
            found.amounts.append(np.bincount(np.asarray(truth["labels"]), minlength=len(class_names)).astype(float))
            shown = task.shown({key: [predictions[key][i]] for key in ("boxes", "scores", "labels")})
            found.quality.append(f1_of_boxes(truth, {key: value[0].cpu().numpy() for key, value in shown.items()}))
    elif "mask" in predictions:
        rows = task.rows({**batch, "image": batch["image"]}, predictions, class_names)
        found.quality += [row["miou"] for row in rows]
        for truth in batch["target"]:
            mask = np.asarray(truth["mask"])
            areas = np.bincount(mask.reshape(-1), minlength=256) if mask.ndim == 2 else (mask == 1).sum((1, 2))
            found.amounts.append(areas[: len(class_names)].astype(float))


def plane(vectors: Floats, seed: int, clock: Clock) -> dict[str, tuple[Floats, str]]:
    """Places in the plane, float64 (N, 2), by PCA and by t-SNE, each with a sentence about it.

    Van der Maaten and Hinton 2008, https://jmlr.org/papers/v9/vandermaaten08a.html, by scikit-learn. No t-SNE for few
    pictures, or once the time is over.

    Args:
        vectors: (N, D).
        seed: Of t-SNE.
        clock: See above.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    pca = PCA(2, random_state=seed).fit(vectors)
    kept = pca.explained_variance_ratio_.sum()
    found = {"PCA": (pca.transform(vectors), f"two of {vectors.shape[1]} directions, {kept:.0%} of the variance")}
    if len(vectors) > 2 * LEAST and not clock.over:
        perplexity = min(PERPLEXITY, (len(vectors) - 1) / 3)
        places = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(vectors)
        found["t-SNE"] = (places.astype(float), f"perplexity {perplexity:.3g}; distances far apart mean nothing")
    return found


def alike_neighbors(vectors: Floats, classes: NDArray[np.int64]) -> float:
    """The fraction of pictures whose nearest other one, by Euclidean distance, is of their class."""
    from sklearn.neighbors import NearestNeighbors

    nearest = NearestNeighbors(n_neighbors=1).fit(vectors).kneighbors(return_distance=False)[:, 0]
    return float((classes[nearest] == classes).mean())
