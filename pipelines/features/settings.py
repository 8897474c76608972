"""What is asked of ``features``, checked before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from datamodules.common.errors import UserError

Part: TypeAlias = Literal["filters", "exemplars", "embedding", "channels", "neurons", "classes"]


@dataclass(frozen=True)
class Settings:
    """The arguments of the command; see ``pipelines.commands.features.features``."""

    parts: tuple[Part, ...] = ("filters", "exemplars", "embedding", "channels", "classes")
    layers: tuple[str, ...] | None = None
    channels: tuple[int, ...] | None = None
    num_channels: int = 6
    exemplars: int = 6
    images: int = 500
    steps: int = 128
    size: int = 128
    dream: str | None = None
    octaves: int = 4
    seed: int = 0
    time_limit: float | None = 600.0

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UserError: Naming the flag, its value and what it takes.
        """
        for key in ("num_channels", "exemplars", "images", "steps", "octaves"):
            if getattr(self, key) < 1:
                raise UserError(f"--{key} is {getattr(self, key)}; it must be 1 or more.")
        if self.seed < 0:
            raise UserError(f"--seed is {self.seed}; it must be 0 or more.")
        if self.size < 16:
            raise UserError(f"--size is {self.size}; pictures need at least 16 pixels a side.")
        if self.time_limit is not None and self.time_limit <= 0:
            raise UserError(f"--time_limit is {self.time_limit}; it must be a number of seconds above 0, or null.")
        if not self.parts and self.dream is None:
            raise UserError("--parts is an empty list: there is nothing to do. Leave it out for all parts.")
        if self.channels is not None and not self.channels:
            raise UserError("--channels is an empty list: leave it out for the channels that matter most.")
