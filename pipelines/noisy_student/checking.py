"""``check`` of a config of the loop: its labeled images, and its pool, in which nothing evaluated may be."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import yaml

from datamodules.common.errors import UserError
from datamodules.common.files import write_text
from pipelines.commands.check import main as check
from pipelines.config.ready import complete
from pipelines.config.words import asks_for_help, value_of, without
from pipelines.noisy_student.reading import read_settings
from pipelines.noisy_student.settings import plain

_OWN = ("--fail_on", "--output", "--pool", "--ckpt_path")


def main(words: list[str]) -> int:
    """The command ``check`` with such a config.

    Args:
        words: Its flags.

    Returns:
        The exit status, see ``commands.check.main``.
    """
    if asks_for_help(words):
        return check(["--help"])
    own = {name: value for name in _OWN if (value := value_of(words, name)) is not None}
    rest = words
    for name in _OWN:
        rest = without(rest, name)
    try:
        settings = read_settings(complete(["noisy-student", *rest]))
        if settings.teacher.model is None:
            raise UserError(
                "The config takes its teacher from a checkpoint, which says nothing of the task's settings here: check"
                " the labeled images by --data's source, check SOURCE --task TASK --pool POOL."
            )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if settings.pool is not None:
        own.setdefault("--pool", settings.pool)
    values = plain(settings)
    data, teacher = values["data"], values["teacher"]
    arguments = {**data.get("init_args", {}), **teacher["data"]}
    config = {"model": teacher["model"], "data": {**data, "init_args": arguments}}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "labeled.yaml"
        write_text(file, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        return check(["--config", str(file), *(word for pair in own.items() for word in pair)])
