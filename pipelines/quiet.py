"""Leaves out what libraries say that does not apply here."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

#: Advice of libraries that does not apply here: what it warns of is meant so, or done in another way.
NOISE = (
    ".*overridden `(on_after_batch_transfer|transfer_batch_to_device)`.*",  # device augmentation is the model's
    ".*smaller than the logging interval.*",  # the sums are flushed at each epoch's end too
    ".*does not have many workers.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*callbacks used to create the checkpoint need to be provided.*",
    ".*WeightAveraging callback.*",
    ".*LeafSpec.*",  # torch's deprecation, in Lightning's code
    ".*module\\(s\\) in eval mode at the start of training.*",  # frozen parts stay so
    ".*Total length of .* across ranks is zero.*",
    ".*custom batch sampler .* for prediction.*",  # it gives every image once
    ".*was called before the ``update`` method.*",  # a rank may have no images; the states of all are summed
    ".*on epoch level in distributed setting.*",  # metrics are the same on all ranks already: their states were summed
)


#: Lines of Lightning that say nothing here, or what a run's first and last block say.
UNWANTED = "|".join(
    (
        "💡|`weights_only` was not",
        r"(\[rank: \d+\] )?Seed set to",
        "[GT]PU available",
        "Trainer already configured",
        r"Loading `\w+` to estimate",
        r"`Trainer\.\w+` stopped",
        r"\s*Detected KeyboardInterrupt",
    )
)


def quieten() -> None:
    """Leave out what libraries say that does not apply here."""
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)
    for handler in _handlers():
        handler.addFilter(_worth_saying)


@contextmanager
def quieted_handlers() -> Iterator[None]:
    """Inside, logging may be made quiet; behind it is as it was."""
    before = [(handler, list(handler.filters)) for handler in _handlers()]
    try:
        yield
    finally:
        for handler, filters in before:
            handler.filters[:] = filters


def _handlers() -> list[logging.Handler]:
    """Those of Lightning's loggers."""
    return [
        handler for name in ("pytorch_lightning", "lightning_fabric") for handler in logging.getLogger(name).handlers
    ]


def _worth_saying(record: logging.LogRecord) -> bool:
    return not re.match(UNWANTED, record.getMessage())
