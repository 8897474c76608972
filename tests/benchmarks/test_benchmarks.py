"""The benchmarks run, refuse wrong arguments and write JSON; their figures are checked where they are robust."""

import functools
import json
import math
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import detection, gpu, input, large, loop, segmentation, startup, tiny
from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.common import Marks, Row, alternate, per_round, row, table
from benchmarks.training import Beside, MarkedData, ours, write_arrays
from datamodules.base import DataModule
from datamodules.transforms.augment import Augment
from tasks import Classification, Optim


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "benchmark"),
        (["lop"], "invalid choice"),
        (["startup", "--repeats", "0"], "--repeats is 0; it must be at least 1"),
        (["startup", "--repeats", "some"], "invalid int value"),
        (["startup", "--json", "no/such/folder/file.json"], "does not exist"),
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_help_names_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in BENCHMARKS)


def test_variants_take_turns() -> None:
    order: list[str] = []
    variants = {name: (lambda name=name: order.append(name) or float(len(order))) for name in "abc"}
    times = alternate(variants, 2)
    assert "".join(order) == "abcbca"
    assert times == {"a": [1.0, 6.0], "b": [2.0, 4.0], "c": [3.0, 5.0]}
    assert per_round(lambda a, b: a - b, times["a"], times["b"]) == [-1.0, 2.0]


def test_goals_and_medians() -> None:
    assert row("x", [5.0, 1.0, 2.0], "s", "<= 2").met
    assert not row("x", [5.0, 1.0, 2.1], "s", "<= 2").met
    assert row("x", [0.97], "x", ">= 0.97").met
    assert row("x", [0.97], "x").met is None
    assert "MISSED" in table([Row("a", 2.0, "s", "<= 1"), Row("b", 1.0, "s")])


def test_marks_time_the_steps_between_two_batches() -> None:
    now = iter([10.0, 16.0])
    marks = Marks(iter(range(100)), 2, 3, clock=lambda: next(now))
    assert list(marks) == [0, 1, 2, 3, 4, 5]
    assert len(marks) == 6
    assert marks.seconds_per_step() == 2.0


def test_steps_side_by_side_are_timed_apart() -> None:
    """A training whose step takes 5 and a bare loop whose step takes 2; the first two steps do not count."""
    now = 0.0

    def take(seconds: float) -> None:
        nonlocal now
        now += seconds

    timed = Beside(Marks(iter(range(100)), 2, 3, clock=lambda: now), lambda batch: take(2.0 if batch >= 2 else 50.0))
    for _ in timed:
        take(5.0)
    assert timed.pairs == [(5.0, 2.0)] * 4
    assert (timed.seconds_per_step(), timed.difference(), timed.speed()) == (5.0, 3.0, 0.4)


def test_startup_writes_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    measure = startup.run
    monkeypatch.setattr(startup, "run", lambda repeats: measure(repeats, fit_help=False))
    assert main(["startup", "--repeats", "2", "--json", "startup.json"]) == 0
    with open("startup.json") as file:
        content = json.load(file)
    assert content["settings"] == {"repeats": 2}
    assert content["machine"]["cores"] >= 1
    assert {"torch", "timm", "pytorch-lightning"} <= set(content["versions"])
    results = {r["name"]: r for r in content["results"]}
    for command in ("--help", "--version", "list"):
        result = results[f"{command}, cpu"]
        assert len(result["runs"]) == 2
        assert result["goal"] == "<= 0.3"
        assert result["met"] is (result["value"] <= 0.3)
    assert "goal <= 0.3: " in capsys.readouterr().out


def test_startup_shows_why_a_command_failed() -> None:
    with pytest.raises(startup.Unavailable, match="no_such_module"):
        startup.time_process(["-m", "no_such_module"])


def test_loop_runs() -> None:
    settings, rows = loop.run(1, warm_up=2, steps=3)
    assert settings["clock"] == "cpu"
    assert {r.name for r in rows} >= {"bare loop", "ours", "usual Lightning script", "ours, over the bare loop"}
    assert all(r.value > 0 for r in rows if "over" not in r.name)


def test_tiny_runs() -> None:
    _, rows = tiny.run(1, images=1500, warm_up=1, steps=3)
    values = {r.name: r.value for r in rows}
    ratio = values["ours"] / values["bare loop over one tensor"]
    assert values["ours, over the bare loop"] == pytest.approx(ratio)
    # The steps are extrapolated to the epoch, then its end is added once.
    assert values["ours"] > values["the end of our epoch, in it"] > 0


def test_reduced_photographs_are_measured() -> None:
    settings, rows = large.run(1, count=32, pixels=(460, 480))
    assert settings["pixels"] == "480 x 460"
    assert [row.name for row in rows if row.goal] == ["ours, second epoch, over timm"]
    assert all(row.value > 0 for row in rows)


def test_input_runs_and_keeps_the_decoder() -> None:
    library = input.images.simplejpeg
    settings, rows = input.run(1, count=32)
    assert input.images.simplejpeg is library
    assert settings["decoder"] == ("cv2" if library is None else "simplejpeg")
    assert 40 < settings["mean kB"] < 100
    goals = {r.name: r for r in rows if r.goal}
    assert len(goals) == len(input.available_decoders()) + 1
    assert all(math.isfinite(r.value) and r.value > 0 for r in goals.values()), goals


def test_gpu_says_what_it_needs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["gpu"]) == 2
    assert capsys.readouterr().err == "gpu: no CUDA device is available; this benchmark needs one.\n"


def test_gpu_code_runs_on_a_cpu() -> None:
    settings, rows = gpu.measure(
        torch.device("cpu"), 1, "test_resnet", size=32, batch_size=2, warm_up=1, steps=2, photos=4
    )
    assert settings["device"] == "cpu"
    assert [r.name for r in rows if r.goal] == ["ours over the bare loop, synthetic", "from JPEG over synthetic"]


def test_detection_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("BACKBONE", "test_resnet"), ("SIZE", 64), ("BATCH", 2), ("WIDTH", 16)):
        monkeypatch.setattr(detection, name, value)
    settings, rows = detection.run(1, warm_up=1, steps=1, images=10)
    names = [row.name for row in rows]
    assert {
        f"{family}, ours over torchvision's in a bare loop" for family in ("fcos", "retinanet", "faster_rcnn")
    } <= set(names)
    assert "evaluation, pycocotools over ours" in names
    assert all(math.isfinite(row.value) and row.value > 0 for row in rows)
    assert settings["backbone"] == "test_resnet"


def test_segmentation_runs() -> None:
    settings, rows = segmentation.run(1, warm_up=2, steps=3, metric_size=64, sides=(600, 1000))
    assert settings["clock"] == "cpu"
    values = {r.name: r.value for r in rows}
    assert all(math.isfinite(value) for value in values.values())
    assert values["bare loop"] > 0
    assert {r.name for r in rows if r.goal} >= {"ours, over the bare loop", "metrics, ours"}
    assert values["metrics, ours"] > 0
    memory = [value for name, value in values.items() if name.endswith("memory beyond image and labels")]
    assert len(memory) in (0, 2)  # only Linux tells the peak
    assert all(value > 0 for value in memory)


def test_segmentation_losses_of_the_bare_loop_are_one() -> None:
    """The bare loop trains on what ours trains on."""
    data = segmentation.make_scenes(4, 32, 4)
    data.setup("fit")
    batch = next(iter(DataModule.train_dataloader(data)))
    logits = torch.randn(4, 11, 32, 32)
    ours, bare = segmentation.our_loss(logits, batch), segmentation.pixel_loss(logits, batch)
    assert float(ours) == pytest.approx(float(bare), rel=1e-6)


def test_segmentation_gpu_code_runs_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    # Traced as on a GPU, but not compiled, which takes a minute.
    monkeypatch.setattr(torch.nn.Module, "compile", functools.partialmethod(torch.nn.Module.compile, backend="eager"))
    rows = segmentation.on_device(torch.device("cpu"), 1, "test_resnet", size=32, batch_size=2, warm_up=2, steps=2)
    assert [r.name for r in rows if r.goal] == ["compiled over eager", "graphs compiled after the warm-up"]
    assert rows[-1].value == 0


@pytest.mark.gpu
def test_no_step_between_log_points_waits_for_the_device() -> None:
    _, rows = gpu.measure(torch.device("cuda"), 1, "resnet18", size=64, batch_size=16, photos=64)
    assert next(r for r in rows if "sync" in r.name).value == 0


class Spy(TorchDispatchMode):
    """Notes operations that on a GPU wait for the device: values fetched from it, and made from the host's numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in ("aten::_local_scalar_dense", "aten::lift_fresh"):
            self.found.append(func._schema.name)
        return func(*args, **(kwargs or {}))


class SpyBetweenLogs(pl.Callback):
    """Spies on each step, keyed by the step's number."""

    def __init__(self) -> None:
        self.found: dict[int, list[str]] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.spy = Spy()
        self.spy.__enter__()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.spy.__exit__(None, None, None)
        self.found[batch_idx] = self.spy.found


def test_no_value_is_fetched_between_log_points(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The part of the GPU's check that a machine without one can do."""
    source = write_arrays(tmp_path, 480, 28)
    data = MarkedData(str(source), in_chans=1, val_fraction=0.0, batch_size=4, augment=Augment("none"), cache="tensor")
    data.mark(0, 109)
    spies = SpyBetweenLogs()
    # AdamW counts its steps in tensors, which on a GPU stay there. Fused as there: NaN is looked for on the device.
    plain = Optim(name="sgd", opt_args={"fused": True})
    import benchmarks.training

    make_task = benchmarks.training.make_task

    def make(data: Any, backbone: str) -> Any:
        task = make_task(data, backbone)
        task.optim = plain
        return task

    logged: list[Any] = []
    log_dict = Classification.log_dict

    def log(self: Classification, values: Any, **options: Any) -> None:
        logged.extend(values.values())
        log_dict(self, values, **options)

    monkeypatch.setattr(benchmarks.training, "make_task", make)
    monkeypatch.setattr(Classification, "log_dict", log)
    ours(data, "lenet5", callbacks=[spies])()
    assert len(spies.found) == 110
    assert [step for step, found in spies.found.items() if found] == [49, 99]
    # Numbers would be put on the device, and fetched from it for the progress bar in every step from then on.
    assert len(logged) == 3  # two log points and the epoch's end
    assert all(isinstance(value, torch.Tensor) and value.device.type == "cpu" for value in logged)
