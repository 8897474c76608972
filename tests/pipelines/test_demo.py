"""The page of ``demo``, as gradio's client and a headless Chromium see it."""

from __future__ import annotations

import html
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import pipelines
from datamodules.readers.digits import digit_scenes
from pipelines.__main__ import main
from pipelines.commands import demo

SMALL = {"num_scenes": {"train": 16, "val": 8, "test": 8}, "num_workers": 0}
STEPS = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1, "wandb": {"mode": "off"}}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each task, after two steps."""
    pytest.importorskip("gradio", reason="the extra demo is not installed")
    runs = str(tmp_path_factory.mktemp("demo") / "runs")
    configs = {"quickstart": {"num_workers": 0}, "detection/digits": SMALL, "segmentation/digits": SMALL}
    found = {}
    for config, data in configs.items():
        run = pipelines.train(config, runs_dir=runs, data=data, trainer=STEPS)
        found[config.partition("/")[0]] = run.checkpoint
    return found


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    scenes = digit_scenes(2, 64, seed=0, split="test")
    (tmp_path / "new").mkdir()
    files = [tmp_path / f"new/scene{number}.png" for number in range(2)]
    for number, file in enumerate(files):
        Image.fromarray(scenes[number]["image"]).save(file)
    return [str(file) for file in files]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.slow
def test_the_page_shows_what_each_checkpoint_says(checkpoints: dict[str, Path], pictures: list[str]):
    from gradio_client import Client, handle_file

    page = demo.make_page(list(checkpoints.values()))
    address = demo.serve(page, "127.0.0.1", free_port())
    try:
        client = Client(address, verbose=False)
        dropped = [handle_file(file) for file in pictures]
        shown = client.predict(dropped, 0.0, api_name="/show")
        models = [pipelines.load(file) for file in checkpoints.values()]
        assert captions(shown) == [[demo.describe(result) for result in model.predict(pictures)] for model in models]
        for gallery in shown:
            for entry in gallery:
                with Image.open(entry["image"]) as image:
                    assert image.size == (64, 64)

        unsure = client.predict(dropped, 0.01, api_name="/show")
        detector = list(checkpoints).index("detection")
        expected = models[detector].predict(pictures, threshold=0.01)
        assert captions(unsure)[detector] == [result.summary() for result in expected]
        assert captions(unsure)[1 - detector] == captions(shown)[1 - detector]
        assert [demo.shown(models[detector], pictures, 1.0)[i][1] for i in range(2)] == ["no object"] * 2

        Path(pictures[0]).write_bytes(b"no picture")
        with pytest.raises(Exception, match=r"scene0\.png"):
            client.predict([handle_file(file) for file in pictures], 0.0, api_name="/show")
    finally:
        page.close()


def captions(galleries: Any) -> list[list[str]]:
    return [[entry["caption"] for entry in gallery] for gallery in galleries]


@pytest.mark.slow
def test_a_browser_shows_the_page(checkpoints: dict[str, Path], pictures: list[str], tmp_path: Path):
    from benchmarks.demo import BROWSER

    if shutil.which(BROWSER[0]) is None:
        pytest.skip("chromium is not installed")
    page = demo.make_page(list(checkpoints.values()), source="new")
    address = demo.serve(page, "127.0.0.1", free_port())
    try:
        command = [*BROWSER, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", address]
        seen = html.unescape(subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout)
    finally:
        page.close()
    assert "Drop File Here" in seen
    for file in checkpoints.values():
        assert "/".join(file.parts[-4:]) in seen
        for result in pipelines.load(file).predict(pictures):
            assert demo.describe(result) in seen
    assert seen.count("<img") >= 6


def test_mistakes_are_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("gradio", reason="the extra demo is not installed")
    assert main(["demo"]) == 2
    assert main(["demo", "--ckpt_path", "no.ckpt"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert "--ckpt_path" in lines[-2]
    assert lines[-1].startswith("error: no.ckpt does not exist")
    assert main(["demo", "--help"]) == 0


def test_without_gradio_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo", "--ckpt_path", "some.ckpt"]) == 1
    assert 'pip install "vision-pipelines[demo]"' in capsys.readouterr().err
