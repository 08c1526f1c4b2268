"""Checkpoints through Orbax: atomic, asynchronous, verified when read, restorable on other devices.

A checkpoint is a pytree at a step, with a checksum of each of its parts. Orbax writes it under a
temporary name and renames it when whole, so `kill -9` leaves whole checkpoints only; a damaged one
is found by its checksums or by Orbax's own errors, said aloud, and the last whole one is taken
instead.

Of several processes, 0 reads and writes, so that they need no file system in common: all of them
save and restore together, because what is theirs is gathered first, and handed out afterwards.
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
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import checkpoint_manager
from orbax.checkpoint import v1 as ocp

from rljax import distributed, sharding
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
        """Opens `directory`, which need not exist yet; process 0 only does."""
        self.directory = pathlib.Path(directory).absolute()
        self._checkpointer: Any = None
        if not distributed.is_chief():
            return
        if self.directory.exists() and not self.directory.is_dir():
            raise CheckpointError(f"{self.directory} is a file where checkpoints are to lie.")
        # Orbax logs a trace for every save that fails, besides raising: one sentence is enough.
        logging.getLogger("absl").addFilter(_not_from_orbax)
        _drop_unreadable_scores(self.directory)
        self._checkpointer = _open(self.directory, keep)

    def __enter__(self) -> "Manager":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits for what is being written."""
        if self._checkpointer is not None:
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

        A score that is not finite counts as none. Several processes must call it together; raises
        ReplicaError where what they have in common differs between them.
        """
        if jax.process_count() > 1:
            sharding.check_replicas(tree)
            tree = sharding.gathered(tree)
        if self._checkpointer is None:
            return
        if self._checkpointer.latest is not None and self._checkpointer.latest.step >= step:
            return  # resumed there; nothing has happened since
        self._checkpointer.save_checkpointables_async(
            step,
            {"state": jax.tree.map(_without_key, tree)},
            force=True,
            metrics={_SCORE: float(score)} if score is not None and np.isfinite(score) else None,
            custom_metadata={"checksums": _checksums(tree)},
        )

    def wait(self) -> None:
        """Returns when everything saved is on disk."""
        if self._checkpointer is not None:
            self._checkpointer.wait()

    def restore(
        self, make: Callable[[], Any], step: int | None = None, part: str | None = None
    ) -> tuple[int, Any]:
        """The tree at `step`, or at the last whole step, shaped as `make()` would return it.

        With `part`, of a NamedTuple, that field alone is read, and `make()` returns such a one.
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
            tree, fault = self._load(candidate, target, part)
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
        damaged. Every process gets what process 0 finds, on its first device.
        """
        if jax.process_count() == 1:
            return self._last_or(make)
        step, tree = self._last_or(make) if distributed.is_chief() else (0, None)
        step = distributed.agree(0, step) or 0
        if step == 0:
            return 0, make()
        return step, distributed.broadcast(tree if distributed.is_chief() else _zeros(make))

    def _last_or(self, make: Callable[[], Any]) -> tuple[int, Any]:
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

    def _load(self, step: int, target: Any, part: str | None) -> tuple[Any, str | None]:
        """The tree, or its part, and None; or None and what is wrong with it."""
        wanted = jax.tree.map(_stored, target)
        wanted = wanted if part is None else {part: wanted}
        # Else the context stays that of `_open`, by which process 0 reads alone.
        context = contextlib.nullcontext() if part is None else _reading_a_part()
        with _quiet():
            try:
                metadata: Any = self._checkpointer.metadata(step).custom_metadata
                with context:
                    tree = self._checkpointer.load_checkpointables(
                        step, abstract_checkpointables={"state": wanted}
                    )["state"]
                tree = jax.tree.map(_with_key, tree if part is None else tree[part], target)
                if _is_whole(tree, part, metadata):
                    return tree, None
                return None, "its contents do not match their checksum"
            except _DAMAGE as error:
                first_line = str(error).partition("\n")[0]
                return None, f"{type(error).__name__}: {first_line[:200]}"


def _reading_a_part() -> ocp.Context:
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    return context


def _open(directory: pathlib.Path, keep: int) -> ocp.training.Checkpointer:
    """Orbax's checkpointer, which of several processes is that of process 0 alone."""
    if jax.process_count() == 1:
        return ocp.training.Checkpointer(str(directory), preservation_policy=_preservation(keep))
    # One process of several may not have Orbax make the directory, and V1 cannot say so.
    directory.mkdir(parents=True, exist_ok=True)
    context = ocp.Context()
    context.multiprocessing.active_processes = {0}
    with mock.patch.object(checkpoint_manager, "_create_root_directory"):
        return ocp.training.Checkpointer(
            str(directory), context=context, preservation_policy=_preservation(keep)
        )


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


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _without_key(x: Any) -> Any:
    """What is stored of a leaf: of a typed key its data.

    Of several processes one may store NumPy's arrays only.
    """
    x = jax.random.key_data(x) if _is_key(x) else x
    return np.asarray(x) if jax.process_count() > 1 else x


def _stored(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The same of its shape and type."""
    data = jax.eval_shape(jax.random.key_data, x) if _is_key(x) else x
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=x.sharding)


def _with_key(x: Any, target: jax.ShapeDtypeStruct) -> Any:
    """The leaf that was stored, with a key made of a key's data."""
    if not _is_key(target):
        return x
    kinds: list[Any] = []  # of a key that is only described, no function tells
    jax.eval_shape(lambda key: kinds.append(jax.random.key_impl(key)), target)
    return jax.random.wrap_key_data(x, impl=kinds[0])


def _zeros(make: Callable[[], Any]) -> Any:
    """Arrays, and keys, of the shapes and types of what `make` returns."""
    target = _abstract(make)
    data = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.tree.map(_stored, target))
    return jax.tree.map(_with_key, data, target)


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


def _checksums(tree: Any) -> dict[str, int]:
    """One for each field of a NamedTuple, so that each can be checked without the others."""
    parts = tree._asdict() if hasattr(tree, "_asdict") else {"": tree}
    return {name: _checksum(part) for name, part in parts.items()}


def _is_whole(tree: Any, part: str | None, metadata: dict[str, Any]) -> bool:
    """Whether what was read, all or a part, is what was saved."""
    if "checksums" not in metadata:  # of 0.1.0, which had one for all
        return part is not None or _checksum(tree) == metadata["checksum"]
    found = _checksums(tree) if part is None else {part: _checksum(tree)}
    return found.items() <= metadata["checksums"].items()


def _checksum(tree: Any) -> int:
    """CRC-32 over the bytes of all leaves, in order; typed keys by their data."""
    crc = 0
    for leaf in jax.tree.leaves(tree):
        leaf = jax.random.key_data(leaf) if _is_key(leaf) else leaf
        crc = zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8).data, crc)
    return crc
