"""What the datamodules of pictures with masks or boxes share: digit scenes, canvas, native sizes, tiles."""

# No `from __future__ import annotations`: jsonargparse looks types up from the modules of the subclasses.

from dataclasses import dataclass, field
from typing import Literal

from datamodules.annotations.mask_checks import two_sizes
from datamodules.annotations.records import Record
from datamodules.arguments import Cache, Loading, Pixels, Splits, refuse_set
from datamodules.base import DataModule
from datamodules.common.errors import UserError
from datamodules.splits import hold_out
from datamodules.transforms.tiles import check_tile

NUM_SCENES = {"train": 1000, "val": 200, "test": 200}


@dataclass(kw_only=True, eq=False, repr=False)
class DenseData(Pixels, Splits, Loading, DataModule):
    """Base of the datamodules whose annotations lie in the picture.

    Args:
        num_scenes: Digit scenes of each split; 1,000, 200 and 200 by default.
        resize: How a picture comes onto the canvas: ``letterbox`` (all of it, its proportions kept, the rest filled),
            ``stretch``, or ``native``: training crops the canvas out of the picture as it is, evaluation sees each
            picture in its own size.
        tile: Evaluate by overlapping tiles of this height and width, for pictures too large for one pass; needs
            ``resize: native``.
        tile_overlap: Fraction of a tile that neighbors share; objects should fit into it.
    """

    source: str = field(default="digits", kw_only=False)
    class_names: list[str] | None = None
    num_scenes: dict[str, int] | None = None
    resize: Literal["letterbox", "stretch", "native"] = "letterbox"
    tile: int | tuple[int, int] | None = None
    tile_overlap: float = 0.25

    _side = 256  # of the canvas for files, by default
    most_images = 8

    def _check_shared(self) -> None:
        """Refuse values out of range, and values that would have no effect."""
        self._asked_eval_batch = self.eval_batch_size
        self._check_loading()
        self._check_splits()
        if self.image_size is not None and min(self.canvas()) < 1:
            raise UserError(f"data.image_size is {self.image_size}; height and width are at least 1 pixel.")
        self._check_scenes()
        if self.cache == "tensor":
            raise UserError("data.cache is 'tensor', which is for whole images only: use data.cache: decoded or none.")
        self._check_tiles()

    def _check_scenes(self) -> None:
        if self.source == "digits":
            refuse_set(self, ["group"], "data.source is 'digits', whose splits are given.")
            if self.cache == "decoded":
                raise UserError("data.cache is 'decoded', but the digit scenes are drawn, not decoded: leave it out.")
            if len(set(self.canvas())) > 1:
                raise UserError(f"data.image_size is {self.image_size}; digit scenes are square: give one number.")
        else:
            refuse_set(self, ["num_scenes"], f"data.source is '{self.source}', not 'digits'.")
        for split, number in (self.num_scenes or {}).items():
            if split not in NUM_SCENES or number < (1 if split == "train" else 0):
                raise UserError(
                    f"data.num_scenes has '{split}: {number}'; it takes train (1 or more), val and test (0 or more)."
                )

    def _check_tiles(self) -> None:
        tile = self.tile_size
        if tile is None:
            if self.tile_overlap != 0.25:
                raise UserError(f"data.tile_overlap is {self.tile_overlap}, but data.tile is not set.")
            return
        check_tile(tile, self.tile_overlap)
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
        self._weigh(scenes)
        return scenes

    @property
    def tile_size(self) -> tuple[int, int] | None:
        """Height and width of evaluation's tiles."""
        return (self.tile, self.tile) if isinstance(self.tile, int) else self.tile

    def canvas(self) -> tuple[int, int]:
        """Height and width of a training batch, and of evaluation's unless ``resize`` is ``native``."""
        if self.image_size is None:
            return (128, 128) if self.source == "digits" else (self._side, self._side)
        size = self.image_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    def _resolve_cache(self) -> Cache:
        return self.cache if self.cache in ("decoded", "resized") else "none"
