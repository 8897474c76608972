"""What the datamodules of pictures with masks or boxes share: digit scenes, canvas, native sizes, tiles."""

from __future__ import annotations

from typing import Literal

from datamodules.annotations.mask_checks import two_sizes
from datamodules.annotations.records import Record
from datamodules.base import Cache, DataModule
from datamodules.common.errors import UserError
from datamodules.splits import hold_out
from datamodules.transforms.tiles import check_tile

NUM_SCENES = {"train": 1000, "val": 200, "test": 200}


class DenseData(DataModule):
    """Base of the datamodules whose annotations lie in the picture. Its subclasses' arguments are these attributes.

    Attributes:
        source: ``digits``, or where the files are.
        num_scenes: Digit scenes of each split, where they differ from ``NUM_SCENES``.
        val_fraction: Part held out for validation.
        test_fraction: Part held out for test.
        split_file: ``split.json`` of an earlier run.
        image_size: Height and width of the canvas, as given.
        resize: Evaluation's view.
        tile: Height and width of the tiles of evaluation.
        tile_overlap: Part of a tile that neighbours share.
    """

    source: str
    num_scenes: dict[str, int] | None
    val_fraction: float
    test_fraction: float
    split_file: str | None
    image_size: int | tuple[int, int] | None
    resize: Literal["letterbox", "stretch", "native"]
    tile: tuple[int, int] | None
    tile_overlap: float
    _asked_eval_batch: int | None
    _side = 256  # of the canvas for files, by default

    def _check_common(self) -> None:
        for key in ("val_fraction", "test_fraction"):
            if not 0 <= getattr(self, key) < 1:
                raise UserError(
                    f"data.{key} is {getattr(self, key)}; it is a part of the images, at least 0 and below 1."
                )
        if self.image_size is not None and min(self.canvas()) < 1:
            raise UserError(f"data.image_size is {self.image_size}; height and width are at least 1 pixel.")
        if self.source == "digits":
            if self.cache == "decoded":
                raise UserError("data.cache is 'decoded', but the digit scenes are drawn, not decoded: leave it out.")
            if len(set(self.canvas())) > 1:
                raise UserError(f"data.image_size is {self.image_size}; digit scenes are square: give one number.")
        elif self.num_scenes is not None:
            raise UserError(f"data.num_scenes is set, but data.source is '{self.source}', not 'digits'.")
        for split, number in (self.num_scenes or {}).items():
            if split not in NUM_SCENES or number < (1 if split == "train" else 0):
                raise UserError(
                    f"data.num_scenes has '{split}: {number}'; it takes train (1 or more), val and test (0 or more)."
                )
        if self.cache == "tensor":
            raise UserError("data.cache is 'tensor', which is for whole images only: use data.cache: decoded or none.")
        if self.tile is None:
            if self.tile_overlap != 0.25:
                raise UserError(f"data.tile_overlap is {self.tile_overlap}, but data.tile is not set.")
            return
        check_tile(self.tile, self.tile_overlap)
        if self.resize != "native":
            raise UserError(f"data.tile is set, but data.resize is '{self.resize}': tiles need data.resize: native.")
        if self._asked_eval_batch not in (None, 1):
            raise UserError(
                f"data.eval_batch_size is {self._asked_eval_batch}, but with data.tile one picture is evaluated at a"
                " time: leave it out."
            )
        self.eval_batch_size = 1

    def setup(self, stage: str | None = None) -> None:
        """Read and check images and annotations; a second call does nothing.

        See ``DataModule.setup`` for what it raises.
        """
        fresh = not self.records
        super().setup(stage)
        if self.predict_source is not None or fresh:
            self._settle_eval_batch()

    def _settle_eval_batch(self) -> None:
        """Pictures in their own size go one by one, unless all are of one size."""
        if self.resize != "native" or (self.source == "digits" and self.predict_source is None):
            return
        splits = ("predict",) if self.predict_source is not None else ("val", "test")
        sizes = two_sizes([r for split in splits for r in self.records.get(split, [])])
        if len(sizes) < 2:
            return
        if self._asked_eval_batch not in (None, 1) and self.predict_source is None:
            raise UserError(
                f"data.eval_batch_size is {self._asked_eval_batch}, but data.resize is 'native' and pictures differ in"
                f" size: {' and '.join(sizes)} (width x height). Leave it out (1 is taken), or set data.resize:"
                " letterbox."
            )
        self.eval_batch_size = 1

    def _scene_records(self, *more: int) -> list[Record]:
        """Records of digit scenes; ``more`` are further arguments of ``digit_scene``."""
        size = self.canvas()[0]
        return [
            {"image": None, "path": f"digit_scenes#0/{split}/{i}", "scene": (i, 0, split, size, *more), "split": split}
            for split, number in {**NUM_SCENES, **(self.num_scenes or {})}.items()
            for i in range(number)
        ]

    def _split_scenes(self, scenes: list[Record]) -> list[Record]:
        """Scenes in the splits of ``split_file``, where there is one; those of another split are left out."""
        if self.split_file is not None:
            hold_out(scenes, 0.0, 0.0, 0, self.split_file)
        return scenes

    def canvas(self) -> tuple[int, int]:
        """Height and width of a training batch, and of evaluation's unless ``resize`` is ``native``."""
        if self.image_size is None:
            return (128, 128) if self.source == "digits" else (self._side, self._side)
        size = self.image_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    def _resolve_cache(self) -> Cache:
        return "decoded" if self.cache == "decoded" else "none"
