"""What each kind of annotation keeps of a teacher's labels, by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from datamodules.annotations.masks import load_mask
from pipelines.noisy_student.kinds import images
from pipelines.noisy_student.kinds.box_files import read_boxes, write_boxes
from pipelines.noisy_student.kinds.boxes import BOXES
from pipelines.noisy_student.kinds.images import IMAGES
from pipelines.noisy_student.kinds.pixel_files import read_pixels
from pipelines.noisy_student.kinds.pixels import PIXELS, confusion
from pipelines.noisy_student.selection import Selection
from tests.pipelines.test_noisy_dense import NAMES, Truth, selected, written_boxes, written_pixels

UNKNOWN = {"class_names": NAMES, "pool": [None] * 3}


def validation_of_ants(file: Path, scores: np.ndarray, hit: np.ndarray, ignored: np.ndarray) -> Path:
    """Evaluated boxes of one class, as the precision bound reads them; at stricter IoU thresholds nothing is hit."""
    stricter = np.zeros_like(hit)
    np.savez(
        file,
        labels=np.zeros(len(scores), np.int64),
        scores=scores.astype(np.float32),
        hit=np.stack([hit, stricter]),
        ignored=np.stack([ignored, stricter]),
    )
    return file


def test_boxes_that_found_a_crowd_say_nothing_of_the_precision(tmp_path):
    """100 wrong boxes on crowds would fail a target of 0.9, and 20 right boxes are too few to reach it."""
    file = written_boxes(tmp_path, [0.6, 0.62, 0.64], [0, 0, 0], [0, 1, 2])
    scores = np.full(140, 0.8)
    right, crowd = np.arange(140) < 40, np.arange(140) >= 40
    target = Selection(precision=0.9)
    seen = validation_of_ants(tmp_path / "val.npz", scores, right, crowd)
    assert selected(BOXES, tmp_path, Truth([]), target, file, seen, UNKNOWN, 0)["kept"] == 3
    few = validation_of_ants(tmp_path / "few.npz", scores, np.arange(140) < 20, np.arange(140) >= 20)
    with pytest.raises(ValueError, match="keeps none of the 3 pseudo-labels"):
        selected(BOXES, tmp_path, Truth([]), target, file, few, UNKNOWN, 0)
    # The same boxes, hitting crowds: no object was found.
    hits = validation_of_ants(tmp_path / "hits.npz", scores, np.ones(140, bool), np.arange(140) >= 20)
    with pytest.raises(ValueError, match="keeps none of the 3 pseudo-labels"):
        selected(BOXES, tmp_path, Truth([]), target, file, hits, UNKNOWN, 0)


def test_validation_boxes_below_the_ignored_scores_do_not_count(tmp_path):
    """They are never taught: 40 right ones at 0.8, and 400 wrong ones at 0.2, where `ignore` is 0.3."""
    file = written_boxes(tmp_path, [0.31, 0.5, 0.64], [0, 0, 0], [0, 1, 2])
    scores = np.repeat([0.8, 0.2], [40, 400])
    seen = validation_of_ants(tmp_path / "val.npz", scores, scores > 0.5, np.zeros(440, bool))
    chosen = Selection(precision=0.9, ignore=0.3)
    report = selected(BOXES, tmp_path, Truth([]), chosen, file, seen, UNKNOWN, 0)
    assert (report["kept"], report["samples_needed"]) == (3, 29)
    # Right ones there do not help either: 20 and 400 of them.
    scores = np.repeat([0.8, 0.2], [20, 400])
    seen = validation_of_ants(tmp_path / "val.npz", scores, np.ones(420, bool), np.zeros(420, bool))
    with pytest.raises(ValueError, match="keeps none"):
        selected(BOXES, tmp_path, Truth([]), chosen, file, seen, UNKNOWN, 0)


def test_a_threshold_that_was_found_is_never_below_the_ignored_scores(tmp_path):
    """All boxes are right; the pool's levels are 0.05 and 0.6, and boxes below 0.1 are dropped."""
    file = written_boxes(tmp_path, [0.05, 0.6, 0.64], [0, 0, 0], [0, 1, 2])
    seen = validation_of_ants(tmp_path / "val.npz", np.full(100, 0.9), np.ones(100, bool), np.zeros(100, bool))
    report = selected(BOXES, tmp_path, Truth([]), Selection(precision=0.9), file, seen, UNKNOWN, 0)
    assert report["thresholds"]["ant"] == pytest.approx(0.6)
    assert (report["kept"], report["pool"], report["coverage"]) == (2, 3, pytest.approx(2 / 3))


def test_a_threshold_between_two_scores_and_at_one(tmp_path):
    """Exact in float32: 0.5 is kept at 0.5, and 0.25 is ignored at an `ignore` of 0.25."""
    file = written_boxes(tmp_path, [0.5, 0.25, 0.24], [0, 0, 1], [0, 0, 0])
    report = selected(BOXES, tmp_path, Truth([]), Selection(threshold=0.5, ignore=0.25), file, None, UNKNOWN, 0)
    assert (report["kept"], report["ignored"], report["pool"]) == (1, 1, 3)
    kept = read_boxes(tmp_path / "selected.json", NAMES)
    assert kept.scores.tolist() == [0.5, 0.25]
    assert kept.crowd.tolist() == [False, True]


def test_boxes_written_as_crowds_by_hand_stay_crowds(tmp_path):
    file = written_boxes(tmp_path, [0.9, 0.9], [0, 0], [0, 0])
    found = read_boxes(file, NAMES)
    write_boxes(found._replace(crowd=np.array([False, True])), file, NAMES, None)
    report = selected(BOXES, tmp_path, Truth([]), Selection(threshold=0.5), file, None, UNKNOWN, 0)
    assert (report["kept"], report["ignored"]) == (1, 1)


def test_thresholds_of_classes_and_the_classes_that_are_not_named(tmp_path):
    file = written_boxes(tmp_path, [0.6, 0.6, 0.6], [0, 1, 2], [0, 1, 2])
    chosen = Selection(threshold={"ant": 0.5, "bee": 0.7})
    report = selected(BOXES, tmp_path, Truth([]), chosen, file, None, UNKNOWN, 0)
    assert report["kept_as"] == {"ant": 1, "bee": 0, "cat": 0}
    assert report["thresholds"] == {"ant": 0.5, "bee": 0.7, "cat": None}


@pytest.mark.parametrize(
    ("threshold", "least"),
    [(0.8, 204), (0.5, 128), (0.501, 128), (0.502, 129), (1.0, 255), (0.0, 0)],  # of 255 levels
)
def test_pixels_are_kept_from_the_first_level_that_reaches_the_threshold(tmp_path, threshold, least):
    """Confidences are rounded down: a level below the threshold may stand for one above it, and is not kept."""
    levels = np.array([[least, max(least - 1, 0)]], np.uint8)
    file = written_pixels(tmp_path, [np.zeros((1, 2), np.uint8)], [levels])
    truth = {"class_names": NAMES, "pool": [None]}
    report = selected(PIXELS, tmp_path, Truth([]), Selection(threshold=threshold), file, None, truth, 0)
    assert report["kept"] == (2 if least == 0 else 1)
    (mask,) = read_pixels(tmp_path / "selected.parquet").masks
    assert load_mask(mask).pixels.tolist() == [[0, 0 if least == 0 else 255]]


def test_pixels_that_somebody_ignored_stay_so_and_the_report_counts_each_class(tmp_path):
    mask = np.array([[0, 1, 2, 255]], np.uint8)
    file = written_pixels(tmp_path, [mask, mask], [np.full((1, 4), 255, np.uint8), np.zeros((1, 4), np.uint8)])
    true = {"path": "a", "image": np.zeros((1, 4, 3), np.uint8), "mask": np.array([[0, 0, 255, 0]], np.uint8)}
    truth = {"class_names": NAMES, "pool": ["a", None]}
    report = selected(PIXELS, tmp_path, Truth([true]), Selection(threshold=0.5), file, None, truth, 0)
    assert (report["pool"], report["kept"], report["coverage"]) == (6, 3, 0.5)
    assert report["labelled_as"] == {"ant": 2, "bee": 2, "cat": 2}
    assert report["kept_as"] == report["taught_as"] == {"ant": 1, "bee": 1, "cat": 1}
    assert report["precision"] == report["precision_of_all"] == 0.5  # an ant, and an ant taken for a bee
    assert report["precision_by_class"] == {"ant": 1.0, "bee": 0.0, "cat": None}
    assert report["truth_of_taught"] == {"ant": 2, "bee": 0, "cat": 0}
    assert report["thresholds"] == {"ant": 0.5, "bee": 0.5, "cat": 0.5}


def test_a_confusion_matrix_has_the_true_classes_in_its_rows():
    true, given = np.array([0, 0, 1, 255, 2], np.uint8), np.array([0, 1, 1, 0, 255], np.uint8)
    assert confusion(true, given, 3).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_labels_of_images_by_hand(tmp_path):
    labels = images.Labels(["a.png", "b.png"], np.array([[0.6, 0.4], [0.1, 0.9]], np.float32), ["ant", "bee"])
    images.write_labels(labels, tmp_path / "labels.parquet", "x")
    assert images.correct(tmp_path / "labels.parquet", [0, 0]).tolist() == [True, False]
    assert IMAGES.digest_in(tmp_path / "labels.parquet") == "x"
    again = images.read_labels(tmp_path / "labels.parquet", ["bee", "ant"])
    assert again.probabilities[0].tolist() == [pytest.approx(0.4), pytest.approx(0.6)]
    two = IMAGES.scores(tmp_path / "labels.parquet", [0, 0], np.array([[1, 1], [2, 0], [0, 2]]))
    assert two["accuracy"].tolist() == [0.5, 1.0, 0.0]


def test_boxes_between_the_ignored_scores_and_the_threshold_are_crowds_by_default_from_a_tenth_on(tmp_path):
    file = written_boxes(tmp_path, [0.9, 0.11, 0.09], [0, 0, 0], [0, 0, 0])
    report = selected(BOXES, tmp_path, Truth([]), Selection(threshold=0.5), file, None, UNKNOWN, 0)
    assert (report["kept"], report["ignored"], report["images"], report["pool_images"]) == (1, 1, 1, 3)
    BOXES.check_selection(Selection(threshold=0.1))
    with pytest.raises(ValueError, match=r"boxes below selection.ignore \(0.1\) are dropped"):
        BOXES.check_selection(Selection(threshold=0.09))
    BOXES.check_selection(Selection(precision=0.9))  # which finds its own


class Chunked:
    """As much of a labeled pool as merging asks for: one chunk."""

    def __init__(self, kind, root: Path, rows: list, paths: list[str]) -> None:
        self.records = [{"path": path} for path in paths]
        self.data, self.parts, self.file = Truth([]), root, root / f"0{kind.CHUNK}"
        with open(self.file, "wb") as file:
            kind.write_chunk(file, rows)

    def files(self) -> list[Path]:
        return [self.file]


def test_probabilities_of_several_teachers_are_averaged(tmp_path):
    pools = []
    for name, row in (("a", [0.8, 0.2]), ("b", [0.2, 0.8]), ("c", [0.8, 0.2])):
        (tmp_path / name).mkdir()
        pools.append(Chunked(IMAGES, tmp_path / name, [np.array([row], np.float32)], ["digits#1"]))
    IMAGES.merge(tmp_path / "labels.parquet", pools, ["ant", "bee"], "x", every=False)
    assert images.read_labels(tmp_path / "labels.parquet").probabilities[0].tolist() == pytest.approx([0.6, 0.4])


def test_boxes_of_hardly_any_score_are_not_written_but_where_scores_are_computed(tmp_path):
    rows = [{"bbox": [[0, 0, 4, 6]] * 3, "labels": [0, 1, 2], "scores": [0.5, 0.05, 0.04], "size": [40, 48]}]
    pool = Chunked(BOXES, tmp_path, rows, ["a.png"])
    for every, scores in ((False, [0.5, 0.05]), (True, [0.5, 0.05, 0.04])):
        BOXES.merge(tmp_path / "labels.json", [pool], NAMES, "x", every=every)
        found = read_boxes(tmp_path / "labels.json", NAMES)
        assert found.scores.tolist() == pytest.approx(scores)
        assert found.boxes[0].tolist() == [0, 0, 4, 6]
        assert (found.sizes, BOXES.digest_in(tmp_path / "labels.json")) == ([(40, 48)], "x")


def test_images_whose_taught_class_the_student_believes_least_come_first(tmp_path):
    def written(name: str, rows: list[list[float]], paths: list[str]) -> Path:
        labels = images.Labels(paths, np.array(rows, np.float32), ["ant", "bee"])
        images.write_labels(labels, tmp_path / name)
        return tmp_path / name

    paths = ["digits#1", "digits#2", "digits#3"]
    taught = written("taught.parquet", [[0.9, 0.1], [0.4, 0.6], [0.8, 0.2]], paths)
    student = written("student.parquet", [[0.7, 0.3], [0.9, 0.1], [0.2, 0.8]], paths)
    pool = [{"path": path, "image": path} for path in paths]
    truth = {"class_names": ["ant", "bee"], "pool": [0, 0, -1]}
    doubtful = IMAGES.doubtful(taught, student, pool, truth, None, 3)  # they agree on the first one
    assert [(one["path"], one["taught"], one["student"], one["truth"]) for one in doubtful.found] == [
        ("digits#2", "bee", "ant", "ant"),
        ("digits#3", "ant", "bee", None),
    ]
    assert [one["probability"] for one in doubtful.found] == pytest.approx([0.1, 0.2])
    assert doubtful.captions == ["bee? student: ant, truth: ant", "ant? student: bee"]
    assert doubtful.pictures == ["digits#2", "digits#3"]


def test_boxes_of_the_teacher_and_the_student_agree_by_their_f1(tmp_path):
    """Both boxes of image 0 are found, one of two of image 1; image 2 has a crowd alone, and the student nothing."""
    taught = written_boxes(tmp_path / "taught", [0.9, 0.9, 0.9, 0.9, 0.9], [0, 1, 0, 1, 0], [0, 0, 1, 1, 2])
    found = read_boxes(taught, NAMES)
    write_boxes(found._replace(crowd=np.array([False, False, False, False, True])), taught, NAMES, None)
    taught.with_name("selection.json").write_text('{"thresholds": {"ant": 0.5, "bee": 0.5, "cat": null}}')
    # In another order of the images; a box of the student below the threshold, and one of a class that is left out.
    student = written_boxes(tmp_path / "student", [0.9, 0.9, 0.4, 0.9, 0.9], [0, 1, 0, 1, 2], [0, 0, 1, 1, 1])
    other = read_boxes(student, NAMES)
    paths = [str(tmp_path / "taught" / "pictures" / f"{i}.png") for i in (0, 1, 2)]
    moved = other._replace(paths=paths[::-1], image=np.array([2, 2, 1, 1, 1]))  # images 0 and 1 of `paths`
    rows = np.argsort(moved.image, kind="stable")
    moved = moved._replace(
        **{key: getattr(moved, key)[rows] for key in ("image", "boxes", "labels", "scores", "crowd")}
    )
    write_boxes(moved, student, NAMES, None)
    agreements = BOXES.agreements(taught, student, NAMES)
    assert [Path(one.path).name for one in agreements] == ["0.png", "1.png", "2.png"]
    assert [one.agreement for one in agreements] == pytest.approx([1.0, 2 / 3, 0.0])
    assert [one.counts for one in agreements][1] == {"taught": 2, "student": 1}
    assert [len(side["boxes"]) for side in agreements[1].sides()] == [2, 1]


def test_pixels_of_the_teacher_and_the_student_agree_where_they_are_taught(tmp_path):
    taught = written_pixels(tmp_path / "a", [np.array([[0, 1, 2, 255]], np.uint8)], [np.full((1, 4), 255, np.uint8)])
    student = written_pixels(tmp_path / "b", [np.array([[0, 1, 1, 0]], np.uint8)], [np.full((1, 4), 255, np.uint8)])
    table = pq.read_table(student)
    same = table.set_column(0, "path", pq.read_table(taught).column("path"))
    pq.write_table(same, student)
    (agreement,) = PIXELS.agreements(taught, student, NAMES)
    assert agreement.agreement == pytest.approx(2 / 3)
    assert [side["mask"].tolist() for side in agreement.sides()] == [[[0, 1, 2, 255]], [[0, 1, 1, 0]]]


def test_boxes_that_the_student_alone_finds_count_against_the_agreement(tmp_path):
    """One box is taught; the student has it and another one: a precision of 1/2 and a recall of 1."""
    taught = written_boxes(tmp_path, [0.9], [0], [0], images=1).rename(tmp_path / "labels" / "taught.json")
    taught.with_name("selection.json").write_text('{"thresholds": {"ant": 0.5, "bee": 0.5, "cat": 0.5}}')
    student = written_boxes(tmp_path, [0.9, 0.8], [0, 0], [0, 0], images=1)
    (agreement,) = BOXES.agreements(taught, student, NAMES)
    assert agreement.agreement == pytest.approx(2 / 3)
    assert agreement.counts == {"taught": 1, "student": 2}


def test_a_crowd_is_no_object_that_a_teacher_misses(tmp_path):
    labels = written_boxes(tmp_path, [0.9], [0], [0], images=1)
    record = {"path": "a", "image": np.zeros((40, 48, 3)), "height": 40, "width": 48, "labels": np.array([0, 0])}
    record["boxes"] = np.array([[0, 0, 10.5, 12.25], [30, 20, 40, 30]], np.float32)
    for second, truths, score in ((1, 1, 1.0), (0, 2, 51 / 101)):
        record["iscrowd"] = np.array([0, second])
        BOXES.evaluate(labels, [record], Truth([record]), SimpleNamespace(max_detections=9), tmp_path / "val.npz")
        assert np.load(tmp_path / "val.npz")["truths"].tolist() == [[truths, 0, 0]]
        assert BOXES.score(tmp_path / "val.npz", ["a"]) == pytest.approx(score)
