"""The results of ``test`` belong to the training's own run in Weights & Biases."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

from pipelines.run.directory import newest_config, wandb_id
from pipelines.run.tracking import Wandb, WandbRun, wandb_logger


def evaluation_logger(directory: Path | None, chosen: Wandb) -> WandbRun | None:
    """Go on with the run of a training, for what is measured now.

    Args:
        directory: The run directory; None where there is none.
        chosen: The settings of this command. Project, group and the like are those that the training had.

    Returns:
        The logger; None for a run that W&B has not seen, and for ``off``.
    """
    if directory is None or not (directory / "wandb").is_dir():
        return None
    trainer = newest_config(directory).get("trainer") or {}
    known = {item.name for item in fields(Wandb)}
    recorded = Wandb(**{key: value for key, value in (trainer.get("wandb") or {}).items() if key in known})
    mode = recorded.mode if chosen.mode == "auto" and recorded.mode != "off" else chosen.mode
    settings = replace(
        recorded, mode=mode, table_rows=chosen.table_rows, table_pictures=chosen.table_pictures, log_model="none"
    )
    name = f"{directory.parent.name}/{directory.name}"
    logger = wandb_logger(directory, settings, name=name, run_id=wandb_id(directory), config={})
    if logger is not None:
        logger.is_evaluation = True
    return logger
