"""Whether a replay fits into memory, asked before anything is allocated."""

import math
import pathlib
from typing import Any

import jax
import numpy as np

from rljax.types import EnvSpec, Transition

_MEMINFO = pathlib.Path("/proc/meminfo")
_CGROUP = pathlib.Path("/sys/fs/cgroup")  # of version 2: the limit that a container lives under


def row_bytes(row: Transition) -> int:
    """Bytes that one row of one environment takes, from a row `[B, ...]` or its shapes."""
    total = sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(row))
    return total // row.reward.shape[0]


def row_of(spec: EnvSpec) -> Transition:
    """Shapes and types of a row `[1, ...]` of an agent that stores no extras."""

    def row() -> Transition:
        reward = jax.numpy.zeros(1, jax.numpy.float32)
        action = jax.numpy.zeros((1, *spec.action.shape), spec.action.dtype)
        return Transition(spec.example((1,)), action, reward, reward, reward > 0, {})

    return jax.eval_shape(row)


def available(device: Any) -> int | None:  # Any: JAX has no public name for its type
    """Bytes that an array on this device of JAX's could take now; None where nobody says.

    For the CPU that is what the host, or the container, has left.
    """
    if device.platform == "cpu":
        return of_host()
    stats = device.memory_stats()
    if not stats or "bytes_limit" not in stats:
        return None
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0)


def of_host() -> int | None:
    """Bytes that this process could take of the host's memory, or the container's."""
    left = [_host_bytes(), _container_bytes()]
    return min((number for number in left if number is not None), default=None)


def check(
    capacity: int, bytes_per_row: int, free: int | None, copies: int = 1, held: int = 0
) -> None:
    """Raises ValueError where rows and what is held beside them are more than `free` bytes.

    Args:
        capacity: the rows.
        bytes_per_row: what each takes.
        free: None where nobody says.
        copies: of the rows.
        held: bytes of a dataset that lies beside them.
    """
    replay = capacity * bytes_per_row * copies
    needed = held + replay
    if free is None or needed <= free:
        return
    again = " (twice: a checkpoint is a copy)" if copies == 2 else ""
    if held:
        room = max(0, free - held) // (bytes_per_row * copies)
        smaller = f"make its capacity {room:,} rows or fewer, or " if room else ""
        raise ValueError(
            f"the dataset takes {held:,} bytes and a replay of {capacity:,} rows beside it "
            f"{replay:,}{again}, {needed:,} in all, and {free:,} are available: {smaller}mix a "
            "smaller dataset."
        )
    raise ValueError(
        f"a replay of {capacity:,} rows takes {needed:,} bytes{again}, {bytes_per_row:,} a row, "
        f"and {free:,} are available: make its capacity "
        f"{free // (bytes_per_row * copies):,} rows or fewer."
    )


def check_on(device: Any, capacity: int, bytes_per_row: int, held: int = 0) -> None:
    """`check` for a replay on this device, where the CPU holds the copy of a checkpoint, too."""
    copies = 2 if device.platform == "cpu" else 1  # elsewhere the copy is the host's
    check(capacity, bytes_per_row, available(device), copies, held)


def _host_bytes() -> int | None:
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None  # no Linux
    sizes = dict(line.split(":") for line in lines)
    return int(sizes["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in sizes else None


def _container_bytes() -> int | None:
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = (_CGROUP / "memory.current").read_text()
        reclaimable = (_CGROUP / "memory.stat").read_text()
    except OSError:
        return None
    if limit == "max":
        return None
    cache = dict(line.split() for line in reclaimable.splitlines()).get("inactive_file", "0")
    return int(limit) - int(used) + int(cache)
