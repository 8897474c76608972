"""Rows 42, 45 and 46: weights at an address, anchors that stand for gigabytes, arrays that unpack to them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from datamodules.common.errors import UserError
from datamodules.readers.arrays import read_arrays
from pipelines.config.errors import UsageError, load_config
from pipelines.run.loading import read_carried
from tasks.backbones import net_arguments

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [(LAUGHS, "anchors .* stand for more than 1,000,000"), ("a: &a [*a]", "anchor .* holds itself")],
)
def test_anchors(text: str, message: str):
    Path("bomb.yaml").write_text(text)
    with pytest.raises(UsageError, match=rf"bomb\.yaml: .*{message}"):
        load_config("bomb.yaml")
    torch.save({"config": text, "global_step": 0, "state_dict": {}}, "bomb.ckpt")
    with pytest.raises(UserError, match=rf"bomb\.ckpt carries a config that cannot be read: .*{message}"):
        read_carried("bomb.ckpt")


def test_ordinary_anchors_stay():
    Path("a.yaml").write_text("a: &a {x: 1}\nb: *a\nc: [*a, *a]\n")
    assert load_config("a.yaml") == yaml.safe_load("{a: {x: 1}, b: {x: 1}, c: [{x: 1}, {x: 1}]}")


def test_arrays_larger_than_the_memory(monkeypatch: pytest.MonkeyPatch):
    np.savez_compressed("a.npz", images=np.zeros((100, 64, 64), np.uint8), labels=np.arange(100) % 2)
    assert read_arrays("a.npz").records
    monkeypatch.setattr("os.sysconf", lambda name: 512)  # so many bytes in so many pages: 256 KiB
    with pytest.raises(UserError, match=r"'a\.npz' would unpack to 0\.0 GiB, but the machine has"):
        read_arrays("a.npz")
    assert zipfile.ZipFile("a.npz").testzip() is None


@pytest.mark.parametrize("key", ["pretrained_cfg", "pretrained_cfg_overlay"])
def test_weights_of_an_address_are_not_fetched(key: str):
    with pytest.raises(UserError, match=rf"model\.backbone_args\.{key}\.url is http://127.* are not fetched"):
        net_arguments("test_resnet", 3, None, 0, 0, {key: {"url": "http://127.0.0.1:9/w.pth"}})
    assert net_arguments("test_resnet", 3, None, 0, 0, {key: {"file": "w.pth"}})[key] == {"file": "w.pth"}
