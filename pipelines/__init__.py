"""Train, test and use vision models; see docs/python.md.

What is public is named in ``__all__``; everything else may change. Importing this imports nothing heavy: each name
brings what it needs when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.common.errors import UserError as UserError
    from pipelines.api.commands import Run as Run
    from pipelines.api.commands import evaluate as evaluate
    from pipelines.api.commands import train as train
    from pipelines.api.model import Model as Model
    from pipelines.api.model import load as load
    from pipelines.api.results import ClassificationResult as ClassificationResult
    from pipelines.api.results import DetectionResult as DetectionResult
    from pipelines.api.results import SegmentationResult as SegmentationResult

__version__ = "0.1.0"

#: Public names, and the modules that they come from.
_MODULES = {
    "ClassificationResult": "pipelines.api.results",
    "DetectionResult": "pipelines.api.results",
    "Model": "pipelines.api.model",
    "Run": "pipelines.api.commands",
    "SegmentationResult": "pipelines.api.results",
    "UserError": "datamodules.common.errors",
    "evaluate": "pipelines.api.commands",
    "load": "pipelines.api.model",
    "train": "pipelines.api.commands",
}
__all__ = [
    "ClassificationResult",
    "DetectionResult",
    "Model",
    "Run",
    "SegmentationResult",
    "UserError",
    "__version__",
    "evaluate",
    "load",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import on first use: torch alone takes seconds."""
    if name not in _MODULES:
        raise AttributeError(f"module 'pipelines' has no attribute '{name}'")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """Public names, and what is imported by now."""
    return sorted({*__all__, *globals()})
