"""An exported file is the same model, and what is not is found, with the stage where it begins to differ."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from datamodules.common.errors import UserError
from pipelines import cli
from pipelines.__main__ import main
from pipelines.command import Command
from pipelines.commands.verify import verify
from pipelines.export.verify import check_tolerance
from pipelines.exported import runner
from pipelines.exported.metadata import read_metadata

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

CONFIG = """
model:
  class_path: Classification
  init_args: {backbone: test_resnet}
data:
  class_path: ClassificationData
  init_args: {source: pictures, image_size: 48, batch_size: 4, num_workers: 0}
trainer:
  accelerator: cpu
  max_epochs: 2
  num_sanity_val_steps: 0
  enable_progress_bar: false
  enable_model_summary: false
  wandb: {mode: "off"}
"""
COLORS = {"red": (200, 40, 40), "blue": (40, 40, 200), "green": (40, 200, 40)}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of colored pictures, and its export."""
    root = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        write_colored(Path("pictures"))
        Path("config.yaml").write_text(CONFIG, encoding="utf-8")
        assert main(["fit", "--config", "config.yaml", "--name", "run"]) == 0
        assert main(["export", "--ckpt_path", "runs/run/0/checkpoints/best.ckpt", "--output", "out/model.onnx"]) == 0
    return root


def write_colored(root: Path) -> None:
    """Pictures of three colors on noise, which a net tells apart at once, of sizes that are resized."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 6)):
        for name, color in COLORS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 90, (70 + i, 96, 3)) + np.array(color) // 2
                cv2.imwrite(str(folder / f"{i}.png"), pixels.astype(np.uint8)[..., ::-1])


@pytest.fixture
def copy(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to break; the working directory."""
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """What `verify` says of a broken file, which has another name afterwards."""
    capsys.readouterr()
    words = ["--ckpt_path", "runs/run/0/checkpoints/best.ckpt", "--model", "out/model.onnx", *more]
    assert main(["verify", *words]) == 1
    assert not Path("out/model.onnx").exists()
    assert Path("out/model.refused.onnx").exists()
    assert json.loads(Path("out/model.json").read_text())["verified"]["passed"] is False
    return capsys.readouterr().err


def edit_metadata(change) -> None:
    path = Path("out/model.json")
    about = json.loads(path.read_text())
    change(about)
    path.write_text(json.dumps(about))


def edit_weights(pick, change) -> None:
    """Change one initializer of the graph: the first that `pick` takes, by node and array."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load("out/model.onnx")
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        for name in node.input:
            if name in weights and pick(node, numpy_helper.to_array(weights[name])):
                value = change(numpy_helper.to_array(weights[name]).copy())
                weights[name].CopyFrom(numpy_helper.from_array(value, name))
                onnx.save(model, "out/model.onnx")
                return
    raise AssertionError("no such weight")


def test_the_export_is_the_same_model(exported):
    about = read_metadata(exported / "out/model.onnx")
    assert about["verified"]["passed"]
    assert about["verified"]["difference"] == 0
    assert set(about["verified"]["stages"]) == {
        "decoded picture",
        "resized picture",
        "network input",
        "raw outputs",
        "outputs",
        "class names",
    }
    assert about["class_names"] == ["blue", "green", "red"]
    assert about["input"]["normalization"] == "inside the graph"


@pytest.mark.slow
def test_test_and_predict_take_the_file(copy):
    assert main(["validate", "--ckpt_path", "runs/run/0/checkpoints/best.ckpt"]) == 0
    assert main(["validate", "--ckpt_path", "out/model.onnx"]) == 0
    ours, theirs = (json.loads(Path(p, "validate.json").read_text()) for p in ("runs/run/0", "out/model"))
    numbers = {key: value for key, value in ours.items() if isinstance(value, float)}
    assert numbers == pytest.approx({key: theirs[key] for key in numbers}, abs=1e-5)
    assert main(["predict", "--ckpt_path", "out/model.onnx", "--source", "pictures/val/red", "--output", "found"]) == 0
    assert len(Path("found/predictions.csv").read_text().splitlines()) == 7


def test_the_runner_needs_nothing_of_ours(copy):
    code = "import sys; sys.modules['torch'] = sys.modules['pipelines'] = None; sys.argv[1:] = ['{}']; import runpy; "
    code += "runpy.run_path('model_runner.py', run_name='__main__')"
    picture = Path("pictures/val/red/0.png").resolve()
    done = subprocess.run(
        [sys.executable, "-c", code.format(picture)], cwd="out", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    model = runner.Model("out/model.json")
    assert found["probabilities"] == pytest.approx(model(picture)["probabilities"])
    assert found["label"] in COLORS


@pytest.mark.slow
def test_wrong_resize(copy, capsys):
    edit_metadata(lambda about: about["resize"].update(interpolation="nearest"))
    assert "'resized picture'" in refusal(capsys)


@pytest.mark.slow
def test_bgr(copy, capsys, monkeypatch):
    read = runner.Model.read
    monkeypatch.setattr(runner.Model, "read", lambda self, path: np.ascontiguousarray(read(self, path)[..., ::-1]))
    assert "'decoded picture'" in refusal(capsys)


@pytest.mark.slow
def test_wrong_normalization(copy, capsys):
    edit_weights(lambda node, value: node.op_type == "Mul" and value.shape == (1, 3, 1, 1), lambda value: value * 1.1)
    assert "'network input'" in refusal(capsys)


@pytest.mark.slow
def test_one_changed_weight(copy, capsys):
    def change(value):
        value.flat[0] += 3.0
        return value

    edit_weights(lambda node, _: node.op_type == "Conv", change)
    said = refusal(capsys)
    assert "'raw outputs'" in said
    assert ".png" in said


@pytest.mark.slow
def test_shuffled_class_names(copy, capsys):
    edit_metadata(lambda about: about["class_names"].reverse())
    said = refusal(capsys)
    assert "'class names'" in said
    assert "accuracy is" in said


@pytest.mark.slow
def test_a_refused_file_is_not_used(copy, capsys):
    edit_metadata(lambda about: about["class_names"].reverse())
    refusal(capsys)
    assert main(["test", "--ckpt_path", "out/model.refused.onnx"]) == 1
    assert "was refused by `verify`" in capsys.readouterr().err


def test_a_tolerance_below_zero_is_refused():
    with pytest.raises(UserError, match="--tolerance is -1; by how much the metric may fall is 0 or more"):
        check_tolerance(-1)
    check_tolerance(0)
    check_tolerance(None)


@pytest.mark.slow
def test_a_higher_tolerance_does_not_hide_another_model(copy):
    edit_metadata(lambda about: about["class_names"].reverse())
    words = ["--ckpt_path", "runs/run/0/checkpoints/best.ckpt", "--exported", "out/model.onnx", "--tolerance", "1"]
    with pytest.raises(UserError, match="class names"):
        cli.run(Command("verify", verify), words)


@pytest.mark.slow
def test_several_checkpoints_leave_as_one_file(copy):
    """Its probabilities are the mean of the members', as the runner gives them one by one."""
    pair = [f"runs/run/0/checkpoints/{name}.ckpt" for name in ("best", "other")]
    saved = torch.load(pair[0], weights_only=True)
    saved["state_dict"] = {
        key: value * 1.2 if value.is_floating_point() and value.dim() == 4 and key.startswith("network") else value
        for key, value in saved["state_dict"].items()
    }
    torch.save(saved, pair[1])
    both = f"[{','.join(pair)}]"
    assert main(["export", "--ckpt_path", pair[1], "--output", "out/other.onnx"]) == 0
    assert main(["export", "--ckpt_path", both, "--output", "out/both.onnx", "--dynamic", "batch"]) == 0
    about = read_metadata("out/both.onnx")
    assert [one["file"] for one in about["checkpoints"]] == ["best.ckpt", "other.ckpt"]
    assert {"raw outputs", "outputs"} <= about["verified"]["stages"].keys()
    picture = "pictures/val/red/0.png"
    first, second, mean = (runner.Model(f"out/{n}.json")(picture)["probabilities"] for n in ("model", "other", "both"))
    assert abs(first["red"] - second["red"]) > 1e-3
    assert mean == pytest.approx({name: (first[name] + second[name]) / 2 for name in first}, abs=1e-6)
    assert main(["verify", "--ckpt_path", pair[0], "--model", "out/both.onnx"]) == 1
    Path("out/both.refused.onnx").rename("out/both.onnx")
    about = json.loads(Path("out/both.json").read_text()) | {"file": "both.onnx"}
    Path("out/both.json").write_text(json.dumps(about))
    assert main(["verify", "--ckpt_path", both, "--model", "out/both.onnx"]) == 0


@pytest.mark.slow
def test_several_checkpoints_need_a_name(copy, capsys):
    shutil.copy("runs/run/0/checkpoints/best.ckpt", "second.ckpt")
    assert main(["export", "--ckpt_path", "[runs/run/0/checkpoints/best.ckpt,second.ckpt]"]) == 1
    assert "Several checkpoints have no run directory of their own: give --output FILE.onnx." in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dynamic", "channels"], "--dynamic is 'channels'; it takes batch, size, or batch,size."),
        (["--nms", "outside"], "--nms is 'outside', but a Classification finds no boxes: leave it out."),
        (["--format", "torch_export", "--precision", "int8"], "--precision is 'int8', which --format torch_export"),
        (["--output", "x.pt"], "--output is x.pt; the name of a file of --format onnx ends in .onnx."),
    ],
)
def test_flags_that_do_not_go_together(copy, capsys, words, message):
    assert main(["export", "--ckpt_path", "runs/run/0/checkpoints/best.ckpt", *words]) == 2
    assert message in capsys.readouterr().err
    assert torch.is_grad_enabled()
