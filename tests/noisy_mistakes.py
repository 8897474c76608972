"""The mistakes of noisy student, for test_mistakes: the config of a loop, and what is replaced in it."""

from __future__ import annotations

IMAGES = """\
data:
  class_path: ClassificationData
  init_args: {source: digits, image_size: 32, batch_size: 4}
labels_per_class: 4
teacher:
  model:
    class_path: Classification
    init_args: {backbone: test_resnet}
  trainer: {max_epochs: 3}
students:
  - model:
      class_path: Classification
      init_args: {backbone: test_resnet, drop_rate: 0.2}
    data: {augment: {preset: rand, rand_magnitude: 5}}
    ratio: 2
    trainer: {max_epochs: 2}
selection: {balance: true}
controls: true
"""
_DENSE = """\
data:
  class_path: KINDData
  init_args: {source: digits, batch_size: 2}
labeled_images: 4
teacher:
  model: &net
    class_path: KIND
    init_args: {backbone: test_resnet}
  trainer: {max_epochs: 2}
students:
  - model: *net
    ratio: 2
    trainer: {max_epochs: 1}
selection: {threshold: 0.5}
"""
PIXELS, BOXES = _DENSE.replace("KIND", "Segmentation"), _DENSE.replace("KIND", "Detection")
CONFIGS = IMAGES, PIXELS, BOXES
LABELS, SELECTION, RATIO = "labels_per_class: 4", "balance: true", "ratio: 2"
SHOWN, THRESHOLD = "labeled_images: 4", "threshold: 0.5"

CASES = [
    ("loop: misspelt key", IMAGES, LABELS, "labels_per_classs: 4"),
    ("loop: misspelt key of a student", IMAGES, RATIO, "raito: 2"),
    ("loop: misspelt key of a student's noise", IMAGES, "preset: rand", "presett: rand"),
    ("loop: misspelt class", IMAGES, "class_path: Classification\n    init", "class_path: Classificaton\n    init"),
    ("no unlabelled images", IMAGES, f"{LABELS}\n", ""),
    ("pool that is not there", IMAGES, LABELS, "pool: nowhere"),
    ("no labels a class", IMAGES, LABELS, "labels_per_class: 0"),
    ("no labelled images", PIXELS, SHOWN, "labeled_images: 0"),
    ("fraction of labels in percent", PIXELS, SHOWN, "labeled_fraction: 25"),
    ("all labels, and no pool", PIXELS, SHOWN, "labeled_fraction: 1.0"),
    ("batch size of a loop by trying", PIXELS, "batch_size: 2", "batch_size: auto"),
    ("labels a class for boxes", BOXES, SHOWN, "labels_per_class: 4"),
    ("two ways to hide labels", PIXELS, SHOWN, f"{SHOWN}\nlabels_per_class: 2"),
    ("no unlabelled images in a batch", IMAGES, RATIO, "ratio: 0"),
    ("ratio that is no number", IMAGES, RATIO, "ratio: two"),
    ("precision in percent", IMAGES, SELECTION, "precision: 95"),
    ("images a class without balance", IMAGES, SELECTION, "per_class: 5"),
    ("balance for boxes", BOXES, THRESHOLD, "balance: true, threshold: 0.5"),
    ("balance for masks", PIXELS, THRESHOLD, SELECTION),
    ("precision for masks", PIXELS, THRESHOLD, "precision: 0.9"),
    ("ignored scores for masks", PIXELS, THRESHOLD, "threshold: 0.5, ignore: 0.2"),
    ("threshold below the boxes that are dropped", BOXES, THRESHOLD, "threshold: 0.05"),
    ("threshold of a class below the boxes that are dropped", BOXES, THRESHOLD, "threshold: {'3': 0.05}"),
    ("ignored scores out of range", BOXES, THRESHOLD, "threshold: 0.5, ignore: 0.01"),
    ("misspelt key of the selection", BOXES, THRESHOLD, "threshold: 0.5, ignor: 0.2"),
    ("soft labels of boxes", BOXES, RATIO, "ratio: 2\n    labels: soft"),
    ("temperature for masks", PIXELS, RATIO, "ratio: 2\n    temperature: 0.5"),
    ("student with other weights than the teacher", IMAGES, "drop_rate: 0.2", "pretrained: teacher.pth"),
    ("teacher that is neither trained nor given", IMAGES, "  trainer: {max_epochs: 3}", "  checkpoint: x.ckpt"),
    ("checkpoint of another name", IMAGES, "controls: true", "checkpoint: first"),
    ("seed twice", IMAGES, "controls: true", "seeds: [0, 0]"),
    ("overlap that is no choice", IMAGES, "controls: true", "overlap: yes"),
    ("several devices without a launcher", IMAGES, "controls: true", "trainer: {devices: 2}"),
    ("launcher without the number of devices", IMAGES, "controls: true", "launch: [torchrun]"),
]
