"""What a run tells the person who waits for it: steps, return, steps per second, time left.

A live bar where standard error is a terminal, else plain lines, a few seconds apart at least. Both
end with a line that stays.
"""

import datetime
import enum
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress

from rljax.metrics.throughput import Throughput

RETURN = "episode/return_mean"  # the metric that is shown beside the counts
_SPREAD = "seed/return_min", "seed/return_max"  # of several runs: shown behind it
_PLAIN_SECONDS = 5.0  # between plain lines


class Progress(enum.Enum):
    """How progress is shown."""

    AUTO = "auto"  # the bar on a terminal, else plain lines
    BAR = "bar"
    PLAIN = "plain"
    OFF = "off"


class ProgressWriter:
    """Shows progress on standard error."""

    def __init__(
        self,
        progress: Progress,
        total_steps: int | None,
        first_step: int = 0,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Shows a bar, or lines, up to `total_steps`; the run has done `first_step` before."""
        self._console = console or Console(stderr=True, soft_wrap=True, highlight=False)
        self._total = total_steps
        self._clock = clock
        self._throughput = Throughput(clock=clock)
        self._start = clock()
        self._next_line = -math.inf
        self._step = first_step
        self._return: float | None = None
        self._spread = ""
        self._bar = None
        if progress is Progress.BAR or (progress is Progress.AUTO and self._console.is_terminal):
            self._bar = RichProgress(
                BarColumn(bar_width=24),
                TextColumn("{task.description}"),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task("compiling", total=total_steps, completed=first_step)
            self._bar.start()

    def config(self, config: Mapping[str, Any]) -> None:
        """Does nothing."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Brings the bar up to date, or prints a line if the last one is old enough."""
        self._step = step
        if math.isfinite(metrics.get(RETURN, math.nan)):
            self._return = metrics[RETURN]
        if all(name in metrics for name in _SPREAD):
            low, high = (metrics[name] for name in _SPREAD)
            self._spread = f" ({low:,.1f} to {high:,.1f})"
        speed = self._throughput.update(step).get("time/steps_per_second", 0.0)
        if self._bar:
            text = self._describe(speed, self._left(speed))
            self._bar.update(self._task, completed=step, description=text)
        elif self._clock() >= self._next_line:
            self._console.print(self._describe(speed, self._left(speed)))
            self._next_line = self._clock() + _PLAIN_SECONDS

    def close(self) -> None:
        """Takes the bar away and prints where the run came to."""
        if self._bar:
            self._bar.stop()
        elapsed = f"in {_duration(self._clock() - self._start)}"
        self._console.print(self._describe(self._throughput.total, elapsed))

    def _describe(self, speed: float, time_text: str) -> str:
        of_total = f" / {self._total:,}" if self._total is not None else ""
        parts = [f"{self._step:,}{of_total} steps"]
        if self._return is not None:
            parts.append(f"return {self._return:,.1f}{self._spread}")
        if speed > 0:
            parts.append(f"{speed:,.0f} steps/s")
        return "  ".join([*parts, time_text] if time_text else parts)

    def _left(self, speed: float) -> str:
        if self._total is None or speed <= 0:
            return ""
        return f"{_duration(max(self._total - self._step, 0) / speed)} left"


def _duration(seconds: float) -> str:
    """Hours, minutes and seconds: 0:01:30."""
    return str(datetime.timedelta(seconds=round(seconds)))
