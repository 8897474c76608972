"""The search: its space, a study that goes on, several processes, repeats over seeds."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from datamodules.common.errors import UserError
from pipelines.__main__ import main
from pipelines.tuning import repeats
from pipelines.tuning.command import _importance
from pipelines.tuning.repeats import repeat_candidates
from pipelines.tuning.space import Dimension, read_space, with_values
from pipelines.tuning.trial import ReportMonitor
from tests.conftest import in_child

optuna = pytest.importorskip("optuna")
CONFIG = {
    "model": {"class_path": "Classification", "init_args": {"drop_rate": 0.0, "optim": {"lr": 0.001}}},
    "data": {"class_path": "ClassificationData", "init_args": {"batch_size": 16, "image_size": [16, 16]}},
    "trainer": {"max_epochs": 2},
}


def space(text: str) -> list[Dimension]:
    Path("space.yaml").write_text(text)
    return read_space("space.yaml", CONFIG)


def test_a_space_of_lists_and_ranges() -> None:
    found = space(
        "model.optim.lr: {low: 1e-4, high: 1e-1, log: true}\n"
        "data.init_args.batch_size: [8, 16]\n"
        "data.image_size: {choices: [[16, 16], [32, 32]]}\n"
        "trainer.max_epochs: {low: 1, high: 9, step: 4}\n"
    )
    asked = {"model.optim.lr": 0.01, "data.init_args.batch_size": 8, "data.image_size": "[32, 32]"}
    trial = optuna.trial.FixedTrial({**asked, "trainer.max_epochs": 5})
    changed = with_values(CONFIG, {dimension.path: dimension.suggest(trial) for dimension in found})
    assert changed["model"]["init_args"] == {"drop_rate": 0.0, "optim": {"lr": 0.01}}
    assert changed["data"]["init_args"] == {"batch_size": 8, "image_size": [32, 32]}
    assert changed["trainer"] == {"max_epochs": 5}
    assert CONFIG["trainer"] == {"max_epochs": 2}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model.optim.lrr: [1]", "unknown key model.optim.lrr; did you mean model.optim.lr?"),
        ("modle.optim.lr: [1]", "did you mean model?"),
        ("trainer.max_epochs: 3", "trainer.max_epochs is 3; it must be a list of values"),
        ("trainer.max_epochs: {low: 3}", "it must be a list of values"),
        ("trainer.max_epochs: {low: 3, high: 2}", "goes from 3 to 2; low must lie below high"),
        ("trainer.max_epochs: {low: 0, high: 2, log: true}", "low must be above 0"),
        ("trainer.max_epochs: {low: x, high: 2}", "has 'x', which is no number"),
        ("", "is empty"),
    ],
)
def test_mistakes_in_a_space(text: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        space(text)
    assert says in str(error.value)
    assert "space.yaml" in str(error.value)


def test_a_trial_is_told_each_validation_and_ends_where_it_is_pruned() -> None:
    reports: list[tuple[float, int]] = []
    trial = SimpleNamespace(report=lambda *values: reports.append(values), should_prune=lambda: len(reports) == 2)
    watch = ReportMonitor(trial, "val/loss", "min")
    trainer = SimpleNamespace(sanity_checking=True, should_stop=False, callback_metrics={"val/loss": 0.5})
    watch.on_validation_end(trainer, None)  # type: ignore[arg-type]
    trainer.sanity_checking = False
    for value in (0.5, math.nan, 0.7):
        trainer.callback_metrics["val/loss"] = value
        watch.on_validation_end(trainer, None)  # type: ignore[arg-type]
    assert reports == [(0.5, 1), (0.7, 2)]
    assert (watch.best, watch.is_pruned, trainer.should_stop) == (0.5, True, True)


def test_what_is_said_of_the_candidates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scores = {"as it is": [0.90, 0.91, 0.92], "trial1": [0.95, 0.96, 0.97], "trial2": [0.90, 0.99, 0.90]}
    monkeypatch.setattr(repeats, "_score", lambda root, name, config, seed, *_: scores[name][seed - 1])
    every = repeat_candidates(tmp_path, {key: {} for key in scores}, 3, "val/x", "max")
    assert every.best == "trial1"
    assert "trial1 is better than the config as it is by 0.0500" in every.sentence
    some = repeat_candidates(tmp_path, {key: {} for key in ("as it is", "trial2")}, 3, "val/x", "max")
    assert "Not shown that trial2 is better" in some.sentence
    falling = repeat_candidates(tmp_path, {key: {} for key in scores}, 3, "val/x", "min")
    assert (falling.best, falling.sentence) == ("as it is", "No candidate is better than the config as it is.")


def test_the_key_that_matters_is_important() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(lambda t: t.suggest_float("a", 0, 1) + 0.01 * t.suggest_float("b", 0, 1), n_trials=40)
    found = _importance(study)
    assert found["a"] > 5 * found["b"]
    assert _importance(optuna.create_study()) == {}


QUICK = ["--config", "quickstart", "--model.init_args.backbone=lenet5", "--data.init_args.batch_size=128"]
QUICK += ["--trainer.max_epochs=2", "--data.init_args.num_workers=0", "--trainer.accelerator=cpu", "--name=digits"]
QUICK += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.wandb.mode=off"]
SPACE = "model.optim.lr: {low: 1e-7, high: 1e-2, log: true}\ndata.batch_size: [64, 128]\n"


@pytest.mark.slow
def test_a_search_goes_on_and_repeats_its_candidates(capfd: Any) -> None:
    Path("space.yaml").write_text(SPACE)
    words = ["tune", *QUICK, "--space=space.yaml", "--candidates=1"]
    assert in_child(lambda: main([*words, "--trials=2", "--seeds=0"])) == 0
    root = Path("runs/digits-tune")
    assert not list(root.glob("trial*/*/checkpoints/*.ckpt"))
    capfd.readouterr()
    assert in_child(lambda: main([*words, "--trials=3", "--seeds=2"])) == 0
    said = capfd.readouterr().out
    assert "tune: 2 of 3 trials are done" in said
    found = json.loads((root / "tune.json").read_text())
    assert [trial["state"] for trial in found["trials"]] == ["COMPLETE"] * 3
    best = max(found["trials"], key=lambda trial: trial["value"])
    assert set(found["repeated"]) == {"as it is", f"trial{best['number']}"}
    assert all(len(row["each"]) == 2 for row in found["repeated"].values())
    chosen = yaml.safe_load((root / "best.yaml").read_text())
    if found["best"]["name"] != "as it is":
        assert chosen["model"]["init_args"]["optim"]["lr"] == best["model.optim.lr"]
    assert found["sentence"] in said
    assert in_child(lambda: main([*words, "--trials=3", "--seeds=2"])) == 0  # nothing is done again
    again = capfd.readouterr().out
    assert again.count("done before") == 4
    assert "tune: trial" not in again
    assert in_child(lambda: main(["fit", "--config", str(root / "best.yaml"), "--trainer.max_epochs=1"])) == 0
    assert main([*words, "--trials=3", "--model.init_args.optim.lr=0.5"]) == 1
    assert "holds a study of another config or space" in capfd.readouterr().err


@pytest.mark.slow
def test_two_processes_share_a_study() -> None:
    Path("space.yaml").write_text(SPACE)
    words = ["tune", *QUICK, "--space=space.yaml", "--seeds=0", "--trials=4"]

    def both() -> int:
        import os

        other = os.fork()
        status = main(words)
        if other == 0:
            os._exit(status)
        return status or os.waitstatus_to_exitcode(os.waitpid(other, 0)[1])

    assert in_child(both) == 0
    found = json.loads(Path("runs/digits-tune/tune.json").read_text())
    numbers = [trial["number"] for trial in found["trials"]]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) in (4, 5)  # each process may begin one before it sees that there are enough
    assert len({trial["model.optim.lr"] for trial in found["trials"]}) == len(numbers)


def test_the_documented_space_fits_a_config() -> None:
    page = (Path(__file__).parents[2] / "docs" / "tuning.md").read_text()
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    lr, drop, batch = space(text)
    assert (lr.log, lr.low, drop.step, batch.choices) == (True, 3.0e-4, 0.1, (16, 32, 64))
