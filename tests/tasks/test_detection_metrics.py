"""COCO's metrics against pycocotools; ranks, settings, masks as run-length encodings, refusals."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from pycocotools import mask as coco_mask

from datamodules.common import rle
from tasks.detection.evaluation.curves import Thresholds
from tasks.detection.evaluation.metrics import CocoMetrics
from tests.detection_cases import (
    Case,
    encode,
    expected_values,
    one_each,
    painted,
    pycocotools_evaluation,
    random_boxes,
    random_case,
)
from tests.ranks import in_ranks

KINDS = ("bbox", "segm")


def filled(case: Case, iou_type: Any = "bbox") -> CocoMetrics:
    metric = CocoMetrics(**case.settings, iou_type=iou_type)
    for part in case.parts():
        metric.update(*part)
    return metric


def numbers(metric: CocoMetrics) -> dict[str, float]:
    return {name: float(value) for name, value in metric.compute().items()}


def assert_equal(case: Case, kind: str, values: dict[str, float], metric: CocoMetrics, note: Any) -> None:
    expected, columns = expected_values(case, kind)
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, abs=1e-6, nan_ok=True), (note, name)
    per_class = metric.per_class()
    for name, column in columns.items():
        np.testing.assert_allclose(per_class[name], column, atol=1e-6, err_msg=f"{note} {name}")
    others = {"mask_f1", "mask_ap_dsb"} if kind == "segm" else {"f1", "ap_dsb"}
    assert set(values) == set(expected) | others


@pytest.mark.parametrize("seeds", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_boxes_and_masks_in_random_cases_are_pycocotools(seeds: int) -> None:
    seen = {
        "crowd": 0,
        "empty image": 0,
        "absent class": 0,
        "nothing found": 0,
        "no truth": 0,
        "limited": 0,
        "defined": 0,
    }
    for seed in range(seeds):
        case = random_case(seed, masks=seeds > 60 or seed % 3 == 0, full=seed % 10 == 0)
        metric = filled(case, KINDS if "masks" in case.predictions else "bbox")
        values = numbers(metric)
        boxes = {name: value for name, value in values.items() if not name.startswith("mask_")}
        assert_equal(case, "bbox", boxes, metric, seed)
        if len(values) > len(boxes):
            assert_equal(case, "segm", {k: v for k, v in values.items() if k not in boxes}, metric, seed)
        labels = torch.cat([target["labels"] for target in case.targets])
        found = torch.cat(case.predictions["labels"])
        seen["crowd"] += any(bool(target["iscrowd"].any()) for target in case.targets)
        seen["empty image"] += any(not len(target["labels"]) for target in case.targets)
        seen["absent class"] += len(labels.unique()) < case.num_classes
        seen["nothing found"] += not len(found)
        seen["no truth"] += not len(labels)
        seen["limited"] += any(
            len(part) and int(part.bincount().max()) > case.max_detections for part in case.predictions["labels"]
        )
        seen["defined"] += 0 < values["map"] < 1
    assert min(seen.values()) >= 0.01 * seeds, seen
    assert seen["defined"] > 0.6 * seeds


def test_masks_as_in_a_json_file_are_masks() -> None:
    case = random_case(20, masks=True, full=True)
    values = numbers(filled(case, "segm"))
    given = case.predictions["masks"]
    case.predictions["masks"] = [[{**encode(m), "counts": encode(m)["counts"].decode()} for m in g] for g in given]
    assert numbers(filled(case, "segm")) == pytest.approx(values, abs=0, nan_ok=True)
    assert 0 < values["mask_map"] < 1


def test_cocos_own_twelve_figures() -> None:
    """COCO's summary itself, which the tables above are read without."""
    case = random_case(20, full=True)
    evaluation = pycocotools_evaluation(case, "bbox")
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.summarize()
    names = ["map", "map_50", "map_75", "map_small", "map_medium", "map_large"]
    names += ["mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large"]
    values = numbers(filled(case))
    expected = {
        name: math.nan if value < 0 else float(value) for name, value in zip(names, evaluation.stats, strict=True)
    }
    assert {name: values[name] for name in names} == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_more_than_a_hundred_detections_are_honored() -> None:
    corner = torch.stack(torch.meshgrid(torch.arange(0, 200, 10), torch.arange(0, 150, 10), indexing="ij"), -1)
    boxes = torch.cat([corner.reshape(-1, 2), corner.reshape(-1, 2) + 8], 1).float()  # 300, apart from each other
    labels = torch.zeros(300, dtype=torch.int64)
    predictions = {"boxes": [boxes], "scores": [torch.linspace(0.9, 0.1, 300)], "labels": [labels]}
    values = {}
    for most in (100, 500):
        metric = CocoMetrics(1, max_detections=most)
        metric.update(predictions, [{"boxes": boxes, "labels": labels}], [7])
        values[most] = numbers(metric)
    assert values[500]["mar_500"] == values[500]["map"] == values[500]["f1"] == values[500]["ap_dsb"] == 1
    assert values[100]["mar_100"] == pytest.approx(1 / 3)
    assert values[100]["map"] == pytest.approx(34 / 101)  # precision 1 up to a recall of a third
    assert "mar_100" not in values[500]


def test_names_are_always_the_same_and_nan_where_undefined() -> None:
    metric = CocoMetrics(2, ("bbox", "segm"))
    empty = numbers(metric)
    assert all(math.isnan(value) for value in empty.values())
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    metric.update({**{k: [v] for k, v in nothing.items()}, "scores": [torch.zeros(0)], "masks": [[]]}, [nothing], [1])
    assert all(math.isnan(value) for value in numbers(metric).values())
    assert list(numbers(metric)) == list(empty)
    # A class that is detected but not there stays undefined, and does not pull the mean.
    square = torch.zeros(2, 20, 20, dtype=torch.bool)
    square[:, 5:15, 5:15] = True
    box = torch.tensor([[5.0, 5, 15, 15]])
    predictions = {
        "boxes": [box.expand(2, 4)],
        "scores": [torch.tensor([0.3, 0.9])],
        "labels": [torch.tensor([0, 1])],
        "masks": [square],
    }
    target = {"boxes": box, "labels": torch.tensor([0]), "masks": square[:1].to(torch.int16)}
    metric.update(predictions, [target], torch.tensor([2]))
    values = numbers(metric)
    assert list(values) == list(empty)
    assert values["map"] == values["mask_map"] == values["map_small"] == values["f1"] == 1
    assert math.isnan(values["map_large"])
    per_class = metric.per_class()
    assert per_class["boxes"] == [1, 0]
    assert per_class["ap"][0] == per_class["mask_ap_50"][0] == 1
    assert math.isnan(per_class["ap"][1])
    assert metric.thresholds["bbox"].per_class == pytest.approx([0.3, 0.3])
    assert metric.matchings["segm"].num_images == 2
    metric.reset()
    assert not any((metric.matchings, metric.thresholds, metric.per_class()))
    assert metric.report() is None
    assert all(math.isnan(value) for value in numbers(metric).values())


def test_thresholds_of_a_checkpoint_decide_on_f1_only() -> None:
    case = random_case(20, full=True)
    metric = filled(case)
    best = numbers(metric)
    thresholds = metric.thresholds["bbox"]
    metric.at = {"bbox": copy.copy(thresholds)}
    assert numbers(metric) == pytest.approx(best, abs=0, nan_ok=True)
    metric.at["bbox"].per_class[:] = [2.0] * case.num_classes
    strict = numbers(metric)
    assert strict["f1"] == strict["ap_dsb"] == 0
    assert strict["map"] == best["map"] > 0


def test_a_report_is_taken_at_the_thresholds_in_use() -> None:
    case = random_case(20, masks=True, full=True)
    metric = filled(case, KINDS)
    metric.compute()
    boxes, masks = metric.report("bbox"), metric.report()
    assert boxes is not None
    assert masks is not None
    assert masks.thresholds == metric.thresholds["segm"]
    assert masks.used.tolist() == masks.thresholds.per_class
    per_class = metric.per_class()
    assert [c.average_precision() for c in boxes.curves] == pytest.approx(per_class["ap_50"], nan_ok=True)
    assert (boxes.confusion.sum(1)[:-1] == per_class["boxes"]).all()
    for kind, counts in masks.errors.items():
        assert per_class[f"mask_number_{kind}"] == counts.tolist()
    assert boxes.confusion.trace() == boxes.errors["correct"].sum() > 0
    metric.at = {"bbox": boxes.thresholds, "segm": Thresholds([2.0] * case.num_classes, 2.0, [], 0.0)}
    unseen, low = metric.report(), metric.report(thresholds=0.0)
    assert unseen is not None
    assert low is not None
    assert unseen.errors["missed"].tolist() == per_class["boxes"]
    assert low.confusion.sum() > masks.confusion.sum()


def test_one_rank_alone_does_not_wait_for_others() -> None:
    case = random_case(20, full=True)

    def work() -> None:
        dist.init_process_group("gloo")
        if dist.get_rank() == 1:
            metric = CocoMetrics(**case.settings, sync=False)
            metric.update(*case.part([0]))
            metric.compute()
            assert metric.report() is not None
        dist.destroy_process_group()

    assert in_ranks(work) == [0, 0]


def test_state_is_out_of_reach_of_weight_averaging_and_checkpoints() -> None:
    metric = filled(random_case(20, full=True))
    assert not list(metric.buffers())
    assert not metric.state_dict()
    assert numbers(copy.deepcopy(metric)) == pytest.approx(numbers(metric), abs=0, nan_ok=True)


def test_ranks_with_uneven_and_no_images_give_identical_numbers(tmp_path: Any) -> None:
    seed = next(s for s in range(10, 500, 10) if len(random_case(s, full=True).ids) == 4)
    case = random_case(seed, full=True)
    alone = filled(case)
    expected = json.dumps([numbers(alone), alone.per_class(), alone.thresholds["bbox"].per_class])
    splits = [([2, 3, 0], [1]), ([], [3, 1, 0, 2])]

    def work() -> None:
        dist.init_process_group("gloo")
        rank = dist.get_rank()
        metric = CocoMetrics(**case.settings)
        for split in splits:
            metric.reset()
            for row in split[rank]:
                metric.update(*case.part([row]))
            result = [numbers(metric), metric.per_class(), metric.thresholds["bbox"].per_class]
            assert json.dumps(result) == expected, (rank, split)
            assert (metric.report() is None) == (rank == 1)
        metric.update(*case.part([0]))  # on both: an error on rank 0 reaches all, and none waits for ever
        with pytest.raises(ValueError, match=r"evaluated 3 times.*id of its own"):
            metric.compute()
        (tmp_path / str(rank)).touch()
        dist.destroy_process_group()

    assert in_ranks(work) == [0, 0]
    assert len(list(tmp_path.iterdir())) == 2


def test_layers_become_cocos_run_lengths() -> None:
    rng = np.random.default_rng(0)
    for count in (0, 1, 7, 40):
        layers = painted(random_boxes(rng, count), rng, layers=2)
        layers[0, 3:9, 3:9] = 1  # in both layers, and under none
        layers[1, 5:20, 8:12] = 1
        layers[0, -1, -1] = 1
        expected = [encode(mask) for mask in one_each(layers, count)]
        assert rle.of_layers(layers, count) == expected
        assert rle.of_masks(one_each(layers, count)) == expected
    plain = {"size": [2, 3], "counts": [1, 2, 3]}
    assert coco_mask.decode(rle.of_masks([plain])[0]).T.ravel().tolist() == [0, 1, 1, 0, 0, 0]
    with pytest.raises(ValueError, match=r"float32.*apply the threshold"):
        rle.of_masks(torch.rand(1, 4, 4))


def test_a_score_that_is_nan_counts_as_zero() -> None:
    metric = CocoMetrics(1)
    boxes, labels = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]]), torch.zeros(2, dtype=torch.int64)
    scores = torch.tensor([0.5, torch.nan])
    metric.update({"boxes": [boxes], "scores": [scores], "labels": [labels]}, [{"boxes": boxes, "labels": labels}], [0])
    assert numbers(metric)["map"] == 1
    assert metric.matchings["bbox"].scores.tolist() == [0.5, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"iou_type": "mask"}, "iou_type is"),
        ({"max_detections": 0}, r"model\.max_detections is 0"),
        ({"size_ranges": {"tiny": (900, 100)}}, r"model\.size_ranges\.tiny is 900 to 100"),
        ({"iou_thresholds": (0.75, 0.5)}, "must rise"),
    ],
)
def test_settings_without_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CocoMetrics(1, **settings)


def test_wrong_input_is_refused_with_its_image() -> None:
    box, zero, two = torch.tensor([[0.0, 0, 5, 5]]), torch.tensor([0]), torch.tensor([2])
    good = {"boxes": [box], "scores": [torch.tensor([0.5])], "labels": [zero]}
    target = {"boxes": box, "labels": zero}
    boxes, masks = CocoMetrics(2), CocoMetrics(2, "segm")
    with pytest.raises(ValueError, match=r"predictions of image 17 hold the label 2, but the 2 classes are 0 to 1"):
        boxes.update({**good, "labels": [two]}, [target], [17])
    with pytest.raises(ValueError, match=r"predictions of image 17 hold the label -1"):
        boxes.update({**good, "labels": [zero - 1]}, [target], [17])
    with pytest.raises(ValueError, match=r"annotations of image 17 hold the label 2"):
        boxes.update(good, [{**target, "labels": two}], [17])
    with pytest.raises(ValueError, match=r"1 predictions, 1 targets and 2 ids"):
        boxes.update(good, [target], [17, 18])
    with pytest.raises(ValueError, match=r"the predictions hold none"):
        masks.update(good, [target], [17])
    with pytest.raises(ValueError, match=r"image 17 has boxes without masks"):
        masks.update({**good, "masks": [torch.ones(1, 8, 8, dtype=torch.bool)]}, [target], [17])
    small, large = torch.ones(1, 8, 8, dtype=torch.bool), torch.ones(1, 16, 12, dtype=torch.int16)
    with pytest.raises(ValueError, match=r"Image 17 has predicted masks of 8 x 8 pixels and annotated ones of 16 x 12"):
        masks.update({**good, "masks": [small]}, [{**target, "masks": large}], [17])
    boxes.update(good, [target], [17])
    boxes.update(good, [target], [17])
    with pytest.raises(ValueError, match=r"Image id 17 was evaluated 2 times"):
        boxes.compute()
