"""Two datamodules in one: labeled images, and unlabeled ones, with or without a teacher's labels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, cast

from datamodules.annotations.records import Listing
from datamodules.base import DataModule
from datamodules.common.errors import UserError
from datamodules.loaders import Record, Resumable, TensorLoader, TrainLoader
from datamodules.samplers import key_seed
from datamodules.transforms.augment import Augment
from datamodules.transforms.pipeline import Transform
from datamodules.unlabeled import UnlabeledImages, hide_labels


class SemiSupervised(DataModule):
    """Labeled and unlabeled images side by side: training batches are ``{"labeled": batch, "unlabeled": batch}``.

    Everything but training (validation, test, prediction, class names, image size) is the labeled datamodule's.
    For the offline teacher the unlabeled one is any datamodule over images with pseudo-labels in the ordinary form,
    for example the parquet list of ``pseudo-label``; its validation and test splits are not used. For the online
    teachers ``pool`` and the like say which images have no labels; they come as two views, a weak one
    (``weak_image``) with the augmentation of the labeled images and a strong one (``image``), and no label of theirs
    is in a batch. Unlabeled images are shuffled and augmented from keys of their own, so that neither stream
    disturbs the other.

    Args:
        labeled: The labeled images.
        unlabeled: The images with pseudo-labels; classes and image size must be those of ``labeled``. Left out, there
            is no such half: for a control that trains on labels only, for as many steps.
        ratio: Unlabeled images for each labeled one of a batch (mu in FixMatch); in place of
            ``unlabeled.batch_size``.
        steps_per_epoch: Optimizer batches an epoch; one pass over the unlabeled images (the labeled ones without
            them) by default. A stream that ends before the epoch does goes on to its next pass.
        pool: Images without labels, for the online teachers: a folder, or a ``.csv`` or ``.parquet`` list with a column
            ``path``. They are read and resized as the labeled ones are.
        labels_per_class: Only so many training images of each class keep their labels, the others join the pool; to see
            on a labeled set what unlabeled images would be worth. Drawn by the run's seed.
        labeled_images: In place of it, for all tasks: only so many training images keep their annotations.
        strong: Augmentation of the pool's strong view. Of whole images by default that of the labeled ones with
            ``preset: rand``. Where masks or boxes are learned it comes on top of the weak view and may not move pixels:
            a list of ``transforms`` of colors; jitter, gray and blur by default.
    """

    def __init__(
        self,
        labeled: DataModule,
        unlabeled: DataModule | None = None,
        ratio: int = 1,
        steps_per_epoch: int | None = None,
        pool: str | None = None,
        labels_per_class: int | None = None,
        labeled_images: int | None = None,
        strong: Augment | None = None,
    ) -> None:
        super().__init__()
        self.batch_size, self.eval_batch_size = labeled.batch_size, labeled.eval_batch_size
        self.num_workers, self.seed, self.augment = labeled.num_workers, labeled.seed, labeled.augment
        self.cache, self.cache_dir, self.on_corrupt = "none", None, "error"
        if labeled.tries_batch:
            raise UserError("data.labeled.batch_size is auto, but a step has unlabeled images, too: give a number.")
        if ratio < 1:
            raise UserError(f"data.ratio is {ratio}; it must be a whole number of at least 1.")
        if steps_per_epoch is not None and steps_per_epoch < 1:
            raise UserError(f"data.steps_per_epoch is {steps_per_epoch}; it must be at least 1.")
        hiding = {"labels_per_class": labels_per_class, "labeled_images": labeled_images}
        _check_halves(unlabeled, {"pool": pool, **hiding}, strong)
        if unlabeled is not None and unlabeled.max_pixels != labeled.max_pixels:
            raise UserError(
                f"data.unlabeled.max_pixels is {unlabeled.max_pixels:,}, but data.labeled.max_pixels is"
                f" {labeled.max_pixels:,}: give both the same."
            )
        self.labeled, self.unlabeled, self.max_pixels = labeled, unlabeled, labeled.max_pixels
        self.ratio, self.steps_per_epoch = ratio, steps_per_epoch
        self._hiding = hiding
        if unlabeled is None and (pool is not None or any(hiding.values())):
            self.unlabeled = UnlabeledImages(labeled, pool, strong, ratio)
        self.source = getattr(labeled, "source", type(labeled).__name__)

    # All but training is the labeled datamodule's.

    def setup(self, stage: str | None = None) -> None:
        """Set both up; a second call does nothing.

        Raises:
            UserError: If the two differ in their classes, image size or channels, naming both.
        """
        for part in self._parts().values():
            part.trainer = self.trainer
        self.labeled.predict_source = self.predict_source
        if any(self._hiding.values()):
            self.labeled.hide_labels = self._hide_labels
        self.labeled.setup(stage)
        self.records, self.skipped = self.labeled.records, self.labeled.skipped
        self.class_names = self.labeled.class_names
        if self.predict_source is None and self.unlabeled is not None and stage in ("fit", "probe", None):
            self._setup_unlabeled(self.unlabeled, stage)

    def _hide_labels(self, records: list[Record]) -> tuple[list[Record], list[Record]]:
        """Of the labeled half's training images those that keep their labels; the others are its split ``pool``."""
        seen, hidden = hide_labels(
            records,
            self.labeled.class_names or [],
            self.labeled.run_seed(),
            per_class=self._hiding["labels_per_class"],
            images=self._hiding["labeled_images"],
        )
        cast(UnlabeledImages, self.unlabeled).hidden = hidden
        return seen, hidden

    def _setup_unlabeled(self, unlabeled: DataModule, stage: str | None) -> None:
        if unlabeled.seed is None:
            unlabeled.seed = key_seed(self.labeled.run_seed(), "unlabeled")
        if unlabeled.class_names is None:
            # In the order of the labeled classes, whatever the order in the file.
            unlabeled.class_names = copy.copy(self.class_names)
        unlabeled.batch_size = self.ratio * self.labeled.train_batch
        unlabeled.setup(stage)
        mine, theirs = self.labeled.spec(), unlabeled.spec()
        for key in ("num_classes", "in_chans", "image_size"):
            if mine.get(key) != theirs.get(key):
                raise UserError(
                    f"data.unlabeled has {key} {theirs.get(key)}, but data.labeled has {mine.get(key)}: give both the"
                    " same."
                )
        if unlabeled.class_names != self.class_names:
            raise UserError(
                f"data.unlabeled has the classes {unlabeled.class_names}, but data.labeled has"
                f" {self.class_names}: label the images again with a teacher of these classes."
            )

    def _parts(self) -> dict[str, DataModule]:
        parts = {"labeled": self.labeled, "unlabeled": self.unlabeled}
        return {name: part for name, part in parts.items() if part is not None}

    def list_records(self) -> Listing:
        """The labeled images."""
        return self.labeled.list_records()

    def make_reader(self) -> Callable[[Record], Record]:
        """The labeled datamodule's."""
        return self.labeled.make_reader()

    def make_transform(self, *, train: bool) -> Transform:
        """The labeled datamodule's."""
        return self.labeled.make_transform(train=train)

    def canvas(self) -> tuple[int, int]:
        """Height and width of a batch."""
        return self.labeled.canvas()

    @property
    def train_batch(self) -> int:
        """Labeled images a device and step."""
        return self.labeled.train_batch

    def spec(self) -> dict[str, Any]:
        """What the model takes from the data, and whether unlabeled images come as two views."""
        return {**self.labeled.spec(), "two_views": isinstance(self.unlabeled, UnlabeledImages)}

    def resolved(self) -> dict[str, Any]:
        """Nothing: the arguments that turn out are those of the two datamodules."""
        return {}

    def val_dataloader(self) -> Any:
        """The labeled datamodule's."""
        return self.labeled.val_dataloader()

    def test_dataloader(self) -> Any:
        """The labeled datamodule's."""
        return self.labeled.test_dataloader()

    def train_features_dataloader(self) -> Any:
        """The labeled training images."""
        return self.labeled.train_features_dataloader()

    def predict_dataloader(self) -> Any:
        """The labeled datamodule's."""
        return self.labeled.predict_dataloader()

    # Training.

    def train_dataloader(self) -> Any:
        """Pairs of batches of this rank, resumable at any batch."""
        passes = {name: len(part._train_sampler()) for name, part in self._parts().items()}
        steps = self.steps_per_epoch or list(passes.values())[-1]
        for name, part in self._parts().items():
            part.passes_per_epoch = steps / passes[name]
        loader = PairedLoader({name: part.train_dataloader() for name, part in self._parts().items()}, steps)
        if self._restored is not None:
            loader.load_state_dict(self._restored)
        self._train_loader = loader  # type: ignore[assignment]
        return loader

    def state_dict(self) -> dict[str, Any]:
        """How far the pairs have come, and both datamodules' own states."""
        loader = self._train_loader
        return {
            "train": None if loader is None else loader.state_dict(),
            **{name: part.state_dict() for name, part in self._parts().items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them back; the position of both streams follows from the number of pairs."""
        self._restored = state_dict.get("train")
        for name, part in self._parts().items():
            part.load_state_dict({**state_dict.get(name, {}), "train": None})

    # Lightning calls these hooks of the outer datamodule only.

    def prepare_data(self) -> None:
        """Both datamodules'."""
        for part in self._parts().values():
            part.prepare_data()

    def teardown(self, stage: str) -> None:
        """Both datamodules'."""
        for part in self._parts().values():
            part.teardown(stage)

    def on_exception(self, exception: BaseException) -> None:
        """Both datamodules'."""
        for part in self._parts().values():
            part.on_exception(exception)


def _check_halves(unlabeled: DataModule | None, bare: dict[str, Any], strong: Augment | None) -> None:
    """Refuse what does not go together; ``bare`` are the arguments that say which images have no labels."""
    given = {key: value for key, value in bare.items() if value is not None}
    if unlabeled is not None and given:
        raise UserError(
            f"data.unlabeled and data.{next(iter(given))} are both set: unlabeled images come with a teacher's labels"
            " (data.unlabeled) or without. Leave one of them out."
        )
    if len(given.keys() - {"pool"}) > 1:
        raise UserError("data.labels_per_class and data.labeled_images both say which labels are seen: leave one out.")
    for key in given.keys() - {"pool"}:
        if given[key] < 1:
            raise UserError(f"data.{key} is {given[key]}; it must be at least 1.")
    if strong is not None and not given:
        raise UserError(
            "data.strong is set, but only images without labels have a strong view: give data.pool, or leave it out."
        )


class PairedLoader(Resumable):
    """One batch of each stream a step; an epoch has a fixed number of steps, and each stream goes on through it.

    Step ``i`` of epoch ``e`` takes batch ``e * steps + i`` of every stream, counted through its passes. So the position
    of all streams is one number, and a resumed run continues each where it was.

    Args:
        streams: Name -> a datamodule's training loader.
        steps: Steps an epoch.
    """

    def __init__(self, streams: dict[str, TrainLoader | TensorLoader], steps: int) -> None:
        self.streams, self.steps, self.epoch = streams, steps, 0
        self._open: dict[str, Iterator[Any]] = {}
        self._position = -1  # batches taken from the open streams

    @property
    def sampler(self) -> PairedLoader:
        """Itself: Lightning looks for ``set_epoch`` on a loader's sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this before each."""
        self.epoch = epoch

    def _epoch(self) -> int:
        return self.epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[dict[str, Any]]:
        done = self._first_batch()
        start = self.epoch * self.steps + done
        if start != self._position:  # else the workers have the next batches ready
            self._open = {name: _from(stream, start) for name, stream in self.streams.items()}
            self._position = start
        for _ in range(done, self.steps):
            pair = {name: next(stream) for name, stream in self._open.items()}
            self._position += 1
            self._done += 1
            yield pair


def _from(loader: TrainLoader | TensorLoader, batch: int) -> Iterator[Any]:
    """Batches number ``batch``, ``batch + 1``, ... of a stream without an end: pass after pass."""
    pass_, skip = divmod(batch, len(loader))
    while True:
        loader.batch_sampler.set_epoch(pass_)  # type: ignore[union-attr]
        loader.load_state_dict({"epoch": pass_, "batches": skip})
        yield from loader
        pass_, skip = pass_ + 1, 0
