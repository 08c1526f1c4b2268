"""Steps per second, with the compilation that the first update pays for left out."""

import collections
import time
from collections.abc import Callable


class Throughput:
    """Counts from the end of the first update on: call `update` after each, with the step reached.

    Steps are Python integers, so they never overflow; the clock is monotonic, in seconds.
    """

    def __init__(self, window: int = 20, clock: Callable[[], float] = time.monotonic):
        """Averages over the last `window` updates."""
        self._clock = clock
        self._opened = clock()
        self._first: tuple[int, float] | None = None
        self._recent: collections.deque[tuple[int, float]] = collections.deque(maxlen=window + 1)

    def update(self, step: int) -> dict[str, float]:
        """Metrics of this moment: the first call gives the time it took, the others the speed."""
        now = (step, self._clock())
        self._recent.append(now)
        if self._first is None:
            self._first = now
            return {"time/first_update_seconds": now[1] - self._opened}
        return {"time/steps_per_second": _rate(self._recent[0], now)}

    @property
    def total(self) -> float:
        """Steps per second since the end of the first update; 0 before the second."""
        return _rate(self._first, self._recent[-1]) if self._first else 0.0


def _rate(start: tuple[int, float], end: tuple[int, float]) -> float:
    seconds = end[1] - start[1]
    return (end[0] - start[0]) / seconds if seconds > 0 else 0.0
