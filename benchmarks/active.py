"""``select`` against random choice: the same labels for all strategies, and a network's frozen features.

    python -m benchmarks.active ../shared/data --sets waste cifar10 hymenoptera --seeds 10

Pictures are embedded once by MobileNetV2 with ImageNet's weights. A pool whose labels are hidden is the training split,
or a part of it. A few random pictures are labeled; then, round by round, a strategy of ``select`` chooses as many
again, and a logistic regression on standardized features (that of ``probe``, C 0.1) is trained anew and tested. All
strategies begin with the same pictures; a committee, for ``disagreement``, is five regressions on resamples of what is
labeled.
"""

from __future__ import annotations

import argparse
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t as student
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from datamodules import ClassificationData
from pipelines.selecting.choosing import Strategy, choose
from pipelines.selecting.uncertainty import of_probabilities
from tasks import Classification
from tasks.embeddings import embed

WEIGHTS = "pretrained-mobilenetv2_100/mobilenetv2_100.safetensors"
COMMITTEE = 5
STRATEGIES: tuple[Strategy, ...] = ("random", *(name for name in get_args(Strategy) if name != "random"))
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """How a set is used: pictures of the pool and of the test at most, side, labels at first and of each round."""

    pool: int
    test: int
    side: int
    step: int
    rounds: int


PLANS = {
    "waste": Plan(540, 540, 224, 27, 7),
    "cifar10": Plan(2000, 2000, 96, 50, 7),
    "hymenoptera": Plan(244, 153, 224, 8, 7),
}


@dataclass(frozen=True)
class Vectors:
    """Embeddings and classes of pool and test."""

    pool: Floats
    pool_labels: Ints
    test: Floats
    test_labels: Ints


def read_vectors(data: Path, name: str) -> Vectors:
    """Embed a set's pictures.

    Args:
        data: The folder of the shared sets.
        name: Of ``PLANS``.
    """
    plan = PLANS[name]
    with tempfile.TemporaryDirectory() as folder:
        source = data / name
        if archive := next(source.glob("*.tar.gz"), None):
            with tarfile.open(archive) as file:
                file.extractall(folder, filter="data")
            source = next(path.parent for path in sorted(Path(folder).rglob("train")) if path.is_dir())
        given: dict[str, Any] = {"image_size": plan.side, "num_workers": 0, "cache": "none", "duplicates": "warn"}
        loaded = ClassificationData(str(source), **given)
        loaded.setup("probe")
        task = Classification(
            backbone="mobilenetv2_100", pretrained=str(data / WEIGHTS), backbone_args={"pad_type": "same"}
        )
        task.resolve(loaded.spec(), name)
        task.configure_model()
        task.eval()
        rng = np.random.default_rng(0)
        parts = []
        for split, most in (("train", plan.pool), ("test" if loaded.records["test"] else "val", plan.test)):
            records = loaded.records[split]
            chosen = rng.permutation(len(records))[:most]
            loaded.records[split] = [records[i] for i in sorted(chosen.tolist())]
            loader = (
                loaded.train_features_dataloader() if split == "train" else getattr(loaded, f"{split}_dataloader")()
            )
            with torch.inference_mode():
                vectors = [(embed(task, batch["image"]).numpy(), batch["label"].numpy()) for batch in loader]
            parts += [np.concatenate([x for x, _ in vectors]).astype(float), np.concatenate([y for _, y in vectors])]
    return Vectors(*parts)


def fitted(vectors: Floats, labels: Ints) -> Any:
    """The regression of ``probe``; one that says one thing where there is one class only."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000)).fit(vectors, labels)


def probabilities(model: Any, vectors: Floats, classes: int) -> torch.Tensor:
    """Float (N, K), 0 for classes that the model has not seen."""
    full = np.zeros((len(vectors), classes))
    full[:, model.classes_] = model.predict_proba(vectors)
    return torch.from_numpy(full)


def simulate(data: Vectors, strategy: Strategy, step: int, rounds: int, seed: int) -> list[float]:
    """Accuracy on the test after each round; the first is that of the random beginning.

    Args:
        data: The set.
        strategy: How the next pictures are chosen.
        step: Labels of each round.
        rounds: How many.
        seed: Of the beginning and of chance.
    """
    rng = np.random.default_rng(seed)
    classes = int(max(data.pool_labels.max(), data.test_labels.max())) + 1
    chosen = rng.permutation(len(data.pool))[:step]
    while len(set(data.pool_labels[chosen])) < 2:
        chosen = rng.permutation(len(data.pool))[:step]
    accuracies = []
    for number in range(rounds):
        model = fitted(data.pool[chosen], data.pool_labels[chosen])
        accuracies.append(float((model.predict(data.test) == data.test_labels).mean()))
        others = np.setdiff1d(np.arange(len(data.pool)), chosen)
        answers = [probabilities(model, data.pool[others], classes)]
        if strategy == "disagreement":
            answers = [_resampled(data, chosen, others, classes, 100 * seed + i) for i in range(COMMITTEE)]
        rows = of_probabilities(answers)
        values = {name: [row[name] for row in rows] for name in rows[0]}
        scaler = model[0]
        picks, _ = choose(
            strategy,
            step,
            values,
            scaler.transform(data.pool[others]),
            centers=scaler.transform(data.pool[chosen]),
            seed=1000 * seed + number,
            size=len(others),
        )
        chosen = np.concatenate([chosen, others[picks]])
    return accuracies


def _resampled(data: Vectors, chosen: Ints, others: Ints, classes: int, seed: int) -> torch.Tensor:
    """A member of the committee; drawn again until it has seen two classes."""
    rng = np.random.default_rng(seed)
    sample = rng.choice(chosen, len(chosen))
    while len(set(data.pool_labels[sample])) < 2:
        sample = rng.choice(chosen, len(chosen))
    return probabilities(fitted(data.pool[sample], data.pool_labels[sample]), data.pool[others], classes)


def gain(curves: Floats, chance: Floats) -> tuple[float, float, float]:
    """Mean over rounds behind the first and over seeds of the lead before chance, with its interval of 95 %, paired.

    Args:
        curves: Accuracies (seeds, rounds).
        chance: The same of random choice.
    """
    leads = (curves - chance)[:, 1:].mean(1)
    half = student.ppf(0.975, len(leads) - 1) * leads.std(ddof=1) / np.sqrt(len(leads)) if len(leads) > 1 else np.nan
    return float(leads.mean()), float(leads.mean() - half), float(leads.mean() + half)


def main(argv: list[str] | None = None) -> int:
    """Simulate and print a table a set.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.active", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path, help="the folder of the shared sets")
    parser.add_argument("--sets", nargs="+", choices=tuple(PLANS), default=list(PLANS))
    parser.add_argument("--seeds", type=int, default=10, help="how many (10)")
    parser.add_argument("--first_seed", type=int, default=0)
    given = parser.parse_args(argv)
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    for name in given.sets:
        plan, started = PLANS[name], time.perf_counter()
        data = read_vectors(given.data, name)
        embedded = time.perf_counter() - started
        curves = {
            strategy: np.array([simulate(data, strategy, plan.step, plan.rounds, s) for s in seeds])
            for strategy in STRATEGIES
        }
        print(
            f"\n{name}: pool {len(data.pool)}, test {len(data.test)}, {given.seeds} seeds, {embedded:.0f} s to embed,"
        )
        print(f"{time.perf_counter() - started:.0f} s in all")
        labels = [plan.step * (i + 1) for i in range(plan.rounds)]
        print(f"| labels | {' | '.join(map(str, labels))} | before random |\n|{' --- |' * (plan.rounds + 2)}")
        for strategy, values in curves.items():
            mean, low, high = gain(values, curves["random"])
            lead = "" if strategy == "random" else f"{mean:+.4f} ({low:+.4f} to {high:+.4f})"
            print(f"| {strategy} | {' | '.join(f'{v:.3f}' for v in values.mean(0))} | {lead} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
