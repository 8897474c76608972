"""What several teachers say together: weighted boxes fusion by hand, and the mean of pixel scores."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from datamodules.common.errors import UserError
from pipelines.fusion import averaged_scores, fused

SIZE = [80, 90]


def entry(boxes: list[list[float]], scores: list[float], labels: list[int] | None = None) -> dict:
    return {"bbox": boxes, "labels": labels or [0] * len(boxes), "scores": scores, "size": SIZE}


def test_fused_boxes_are_the_means_of_groups():
    """Two teachers: both find the ant, one of them a bee at the same place, and a second ant far away."""
    first = entry([[0, 0, 10, 10], [50, 50, 10, 10]], [0.9, 0.4])
    second = entry([[1, 0, 10, 10], [0, 0, 10, 10]], [0.6, 0.8], [0, 1])
    both = fused([first, second])
    assert both["labels"] == [0, 1, 0]
    assert both["scores"] == pytest.approx([0.75, 0.4, 0.2])
    assert both["bbox"][0] == pytest.approx([0.4, 0, 10, 10])  # 0.6 / 1.5 of the way
    assert both["bbox"][1:] == [[0, 0, 10, 10], [50, 50, 10, 10]]
    assert both["size"] == SIZE
    nothing = entry([], [])
    assert fused([nothing, nothing]) == nothing
    assert fused([first]) == {**first, "scores": pytest.approx([0.9, 0.4])}


def test_a_box_joins_the_group_by_its_mean_and_not_by_its_first_box():
    """The third box overlaps the first by 0.54, and the mean of the first two by 0.66."""
    boxes = [[0, 0, 10, 10], [2, 0, 10, 10], [3, 0, 10, 10]]
    found = fused([entry([box], [score]) for box, score in zip(boxes, (0.9, 0.8, 0.7), strict=True)])
    assert found["scores"] == pytest.approx([0.8])
    assert found["bbox"][0] == pytest.approx([(0.8 * 2 + 0.7 * 3) / 2.4, 0, 10, 10])


def test_a_box_leaves_a_group_whose_mean_has_moved_away():
    """The third overlaps the first box by 0.6, but the mean of the first two by 0.49 only."""
    boxes = [[0, 0, 10, 10], [2, 0, 10, 10], [-2.5, 0, 10, 10]]
    found = fused([entry([box], [score]) for box, score in zip(boxes, (0.9, 0.8, 0.7), strict=True)])
    assert found["scores"] == pytest.approx([0.85 * 2 / 3, 0.7 / 3])


def test_the_group_box_is_weighted_by_the_scores():
    """The third overlaps the weighted mean of the first two by 0.53; their middle by 0.59."""
    boxes = [[0, 0, 10, 10], [2, 0, 10, 10], [3.6, 0, 10, 10]]
    found = fused([entry([box], [score]) for box, score in zip(boxes, (0.9, 0.3, 0.2), strict=True)])
    assert found["scores"] == pytest.approx([0.6 * 2 / 3, 0.2 / 3])


def test_boxes_are_grouped_in_the_order_of_falling_score():
    """The middle one is the surest: it takes the next one, and the mean has left the last."""
    boxes = [[0, 0, 10, 10], [2.5, 0, 10, 10], [5, 0, 10, 10]]
    found = fused([entry([box], [score]) for box, score in zip(boxes, (0.5, 0.9, 0.8), strict=True)])
    assert found["scores"] == pytest.approx([0.85 * 2 / 3, 0.5 / 3])


@pytest.mark.parametrize(("offset", "groups"), [(2.95, 2), (2.85, 1)])  # an overlap of 0.544, and of 0.556
def test_boxes_that_overlap_by_more_than_the_papers_limit_are_one_object(offset, groups):
    found = fused([entry([[0, 0, 10, 10]], [0.9]), entry([[offset, 0, 10, 10]], [0.8])])
    assert len(found["scores"]) == groups


def test_a_box_joins_the_group_that_it_overlaps_most():
    boxes = [[0, 0, 10, 10], [4, 0, 10, 10], [2.2, 0, 10, 10]]  # the last: 0.64 with the first, 0.69 with the second
    found = fused([entry([box], [score]) for box, score in zip(boxes, (0.9, 0.8, 0.2), strict=True)])
    assert [round(x, 3) for x, *_ in found["bbox"]] == [3.64, 0]
    assert found["scores"] == pytest.approx([0.5 * 2 / 3, 0.9 / 3])


def test_an_overlap_of_exactly_the_limit_is_another_object(monkeypatch):
    """Two boxes with an intersection over union of 1/2, where the limit is 1/2, too."""
    monkeypatch.setattr("pipelines.fusion.SAME_OBJECT", 0.5)
    assert len(fused([entry([[0, 0, 10, 10]], [0.9]), entry([[0, 0, 10, 20]], [0.8])])["scores"]) == 2


def test_the_height_of_a_box_is_fused_like_its_width():
    found = fused([entry([[0, 0, 10, 10]], [0.75]), entry([[1, 1, 10, 12]], [0.25])])
    assert found["bbox"][0] == pytest.approx([0.25, 0.25, 10, 10.5])


def test_more_boxes_of_a_group_than_teachers_count_as_all_of_them():
    """One teacher says the same object twice: its score is the mean, and never more than that."""
    twice = entry([[0, 0, 10, 10], [0, 0, 10, 10]], [0.9, 0.7])
    assert fused([twice])["scores"] == pytest.approx([0.8])
    assert fused([twice, entry([[0, 0, 10, 10]], [0.5])])["scores"] == pytest.approx([0.7])


class Net:
    """A task whose scores of any image are a constant, once its weights are loaded."""

    def __init__(self, value: float) -> None:
        self.value, self.loaded, self.evaluated = value, False, False

    def load_state_dict(self, weights: dict) -> None:
        self.loaded = weights == {"value": self.value}

    def eval(self) -> None:
        self.evaluated = True

    def to(self, device: torch.device) -> Net:
        return self

    def scores(self, image: torch.Tensor) -> torch.Tensor:
        return torch.full((1, 2), self.value)


def teacher(root: Path, value: float, **view: object) -> SimpleNamespace:
    file = root / f"{value}.ckpt"
    torch.save({"state_dict": {"value": value}}, file)
    return SimpleNamespace(checkpoint=file, task=Net(value), data=SimpleNamespace(image_size=8, **view))


def test_pixel_scores_are_the_mean_of_the_teachers_within(tmp_path):
    teachers = [teacher(tmp_path, value) for value in (0.2, 0.5, 0.8)]
    image = torch.zeros(1, 3, 8, 8)
    with averaged_scores(teachers) as mean:
        assert mean is teachers[0]
        assert mean.task.scores(image).tolist() == [[pytest.approx(0.5)] * 2]
    assert teachers[0].task.scores(image).tolist() == [[pytest.approx(0.2)] * 2]
    assert [(t.task.loaded, t.task.evaluated) for t in teachers] == [(False, False), (True, True), (True, True)]


@pytest.mark.parametrize("key", ["in_chans", "dtype", "resize", "interpolation", "tile", "tile_overlap"])
def test_teachers_that_see_an_image_in_another_way_are_refused(tmp_path, key):
    teachers = [teacher(tmp_path, 0.2, **{key: 1}), teacher(tmp_path, 0.5, **{key: 2})]
    with pytest.raises(UserError, match=rf"0.5.ckpt has data.{key} 2, but .*0.2.ckpt has 1"), averaged_scores(teachers):
        pass
