"""Row 51 for the noisy-student loop: its stages use secrets, and leave none behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from pipelines.run.masking import masked
from pipelines.stages.launching import config_file
from pipelines.stages.manifest import run_stage

CONFIG = {"trainer": {"logger": {"init_args": {"api_key": "s3cret", "project": "p"}}}, "data": {"size": 3}}


def texts(directory: Path) -> str:
    return "".join(path.read_text() for path in directory.rglob("*") if path.is_file())


def test_a_stage_reads_its_secrets_and_leaves_none(tmp_path):
    with config_file(tmp_path / "config.yaml", CONFIG) as file:
        assert yaml.safe_load(file.read_text()) == CONFIG
        assert file.stat().st_mode & 0o777 == 0o600
        killed = file.read_bytes()
    assert not file.exists()
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == masked(CONFIG)
    file.write_bytes(killed)
    with config_file(tmp_path / "config.yaml", CONFIG):
        pass
    assert "s3cret" not in texts(tmp_path)


def test_without_secrets_the_file_is_the_one_that_stays(tmp_path):
    with config_file(tmp_path / "config.yaml", {"data": {"size": 3}}) as file:
        assert file == tmp_path / "config.yaml"


@pytest.mark.parametrize("older", [False, True])
def test_manifests_hold_no_secrets_and_tell_another_one(tmp_path, older):
    done = []

    def work(directory: Path) -> dict[str, str]:
        done.append(directory)
        (directory / "a.txt").write_text("a")
        return {"a": "a.txt"}

    stage = tmp_path / "seed0" / "teacher"
    run_stage(stage, CONFIG, {}, work)
    assert "s3cret" not in texts(stage)
    if older:  # that of a version which wrote them
        manifest = json.loads((stage / "manifest.json").read_text())
        manifest["key"]["settings"] = CONFIG
        (stage / "manifest.json").write_text(json.dumps(manifest))
    run_stage(stage, CONFIG, {}, work)
    assert len(done) == 1
    other = json.loads(json.dumps(CONFIG).replace("s3cret", "another"))
    run_stage(stage, other, {}, work)
    assert len(done) == 2
