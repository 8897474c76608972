"""What the stages of one seed left, for the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.stages.manifest import Outputs

#: Name of a selection's report among the outputs of its stage; manifests of finished runs have it.
REPORT = "account"


@dataclass(frozen=True)
class TrainedModel:
    """A trained model of the report.

    Attributes:
        name: ``teacher``, ``student1``, ..., ``labels_only``, ``no_noise``.
        outputs: Of its stage.
        config: Its task and data, which its labels depend on beside its weights.
        score: On validation: accuracy, mAP or mIoU.
    """

    name: str
    outputs: Outputs
    config: dict[str, Any]
    score: float


@dataclass(frozen=True)
class SeedRun:
    """What one seed left.

    Attributes:
        seed: The seed.
        data: Outputs of the data stage.
        models: The teacher, the generations, the controls.
        selections: One a generation.
        best: The generation that is best on validation, from 1; 0 where none beats the teacher.
        relabeled: The last student's labels of the pool.
    """

    seed: int
    data: Outputs
    models: list[TrainedModel]
    selections: list[Outputs]
    best: int
    relabeled: Outputs

    @property
    def last(self) -> TrainedModel:
        """The student of the last generation."""
        return self.models[len(self.selections)]

    def model(self, name: str) -> TrainedModel:
        """The model of a name."""
        return next(model for model in self.models if model.name == name)
