"""Names of ready configs in place of files, and the name of a run that has none."""

from __future__ import annotations

from pathlib import Path

from pipelines.config.errors import UsageError, load_config
from pipelines.config.words import CONFIG, flags, value_of
from pipelines.listing import HOME, PROGRAM, config_path


def complete(args: list[str]) -> list[str]:
    """Fill in what may be left out: the path of a ready config, and the run's name.

    Args:
        args: The command and its flags, as typed.

    Returns:
        The same with ``--config`` pointing to files and with a ``--name``.

    Raises:
        UsageError: If a config does not exist.
    """
    command, rest = args[0], list(args[1:])
    configs: list[Path] = []
    for flag in flags(rest):
        if flag.name not in CONFIG:
            continue
        if flag.value is None:
            raise UsageError(f"{flag.name} needs a file, for example: {PROGRAM} {command} --config quickstart")
        path = _config_file(flag.value)
        configs.append(path)
        named = [f"--config={path}"] if flag.size == 1 else ["--config", str(path)]
        rest[flag.position : flag.position + flag.size] = named
    is_named = any(load_config(config).get("name") for config in configs)
    if value_of(rest, "--name") is None and configs and not is_named:
        rest += ["--name", run_name(configs[0])]
    return [command, *rest]


def run_name(config: Path) -> str:
    """The name of a run whose config gives none: the file's, with its folders, so that tasks have names of their own.

    A ready config's is ``classification-folder``, that of a file ``mine/cats.yaml`` below the working directory
    ``mine-cats``, and of a file elsewhere ``cats``.
    """
    path = config.resolve().with_suffix("")
    top = next((top for top in (HOME / "configs", Path.cwd()) if path.is_relative_to(top)), path.parent)
    return "-".join(path.relative_to(top).parts)


def _config_file(name: str) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    ready = config_path(name)
    if ready is None:
        raise UsageError(
            f"--config {name}: there is no such file in {Path.cwd()}, and no ready config of that name."
            f" `{PROGRAM} list configs` shows the ready ones."
        )
    return ready
