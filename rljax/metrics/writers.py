"""From one stream of measurements to every place that wants them.

    with writers.writers(logging, workdir, total_steps=100_000) as log:
        log.config(config.to_json(experiment))
        log.write(step, {"loss/policy": 0.1, "episode/return_mean": 20.0})

Names are `group/noun`. Only process 0 writes; elsewhere the same calls do nothing.
"""

import contextlib
import dataclasses
import enum
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, SupportsFloat, runtime_checkable

from rljax.metrics.jsonl import JsonlWriter
from rljax.metrics.progress import Progress, ProgressWriter
from rljax.metrics.tensorboard_writer import TensorBoardWriter
from rljax.metrics.wandb_writer import WandbWriter

_NAME = re.compile(r"[a-z][a-z0-9_]*/[a-z][a-z0-9_]*")


class Sink(enum.Enum):
    """Where measurements are kept."""

    JSONL = "jsonl"  # <workdir>/metrics.jsonl
    TENSORBOARD = "tensorboard"  # <workdir>/tensorboard/; extra `tensorboard`
    WANDB = "wandb"  # <workdir>/wandb/, and the W&B server where a key is known; extra `wandb`


@dataclasses.dataclass(frozen=True)
class Logging:
    """What is written while a run goes on."""

    writers: tuple[Sink, ...] = (Sink.JSONL,)
    wandb_project: str = "rljax"
    progress: Progress = Progress.AUTO


@runtime_checkable  # for the type checks that tests run under
class Writer(Protocol):
    """One sink."""

    def config(self, config: Mapping[str, Any]) -> None:
        """Takes the run's configuration, a tree of JSON values; called once, before any `write`."""
        ...

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes what was measured at `step` (environment steps or gradient steps, never less)."""
        ...

    def close(self) -> None:
        """Flushes and lets go."""
        ...


class FanOut:
    """A writer that checks names, fetches numbers from the device once, and tells all its sinks."""

    def __init__(self, sinks: Sequence[Writer]):
        self._sinks = tuple(sinks)
        self._known: set[str] = set()  # names already checked

    def config(self, config: Mapping[str, Any]) -> None:
        """Hands the configuration to every sink."""
        for sink in self._sinks:
            sink.config(config)

    def write(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """Hands scalars, of Python, NumPy or JAX, to every sink.

        Raises:
          ValueError: if a name is not `group/noun`, or a value is not a scalar.
        """
        if not self._sinks:
            return
        for name in metrics.keys() - self._known:
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"Metric {name!r} must be named group/noun in lower case, as loss/policy is."
                )
            self._known.add(name)
        numbers = {name: _number(name, value) for name, value in metrics.items()}
        for sink in self._sinks:
            sink.write(step, numbers)


@contextlib.contextmanager
def writers(
    logging: Logging,
    workdir: pathlib.Path,
    *,
    total_steps: int | None = None,
    resume_step: int = 0,
) -> Iterator[FanOut]:
    """Opens the sinks that `logging` names, under `workdir`, and closes them at the end.

    Args:
      logging: which sinks.
      workdir: the run's folder; made if missing.
      total_steps: where the progress bar ends; None: it only counts.
      resume_step: the step of the checkpoint that the run goes on from. What an interrupted run
        wrote past it is dropped, because those steps are taken again.

    Raises:
      UsageError: if a sink's package is missing, naming the extra, or `metrics.jsonl` is damaged.
    """
    import jax  # not at the top: command lines are parsed, and helped with, before JAX is loaded

    with contextlib.ExitStack() as stack:
        sinks: list[Writer] = []
        if jax.process_index() == 0:
            workdir.mkdir(parents=True, exist_ok=True)
            for kind in dict.fromkeys(logging.writers):
                sinks.append(_open(kind, logging, workdir, resume_step))
                stack.callback(sinks[-1].close)
            if logging.progress is not Progress.OFF:
                sinks.append(ProgressWriter(logging.progress, total_steps, resume_step))
                stack.callback(sinks[-1].close)
        yield FanOut(sinks)


def _open(kind: Sink, logging: Logging, workdir: pathlib.Path, resume_step: int) -> Writer:
    match kind:
        case Sink.JSONL:
            return JsonlWriter(workdir / "metrics.jsonl", resume_step)
        case Sink.TENSORBOARD:
            return TensorBoardWriter(workdir / "tensorboard", resume_step)
        case Sink.WANDB:
            return WandbWriter(workdir, logging.wandb_project)


def _number(name: str, value: SupportsFloat) -> float:
    try:
        return float(value)
    except TypeError as error:
        raise ValueError(f"Metric {name!r} must be a scalar: {error}") from error
