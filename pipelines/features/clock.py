"""A limit of time that work looks at by itself."""

from __future__ import annotations

import math
import time


class Clock:
    """Seconds since it was made, and how many are left.

    Args:
        limit: Seconds; None for no limit.
    """

    def __init__(self, limit: float | None) -> None:
        self.limit = math.inf if limit is None else limit
        self.start = time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.start

    @property
    def left(self) -> float:
        """Seconds that are left, 0 at least."""
        return max(0.0, self.limit - self.spent)

    @property
    def over(self) -> bool:
        """Whether none are left."""
        return self.left <= 0

    def share(self, parts: int) -> Clock:
        """A clock for the next of so many parts that have the time that is left."""
        return Clock(None if math.isinf(self.limit) else self.left / max(1, parts))
