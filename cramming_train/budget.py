"""The clock of a run. One object knows how much of the day is used; every schedule is a function of it."""

from __future__ import annotations

import time
from collections.abc import Callable


class Budget:
    """A budget in wall-clock seconds or, where ``tokens`` is given, in training tokens.

    ``fraction`` drives learning rate, batch size and masking rate. In token mode it depends on the tokens seen
    alone, so that two runs of one seed take the same steps whatever the machine does; ``seconds`` then still
    stops the run if it comes first.

    Args:
        seconds: wall-clock budget, > 0.
        tokens: token budget, > 0, or None for a wall-clock run.
        used: seconds already used by earlier parts of the same run.
        clock: a monotonic clock in seconds; injectable so that tests need not wait.
    """

    def __init__(
        self,
        seconds: float,
        *,
        tokens: int | None = None,
        used: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        if not seconds > 0:
            raise ValueError(f"seconds: got {seconds}, want a positive number")
        if tokens is not None and tokens <= 0:
            raise ValueError(f"tokens: got {tokens}, want a positive number or None")
        self.seconds = float(seconds)
        self.tokens = tokens
        self.tokens_used = 0
        self._clock = clock
        self._origin = clock() - used
        self._stopped_at: float | None = None

    @property
    def elapsed(self) -> float:
        """Seconds used, those of earlier parts of the run included."""
        return (self._clock() if self._stopped_at is None else self._stopped_at) - self._origin

    def stop(self) -> float:
        """Stop the clock for good and return the seconds used: what follows is outside the budget."""
        if self._stopped_at is None:
            self._stopped_at = self._clock()
        return self.elapsed

    @property
    def remaining(self) -> float:
        """Seconds left; negative when over time."""
        return self.seconds - self.elapsed

    def fraction(self) -> float:
        """Used part of the budget in [0, 1]: of the tokens where they are the budget, else of the time."""
        used = self.tokens_used / self.tokens if self.tokens is not None else self.elapsed / self.seconds
        return min(max(used, 0.0), 1.0)

    def is_used_up(self, *, reserve: float = 0.0) -> bool:
        """True when the tokens are spent, or when less than ``reserve`` seconds are left."""
        if self.tokens is not None and self.tokens_used >= self.tokens:
            return True
        return self.remaining <= reserve

    def seconds_to_go(self, tokens_per_second: float) -> float:
        """Estimated seconds until the budget is used up, for the progress display."""
        if self.tokens is None or tokens_per_second <= 0:
            return max(self.remaining, 0.0)
        return max(min(self.remaining, (self.tokens - self.tokens_used) / tokens_per_second), 0.0)
