"""The loop itself: for each seed teacher, labels, selection, student, and so on; then the controls and the report."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.base import DataModule
from datamodules.common.files import read_json, write_json
from datamodules.samplers import choose_batch
from pipelines.noisy_student import data_stage, stages
from pipelines.noisy_student.configs import student_config, teacher_config
from pipelines.noisy_student.kinds.base import Kind, SelectionJob
from pipelines.noisy_student.kinds.of_data import kind_of
from pipelines.noisy_student.report import write_report
from pipelines.noisy_student.results import REPORT, SeedRun, TrainedModel
from pipelines.noisy_student.settings import Settings, StudentSettings, plain, trainer_of
from pipelines.run.checkpoints import read_checkpoint_config
from pipelines.run.masking import masked
from pipelines.stages.fits import num_devices, outcome
from pipelines.stages.manifest import Output, Outputs, digest_of, digest_of_values, only_one, run_stage, say


def run(settings: Settings) -> Path:
    """Run the loop, or go on with it.

    Args:
        settings: What the config says.

    Returns:
        The run directory, with ``report.json`` and ``report.html``.
    """
    root = (Path(settings.runs_dir) / str(settings.name)).resolve()
    with only_one(root):
        write_json(root / "settings.json", masked(plain(settings)))
        data = data_stage.read_data(settings)
        runs = [run_seed(root / f"seed{seed}", settings, data, seed) for seed in settings.seeds]
        write_report(root, settings, data, runs)
    say(f"the report is in {root / 'report.html'}")
    return root


def run_seed(root: Path, settings: Settings, data: DataModule, seed: int) -> SeedRun:
    """All stages of one seed."""
    loop = start(root, settings, data, seed)
    models = [loop.teacher()]
    selections: list[Outputs] = []
    for number, student in enumerate(settings.students, 1):
        teacher = models[-1]
        labels = loop.label(f"labels{number}", teacher, soft=student.labels == "soft" and loop.kind.SOFT_FILES)
        selections.append(loop.select(f"selection{number}", teacher, labels))
        models.append(loop.student(f"student{number}", number, selections[-1]))
        gain = models[-1].score - teacher.score
        if number < len(settings.students) and gain <= settings.min_gain:
            say(f"{root.name}: generation {number} gained {gain:+.4f} on validation: it is the last")
            break
    best = best_generation([model.score for model in models])
    last = len(selections)
    controls = []
    if settings.controls:
        controls.append(loop.student("labels_only", last, selections[-1], pseudo_labels=False))
        if not settings.distil:
            controls.append(loop.student("no_noise", last, selections[-1], noise=False))
    relabeled = loop.label("relabelled", models[last])  # the stage's name in finished runs
    return SeedRun(seed, loop.found, [*models, *controls], selections, best, relabeled)


@dataclass(frozen=True)
class SeedLoop:
    """The stages of one seed; each is taken from its directory where it was done before.

    Attributes:
        root: Folder of the stages.
        settings: The loop's.
        data: The labeled data.
        seed: The seed.
        found: Outputs of the data stage, with the digests of what is in the images.
        truth: What ``truth.json`` holds.
    """

    root: Path
    settings: Settings
    data: DataModule
    seed: int
    found: Outputs
    truth: dict[str, Any]

    @property
    def kind(self) -> Kind:
        """Of the annotations."""
        return kind_of(self.data)

    def stage(self, name: str, key: dict[str, Any], inputs: Outputs, work: Callable[[Path], dict[str, str]]) -> Outputs:
        """Do a stage, see ``manifest.run_stage``."""
        return run_stage(self.root / name, key, inputs, work)

    def teacher(self) -> TrainedModel:
        """The first teacher, trained or given."""
        if given := self.settings.teacher.checkpoints:
            config: dict[str, Any] = dict(read_checkpoint_config(given[0]))
            inputs = {"checkpoint": Output(given[0], digest_of(given[0])), "split": self.found["split"]}
            inputs |= {f"checkpoint{i}": Output(file, digest_of(file)) for i, file in enumerate(given) if i}

            def take(directory: Path) -> dict[str, str]:
                return stages.take_teacher(directory, self.settings, self.data, given)

            return self._trained("teacher", config, self.stage("teacher", task_and_data(config), inputs, take))
        command = teacher_config(self.settings, self.found["split"].path, stage_seed(self.seed, 0))
        return self._fit("teacher", "teacher", command, {"split": self.found["split"]})

    def student(
        self,
        name: str,
        generation: int,
        selection: Outputs,
        *,
        pseudo_labels: bool = True,
        noise: bool = True,
    ) -> TrainedModel:
        """A student, or without ``pseudo_labels`` or without ``noise`` one of its controls, of as many steps."""
        student = self.settings.students[generation - 1]
        command = student_config(
            self.settings,
            self.kind,
            student,
            self.found["split"].path,
            selection["selected"].path if pseudo_labels else None,
            self.truth["class_names"],
            student.steps_per_epoch
            or steps_per_epoch(self.settings, self.data, student, selection, self.found["split"]),
            stage_seed(self.seed, generation),
            noise=noise,
        )
        inputs = {"split": self.found["split"]}
        if pseudo_labels:
            inputs["selected"] = selection["selected"]
        return self._fit(name, "student", command, inputs)

    def label(self, name: str, model: TrainedModel, *, soft: bool = False) -> Outputs:
        """A model's labels of the pool."""
        role = "teacher" if model.name == "teacher" else "student"
        known = model.outputs
        labeling = {"teacher": known[role]} | {n: known[n] for n in known if n.startswith("teacher") and n != role}
        pool = self.found["pool"]
        key = task_and_data(model.config) | ({"soft": True} if soft else {})

        def label(directory: Path) -> dict[str, str]:
            teachers = [output.path for output in labeling.values()]
            return stages.label(directory, self.settings, self.data, teachers, pool.path, soft=soft)

        return self.stage(name, key, {**labeling, "pool": pool}, label)

    def select(self, name: str, teacher: TrainedModel, labels: Outputs) -> Outputs:
        """What is taught of a teacher's labels."""
        validation = teacher.outputs["val"]
        inputs = {"labels": labels["labels"], "validation": validation, "truth": self.found["truth"]}

        def select(directory: Path) -> dict[str, str]:
            return stages.select(
                SelectionJob(
                    directory,
                    self.data,
                    self.settings.selection,
                    labels["labels"].path,
                    validation.path,
                    self.truth,
                    self.seed,
                )
            )

        return self.stage(name, {**_selection(self.settings), "seed": self.seed}, inputs, select)

    def _fit(self, name: str, role: str, command: dict[str, Any], inputs: Outputs) -> TrainedModel:
        key = outcome(command) | {"checkpoint": self.settings.checkpoint}

        def train(directory: Path) -> dict[str, str]:
            return stages.train(directory, self.settings, self.data, command, role)

        return self._trained(name, key, self.stage(name, key, inputs, train))

    def _trained(self, name: str, config: dict[str, Any], outputs: Outputs) -> TrainedModel:
        score = self.kind.score(outputs["val"].path, self.truth["val"])
        return TrainedModel(name, outputs, config, score)


def start(root: Path, settings: Settings, data: DataModule, seed: int) -> SeedLoop:
    """The data stage."""
    key = data_stage.data_settings(settings, data, seed)
    memory = root.parent / "pixels.json"  # one file for all seeds: no image is decoded twice

    def make(directory: Path) -> dict[str, str]:
        return data_stage.make_data(directory, settings, data, seed, memory)

    found = with_content(run_stage(root / "data", key, {}, make), key)
    return SeedLoop(root, settings, data, seed, found, data_stage.read_truth(found["truth"].path))


def with_content(found: Outputs, made: dict[str, Any]) -> Outputs:
    """The data stage's files, their digests with what is in the images and annotations that they name."""
    content = {"pool": [made["images"], made["pool"]]}
    return {
        name: Output(output.path, digest_of_values([output.digest, *content.get(name, [made["images"]])]))
        for name, output in found.items()
    }


def best_generation(scores: Sequence[float]) -> int:
    """The generation with the best score on validation, 0 for the teacher; of equal ones the earliest."""
    return max(range(len(scores)), key=lambda generation: scores[generation])


def stage_seed(seed: int, generation: int) -> int:
    """The seed of a training: another one for each generation, the same for a student and its controls."""
    return zlib.crc32(f"{seed}/{generation}".encode()) & 0x7FFFFFFF


def task_and_data(config: dict[str, Any]) -> dict[str, Any]:
    """What a model's labels depend on beside its weights, as a key of a stage."""
    return {"teacher": {key: config[key] for key in ("model", "data")}}


def steps_per_epoch(
    settings: Settings, data: DataModule, student: StudentSettings, selected: Outputs, split: Output
) -> int:
    """Batches of one pass over the selected images, over all devices, beside the labeled ones of ``split.json``."""
    world = num_devices(trainer_of(settings, student))
    assert world is not None  # the settings were checked
    batch_size = student.data.get("batch_size") or data.batch_size
    if batch_size is None:
        batch_size = choose_batch(data.most_images, len(read_json(split.path)["train"]) // world)
    return max(1, int(read_json(selected[REPORT].path)["images"]) // (int(batch_size) * student.ratio * world))


def _selection(settings: Settings) -> dict[str, Any]:
    """What a selection depends on; keys that came later are left out where they are not set, for older runs."""
    values = plain(settings)["selection"]
    return {"selection": {k: v for k, v in values.items() if k != "ignore" or v is not None}}
