"""Checkpoints through Orbax: atomic, asynchronous, verified when read, restorable on other devices.

A checkpoint is a pytree at a step, with a checksum of its leaves. Orbax writes it under a temporary
name and renames it when whole, so `kill -9` leaves whole checkpoints only; a damaged one is found
by its checksum or by Orbax's own errors, said aloud, and the last whole one is taken instead.
The only file that imports Orbax.
"""

import contextlib
import gc
import json
import logging
import pathlib
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from rljax.config import UsageError

log = logging.getLogger(__name__)
_SCORE = "eval/return_mean"
# What a truncated, missing or altered file has been seen to raise.
_DAMAGE = (ValueError, OSError, KeyError, TypeError, EOFError)


class CheckpointError(UsageError):
    """No checkpoint here can be used."""


class Manager:
    """The checkpoints of one run: the last `keep` are preserved, and the best-scored one."""

    def __init__(self, directory: str | pathlib.Path, keep: int = 2) -> None:
        """Opens `directory`, which need not exist yet."""
        self.directory = pathlib.Path(directory).absolute()
        # Orbax logs a trace for every save that fails, besides raising: one sentence is enough.
        logging.getLogger("absl").addFilter(_not_from_orbax)
        _drop_unreadable_scores(self.directory)
        self._checkpointer = ocp.training.Checkpointer(
            str(self.directory), preservation_policy=_preservation(keep)
        )

    def __enter__(self) -> "Manager":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits for what is being written."""
        self._checkpointer.close()

    @property
    def steps(self) -> list[int]:
        """The steps that are on disk, oldest first."""
        return sorted(c.step for c in self._checkpointer.checkpoints)

    @property
    def best_step(self) -> int | None:
        """The step with the highest score, or None where none was scored."""
        scores: dict[int, Any] = {c.step: c.metrics for c in self._checkpointer.checkpoints}
        scored = [step for step, metrics in scores.items() if metrics]
        return max(scored, key=lambda step: scores[step][_SCORE], default=None)

    def save(self, step: int, tree: Any, score: float | None = None) -> None:
        """Writes `tree` in the background; it may be changed or donated as soon as this returns.

        A score that is not finite counts as none.
        """
        if self._checkpointer.latest is not None and self._checkpointer.latest.step >= step:
            return  # resumed there; nothing has happened since
        self._checkpointer.save_checkpointables_async(
            step,
            {"state": tree},
            force=True,
            metrics={_SCORE: float(score)} if score is not None and np.isfinite(score) else None,
            custom_metadata={"checksum": _checksum(tree)},
        )

    def wait(self) -> None:
        """Returns when everything saved is on disk."""
        self._checkpointer.wait()

    def restore(self, make: Callable[[], Any], step: int | None = None) -> tuple[int, Any]:
        """The tree at `step`, or at the last whole step, shaped as `make()` would return it.

        Arrays land on this process's first device. `make` is only traced, never run. Raises
        CheckpointError when there is none, when the one asked for is damaged, or when its shapes
        are another run's.
        """
        if step is not None and step not in self.steps:
            raise CheckpointError(
                f"{self.directory} has no checkpoint of step {step}; it has {self.steps}."
            )
        target = _abstract(make)
        for candidate in [step] if step is not None else reversed(self.steps):
            tree, fault = self._load(candidate, target)
            if fault is None:
                return candidate, tree
            log.warning("Checkpoint %d cannot be read (%s).", candidate, fault)
            if step is not None:
                raise CheckpointError(
                    f"The checkpoint of step {step} in {self.directory} is damaged: {fault}"
                )
        raise CheckpointError(
            f"{self.directory} holds no whole checkpoint"
            + (
                f"; those of steps {self.steps} are damaged, or another run's."
                if self.steps
                else "."
            )
        )

    def restore_or(self, make: Callable[[], Any]) -> tuple[int, Any]:
        """The last whole checkpoint, or step 0 and `make()` where there is none at all.

        For the process that goes on writing here: what a killed one left half-written is removed.
        Damaged checkpoints behind the one restored are renamed to `damaged-<step>`, so that
        training can write them anew. Raises CheckpointError when there are some and every one is
        damaged.
        """
        for unfinished in self.directory.glob("*.orbax-checkpoint-tmp"):
            shutil.rmtree(unfinished, ignore_errors=True)
        if not self.steps:
            return 0, make()
        step, tree = self.restore(make)
        for damaged in [s for s in self.steps if s > step]:
            log.warning(
                "Going on from step %d; step %d is kept as damaged-%d.", step, damaged, damaged
            )
            aside = self.directory / f"damaged-{damaged}"
            shutil.rmtree(aside, ignore_errors=True)
            (self.directory / str(damaged)).rename(aside)
        self._checkpointer.reload()
        return step, tree

    def _load(self, step: int, target: Any) -> tuple[Any, str | None]:
        """The tree and None, or None and what is wrong with it."""
        with _quiet():
            try:
                metadata: Any = self._checkpointer.metadata(step).custom_metadata
                tree = self._checkpointer.load_checkpointables(
                    step, abstract_checkpointables={"state": target}
                )["state"]
                if _checksum(tree) == metadata["checksum"]:
                    return tree, None
                return None, "its contents do not match their checksum"
            except _DAMAGE as error:
                first_line = str(error).partition("\n")[0]
                return None, f"{type(error).__name__}: {first_line[:200]}"


def _preservation(keep: int) -> Any:  # Any: Orbax annotates policies and their use differently
    """The last `keep` checkpoints, and the best-scored one."""
    policies = ocp.training.preservation_policies
    best = policies.BestN(
        get_metric_fn=lambda metrics: metrics[_SCORE], n=1, keep_checkpoints_without_metrics=False
    )
    return policies.AnyPreservationPolicy([policies.LatestN(keep), best])


def _abstract(make: Callable[[], Any]) -> Any:
    """Shapes and types of what `make` returns, placed on the first device."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def place(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device)

    return jax.tree.map(place, jax.eval_shape(make))


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


def _drop_unreadable_scores(directory: pathlib.Path) -> None:
    """Removes score files that are damaged: Orbax reads all of them, and opens nothing for one."""
    for path in directory.glob("*/metrics/metrics"):
        try:
            float(json.loads(path.read_text())[_SCORE])
        except FileNotFoundError:
            continue  # deleted meanwhile by the process that trains
        except (ValueError, KeyError, TypeError):
            log.warning("%s is damaged: step %s has no score.", path, path.parts[-3])
            path.unlink()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what a damaged file sets off, besides the exception, from standard error."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    before = [logger.disabled for logger in loggers], sys.excepthook, sys.unraisablehook
    try:
        for logger in loggers:
            logger.disabled = True
        sys.excepthook = sys.unraisablehook = lambda *_: None  # threads that outlive their loop
        yield
        gc.collect()  # tasks that failed report themselves when they are collected
    finally:
        disabled, sys.excepthook, sys.unraisablehook = before
        for logger, was in zip(loggers, disabled, strict=True):
            logger.disabled = was


def _checksum(tree: Any) -> int:
    """CRC-32 over the bytes of all leaves, in order; typed keys by their data."""
    crc = 0
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        crc = zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8).data, crc)
    return crc
