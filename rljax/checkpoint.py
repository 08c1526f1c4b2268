"""Checkpoints through Orbax: atomic, asynchronous, verified when read, restorable on other devices.

A checkpoint is a pytree at a step, with a checksum of its leaves. Orbax writes it under a temporary
name and renames it when whole, so `kill -9` leaves whole checkpoints only; a damaged one is found by
its checksum or by Orbax's own errors, said aloud, and the last whole one is taken instead.
The only file that imports Orbax.
"""

import contextlib
import gc
import json
import logging
import pathlib
import shutil
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
        _set_aside_unreadable(self.directory)
        policies = ocp.training.preservation_policies
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics[_SCORE],
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        self._checkpointer = ocp.training.Checkpointer(
            self.directory,
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
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
        scored = [c for c in self._checkpointer.checkpoints if c.metrics]
        return max(scored, key=lambda c: c.metrics[_SCORE]).step if scored else None

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
        CheckpointError when there is none, when the one asked for is damaged, or when its shapes are
        another run's.
        """
        if step is not None and step not in self.steps:
            raise CheckpointError(
                f"{self.directory} has no checkpoint of step {step}; it has {self.steps}."
            )
        target = _abstract(make)
        for candidate in [step] if step is not None else reversed(self.steps):
            try:
                return candidate, self._load(candidate, target)
            except _DAMAGE as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                log.warning("Checkpoint %d cannot be read (%s).", candidate, reason[:200])
                if step is not None:
                    raise CheckpointError(
                        f"The checkpoint of step {step} in {self.directory} is damaged: {reason}"
                    ) from error
        raise CheckpointError(
            f"{self.directory} holds no whole checkpoint"
            + (f"; those of steps {self.steps} are all damaged." if self.steps else ".")
        )

    def restore_or(self, make: Callable[[], Any]) -> tuple[int, Any]:
        """The last whole checkpoint, or step 0 and `make()` where there is none at all.

        For the process that goes on writing here: what a killed one left half-written is removed.
        Damaged checkpoints behind the one restored are renamed to `damaged-<step>`, so that training
        can write them anew. Raises CheckpointError when there are some and every one is damaged.
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

    def _load(self, step: int, target: Any) -> Any:
        with _quiet():  # Orbax logs a trace for every part of a damaged file, besides raising
            expected = self._checkpointer.metadata(step).custom_metadata["checksum"]
            tree = self._checkpointer.load_checkpointables(
                step, abstract_checkpointables={"state": target}
            )["state"]
        if _checksum(tree) != expected:
            raise ValueError("its contents do not match their checksum")
        return tree


def _abstract(make: Callable[[], Any]) -> Any:
    """Shapes and types of what `make` returns, placed on the first device."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def place(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device)

    return jax.tree.map(place, jax.eval_shape(make))


def _set_aside(checkpoint: pathlib.Path) -> None:
    aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
    log.warning("The checkpoint of step %s is kept as %s.", checkpoint.name, aside.name)
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)


def _set_aside_unreadable(directory: pathlib.Path) -> None:
    """Renames checkpoints whose description is damaged: with one of them, Orbax opens none."""
    for checkpoint in directory.glob("[0-9]*"):
        if not checkpoint.name.isdecimal():
            continue  # one that is being written, or was when its process died
        try:
            json.loads((checkpoint / "_CHECKPOINT_METADATA").read_text())
            scores = checkpoint / "metrics" / "metrics"
            json.loads(scores.read_text()) if scores.exists() else None
        except (ValueError, OSError) as error:
            log.warning("Checkpoint %s cannot be read (%s).", checkpoint.name, error)
            _set_aside(checkpoint)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    before = [logger.disabled for logger in loggers]
    try:
        for logger in loggers:
            logger.disabled = True
        yield
        gc.collect()  # tasks that failed report themselves when collected: have it done with here
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


def _checksum(tree: Any) -> int:
    """CRC-32 over the bytes of all leaves, in order; typed keys by their data."""
    crc = 0
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        crc = zlib.crc32(np.ascontiguousarray(leaf), crc)
    return crc
