"""``python -m benchmarks.report_coverage``: do intervals of 95 % hold 95 %, and does ``compare`` cry wolf?

Images are drawn from a large made-up population, whose score is known; of each draw the report's own interval is asked
for, and it is counted how often it holds the population's score. For ``compare`` two models are made whose answers are
exchangeable, and it is counted how often a difference is said to be shown.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.report import kinds
from pipelines.report.comparing import Recipe, Run, differences
from pipelines.report.measured import Arrays, Measured
from pipelines.report.scoring import scored

POPULATION = 20_000
CLASSES = 5
METRICS = {"accuracy": "images", "miou": "pixels", "map_50": "boxes"}
SPREAD = 0.1  # of the skill of a recipe's models; a single model of each must be as good as the other
SIGMA = 0.6  # spread of the pixels' difficulty between images


def main(argv: list[str] | None = None) -> int:
    """Run the simulations and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report_coverage", description=__doc__)
    parser.add_argument("--draws", type=int, default=1000, help="of images, for each figure")
    parser.add_argument("--replicates", type=int, default=1000, help="of the bootstrap in each draw, and swaps")
    parser.add_argument("--images", type=int, nargs="+", default=[200], help="in each draw")
    parser.add_argument("--only", nargs="+", default=["accuracy", "miou", "map_50", "aa"], help="which simulations")
    parser.add_argument(
        "--aa", nargs="+", default=["accuracy", "miou"], help="metrics that two equal models are compared by"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 3], help="trainings of each of the two")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    args = parser.parse_args(argv)
    for images in args.images:
        for metric in [name for name in METRICS if name in args.only]:
            began = time.process_time()
            held, value = coverage(metric, images, args.draws, args.replicates, args.seed)
            cost = f"{time.process_time() - began:.0f} CPU s"
            print(f"coverage  {metric:<9} {images} images, {args.draws} draws, score {value:.3f}: {held:.3f}  ({cost})")
            sys.stdout.flush()
        for metric in args.aa if "aa" in args.only else ():
            for seeds in args.seeds:
                began = time.process_time()
                wrong = false_positives(metric, images, args.draws, seeds, args.replicates, args.seed)
                what = f"A/A       {metric:<9} {images} images, {args.draws} draws, {seeds} seeds"
                print(f"{what}: {wrong:.3f}  ({time.process_time() - began:.0f} CPU s)", flush=True)
    return 0


def coverage(metric: str, images: int, draws: int, replicates: int, seed: int) -> tuple[float, float]:
    """How often the interval holds the population's score, and that score."""
    rng = np.random.default_rng(seed)
    population = MAKERS[metric](rng, POPULATION)
    true = float(kinds.scorer(population)(np.ones((1, POPULATION), np.int64))[metric][0])
    held = 0
    for _ in range(draws):
        some = population.take(rng.choice(POPULATION, images, replace=False))
        found = scored(some, kinds.scorer(some), replicates)[metric]
        held += found["low"] <= true <= found["high"]
    return held / draws, true


def false_positives(metric: str, images: int, draws: int, seeds: int, replicates: int, seed: int) -> float:
    """How often one of two recipes that are the same is said to be better, or of two models that are equally good."""
    rng = np.random.default_rng(seed + 1)
    wrong = 0
    for draw in range(draws):
        truth = rng.integers(0, 2**31)
        make = MAKERS[metric]
        made = [make(np.random.default_rng(truth), images, rng, SPREAD * (seeds > 1)) for _ in range(2 * seeds)]
        runs = [Run(f"{'ab'[i // seeds]}/{i % seeds}", {}, one) for i, one in enumerate(made)]
        pair = [Recipe("a", runs[:seeds]), Recipe("b", runs[seeds:])]
        # Swaps and resamples of their own: draws that shared them would not be independent.
        wrong += next(one for one in differences(pair, draw, replicates) if one.metric == metric).is_shown
    return wrong / draws


def _measured(kind: str, images: int, arrays: Arrays, each: Arrays, counts: dict[str, NDArray[np.int64]]) -> Measured:
    names = [f"class {k}" for k in range(CLASSES)]
    facts = {"kind": kind, "split": "test", "class_names": names, "digest": "", "thresholds": [0.5] * CLASSES}
    common = {"path": np.array([f"{i:06d}" for i in range(images)]), "group": np.full(images, "")}
    return Measured(facts, {**common, **arrays}, each, counts)


def make_images(
    rng: np.random.Generator, images: int, model: np.random.Generator | None = None, spread: float = 0.0
) -> Measured:
    """Classified images: some are hard for all models, and each model adds its own noise.

    Args:
        rng: Of the images.
        images: Their number.
        model: Of the model's own noise.
        spread: How much the models of a recipe differ in skill.
    """
    truth = rng.choice(CLASSES, images, p=[0.4, 0.3, 0.15, 0.1, 0.05])
    shared = rng.normal(0, 1, (images, CLASSES))
    own = (model or rng).normal(0, 1, (images, CLASSES))
    skill = 2.0 + spread * float((model or rng).normal())
    logits = 1.5 * (0.8 * shared + 0.6 * own + skill * np.eye(CLASSES)[truth])
    classes = np.argsort(-logits, 1)
    kept: Arrays = {
        "truth": truth,
        "classes": classes.astype(np.int32),
        "logits": np.take_along_axis(logits, classes, 1).astype(np.float16),
        "truth_logit": logits[np.arange(images), truth].astype(np.float32),
    }
    return _measured("images", images, kept, {}, {})


def make_pixels(
    rng: np.random.Generator, images: int, model: np.random.Generator | None = None, spread: float = 0.0
) -> Measured:
    """Segmented images of 10,000 pixels: few classes an image, whose pixels are right or wrong together."""
    own = model or rng
    shares = rng.dirichlet([1.0, 0.5, 0.3, 0.1, 0.05], images)
    true = np.round(shares * 10_000).astype(np.int64)
    hard = rng.normal(0, SIGMA, (images, CLASSES)) + own.normal(spread * float(own.normal()), SIGMA, (images, CLASSES))
    wrong = 1 / (1 + np.exp(1.5 - hard))  # fraction of a class's pixels
    table = np.zeros((images, CLASSES, CLASSES + 1), np.int64)
    for k in range(CLASSES):
        lost = np.round(true[:, k] * wrong[:, k]).astype(np.int64)
        table[:, k, k] = true[:, k] - lost
        where = rng.integers(1, CLASSES, images)
        table[np.arange(images), k, (k + where) % CLASSES] = lost
    flat = table.reshape(images, -1)
    image, cell = np.nonzero(flat)
    number = np.bincount(image, minlength=images)
    each: Arrays = {"cell": cell.astype(np.int32), "pixels": flat[image, cell]}
    return _measured("pixels", images, {}, each, {"cell": number, "pixels": number})


def make_boxes(rng: np.random.Generator, images: int, model: np.random.Generator | None = None) -> Measured:
    """Images with up to twelve objects, most of them found, and false alarms; scores depend on which is which."""
    truths, found = rng.integers(0, 13, images), []
    each: dict[str, Any] = {"truth_labels": rng.choice(CLASSES, int(truths.sum()), p=[0.4, 0.3, 0.15, 0.1, 0.05])}
    first = np.cumsum(truths) - truths
    skill = rng.normal(0, 0.5, images)
    for image in range(images):
        labels = each["truth_labels"][first[image] : first[image] + truths[image]]
        hit = np.flatnonzero(rng.random(len(labels)) < 1 / (1 + np.exp(-1.2 - skill[image])))
        alarms = rng.poisson(2)
        scores = np.concatenate([rng.beta(4, 2, len(hit)), rng.beta(2, 4, alarms)])
        kind = np.concatenate([labels[hit], rng.integers(0, CLASSES, alarms)])
        order = np.argsort(-scores)
        own = [(int(np.flatnonzero(order == i)[0]), int(t)) for i, t in enumerate(hit)]
        found.append((scores[order], kind[order], own))
    detections = np.array([len(scores) for scores, _, _ in found])
    matched = np.array([len(own) for _, _, own in found])
    pairs = np.array([pair for _, _, own in found for pair in own], np.int32).reshape(-1, 2)
    each |= {
        "truth_crowd": np.zeros(len(each["truth_labels"]), np.uint8),
        "scores": np.concatenate([scores for scores, _, _ in found]).astype(np.float32),
        "labels": np.concatenate([labels for _, labels, _ in found]).astype(np.int32),
        "pairs": pairs,
        "pair_iou": rng.uniform(0.5, 1, len(pairs)).astype(np.float32),
    }
    number = {"truth_labels": truths, "scores": detections, "pairs": matched}
    of = {"truth_crowd": truths, "labels": detections, "pair_iou": matched}
    return _measured("boxes", images, {}, each, {**number, **of})


MAKERS: dict[str, Any] = {"accuracy": make_images, "miou": make_pixels, "map_50": make_boxes}

if __name__ == "__main__":
    sys.exit(main())
