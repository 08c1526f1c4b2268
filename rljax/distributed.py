"""Several processes as one run: how they join, agree, share what one of them knows, and end.

    with distributed.session(cluster):       # None: one process; then everything here is trivial
        ...
        signal = distributed.agree(step, signal)     # once an update, on every process

Every process runs the same program on its own part of the environments; updates meet through the
mesh (`rljax.sharding`), which spans the devices of all. Process 0 is the coordinator, and the only
one that writes. A run whose process was lost ends everywhere (`rljax.peers`).
"""

import atexit
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from rljax import config, peers, sharding
from rljax.config import UsageError

_DAY_MS = 24 * 3600 * 1000  # that barriers wait: who is lost is found out otherwise
# What a failed collective or a lost coordinator has been seen to say.
_BROKEN = ("gloo", "coordination", "nccl", "unavailable", "deadline_exceeded", "connection", "peer")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Where a run of several processes meets; the first three all given, or found by JAX.

    JAX knows SLURM, Open MPI, GKE (with the package `kubernetes`) and Cloud TPU.
    """

    coordinator_address: str | None = None  # "host:port" of process 0
    num_processes: int | None = None
    process_id: int | None = None
    join_timeout_seconds: int = 300  # for all to have joined
    peer_timeout_seconds: float = 60.0  # without a sign of life, after which one counts as lost

    def __post_init__(self) -> None:
        """Raises ValueError, one sentence, where the numbers cannot be."""
        given = (self.coordinator_address, self.num_processes, self.process_id)
        if None in given:
            if given != (None, None, None):
                raise ValueError(
                    "--coordinator_address, --num_processes and --process_id come together: give "
                    "all three, or none where SLURM, Open MPI, GKE or Cloud TPU tell them."
                )
            return
        host, _, port = str(self.coordinator_address).rpartition(":")
        if not (host and port.isdigit() and 0 < int(port) < 2**16):
            raise ValueError(
                f"--coordinator_address={self.coordinator_address} should be host:port, of the "
                "machine that runs process 0, such as node-a:12345."
            )
        if not 0 <= int(self.process_id or 0) < int(self.num_processes or 0):
            raise ValueError(
                f"--process_id={self.process_id} is none of the --num_processes="
                f"{self.num_processes} processes, which are numbered from 0."
            )


_watch: peers.Watch | None = None
_barriers = itertools.count()


@contextlib.contextmanager
def session(cluster: Cluster | None) -> Iterator[None]:
    """Joins the others, if any, for the time of the block; must come before JAX meets a device.

    The block ends when it has ended everywhere. Where it raises, the others end with this process's
    sentence, and this process exits without waiting for them.

    Raises UsageError where the processes do not find together.
    """
    global _watch
    if cluster is None:
        yield
        return
    _join(cluster)
    joined = _state()
    _watch = peers.Watch(
        joined.client, joined.process_id, joined.num_processes, cluster.peer_timeout_seconds
    )
    try:
        _check_count(joined.num_processes)
        yield
        _wait_for_all()
    except BaseException as error:
        _leave(error, _watch)
        raise
    _watch.stop()
    jax.distributed.shutdown()
    _watch = None


def is_chief() -> bool:
    """Whether this process is the one that writes: process 0."""
    return jax.process_index() == 0


@contextlib.contextmanager
def chief_works() -> Iterator[None]:
    """A block in which process 0 may work for any time while the others wait at its end."""
    if _watch is None:
        yield
        return
    _watch.resting = True
    yield
    _wait_for_all()
    _watch.resting = False


def agree(step: int, number: int | None) -> int | None:
    """The largest of all processes' numbers, on every one; None where all have None.

    To be called by all at the same step, which also tells the others how far this one is.
    """
    if _watch is None:
        return number
    _watch.moved(step)
    largest = int(all_of(np.int32(-1 if number is None else number)).max())
    return None if largest < 0 else largest


def all_of(x: Any) -> np.ndarray:
    """Every process's `x`, an array of one shape everywhere: `[process, ...]`."""
    x = np.asarray(x)
    if jax.process_count() == 1:
        return x[None]
    return np.asarray(sharding.gathered(sharding.united(x[None])))


def total(tree: Any) -> Any:
    """The sum of all processes' arrays, on every one; summed in the order of the processes."""
    if jax.process_count() == 1:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    parts = all_of(np.stack([np.asarray(leaf, np.float64) for leaf in leaves]).view(np.uint32))
    sums = parts.view(np.float64).sum(0)
    return structure.unflatten([s.astype(leaf.dtype) for s, leaf in zip(sums, leaves, strict=True)])


def broadcast(tree: Any) -> Any:
    """Process 0's arrays on every process, bit for bit; the others bring arrays of their shapes.

    Typed keys come as such. Results lie on this process's first device.
    """
    if jax.process_count() == 1:
        return tree
    device = jax.local_devices()[0]

    def one(x: Any) -> jax.Array:
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        data = np.asarray(jax.random.key_data(x) if is_key else x)
        raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        sent = raw if is_chief() else np.zeros_like(raw)
        received = np.asarray(_add()(sharding.united(sent[None]))).view(data.dtype)
        back = jax.device_put(received.reshape(data.shape), device)
        return jax.random.wrap_key_data(back, impl=jax.random.key_impl(x)) if is_key else back

    return jax.tree.map(one, tree)


def check_same(what: Mapping[str, Any]) -> None:
    """Raises UsageError where this process's settings, JSON, are not those of process 0."""
    if _watch is None:
        return
    if is_chief():
        _state().client.key_value_set("rljax/settings", json.dumps(what))
        return
    theirs = json.loads(_state().client.blocking_key_value_get("rljax/settings", _DAY_MS))
    ours = json.loads(json.dumps(what))
    if differences := config.diff(theirs, ours):
        raise UsageError(
            "the processes of a run must be started with the same flags; process 0's -> process "
            f"{jax.process_index()}'s:\n  " + "\n  ".join(differences)
        )


def _join(cluster: Cluster) -> None:
    """`jax.distributed.initialize`, with a sentence for each way in which it may fail."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM for itself; all agree on stopping once an update (`agree`).
    jax.config.update("jax_enable_preemption_service", False)
    address, seconds = cluster.coordinator_address, cluster.join_timeout_seconds
    if address is not None:
        _check_coordinator(address, cluster.process_id == 0, seconds)
    peers.on_abort(lambda: _aborted(cluster))
    try:
        jax.distributed.initialize(
            address,
            cluster.num_processes,
            cluster.process_id,
            cluster_detection_method=None if address is None else "deactivate",
            initialization_timeout=seconds,
            # Longer than ours, which knows more and dumps nothing.
            heartbeat_timeout_seconds=max(300, int(10 * cluster.peer_timeout_seconds)),
            shutdown_timeout_seconds=60,
        )
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        if address is None:
            raise UsageError(
                f"--distributed finds no cluster ({error}): outside SLURM, Open MPI, GKE and Cloud "
                "TPU, give --coordinator_address=host:port, --num_processes and --process_id."
            ) from error
        raise UsageError(f"process {cluster.process_id} cannot join: {error}.") from error


def _check_count(ours: int) -> None:
    """JAX would wait forever, or take the smaller number."""
    if _state().process_id == 0:
        _state().client.key_value_set("rljax/num_processes", str(ours))
        return
    theirs = _state().client.blocking_key_value_get("rljax/num_processes", _DAY_MS)
    if theirs != str(ours):
        raise UsageError(
            f"--num_processes={ours}, but process 0 was started with --num_processes={theirs}."
        )


def _check_coordinator(address: str, own: bool, seconds: int) -> None:
    """Process 0: that nobody has its port; the others: that it listens, before JAX tries."""
    if own:
        if peers.reachable(address, 5):
            raise UsageError(
                f"--coordinator_address={address} is taken: another process 0 runs there, or "
                "something else; choose another port, and start one process 0 only."
            )
        return
    deadline = time.monotonic() + seconds
    while not peers.reachable(address, 5):
        if time.monotonic() > deadline:
            raise UsageError(
                f"the coordinator at {address} did not answer within {seconds} seconds: start "
                "process 0 on that machine, and see that its port can be reached from this one."
            )
        time.sleep(0.2)


def _aborted(cluster: Cluster) -> None:
    """JAX is ending this process from C++: a sentence instead."""
    if _watch is None:
        peers.end_process(
            f"error: not all processes joined within {cluster.join_timeout_seconds} seconds: start "
            "each of --num_processes with its own --process_id, from 0, each of them once.",
            2,
        )
    verdict = _watch.verdict()
    address = _state().coordinator_address
    if verdict is None and not is_chief() and not peers.reachable(address, 5):
        verdict = peers.lost_coordinator(_watch.step), peers.EXIT_LOST
    if verdict is None:
        verdict = "JAX aborted it; with TF_CPP_MIN_LOG_LEVEL=0 it says why.", 134
    peers.end_process(f"process {_watch.index} ends: {verdict[0]}", verdict[1])


def _leave(error: BaseException, watch: peers.Watch) -> None:
    """Ends the session of a process that failed, and with it the others."""
    if isinstance(error, Exception) and not isinstance(error, UsageError):
        if any(word in str(error).lower() for word in _BROKEN):
            watch.suspect()  # does not return where another process was lost
    first_line = str(error).partition("\n")[0]
    kind = type(error).__name__
    sentence, code = f"{kind}: {first_line}" if first_line else kind, 1
    if isinstance(error, UsageError):
        sentence, code = str(error), 2
    elif isinstance(error, KeyboardInterrupt):
        sentence, code = "interrupted.", 130
    watch.publish(sentence, code)
    # Behind everything that Python still has to say, and before JAX waits for the others.
    atexit.register(_exit, code)


def _exit(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _wait_for_all() -> None:
    _state().client.wait_at_barrier(f"rljax-{next(_barriers)}", _DAY_MS)


def _state() -> Any:
    """What JAX knows of the run, its coordination client included: there is no public door."""
    from jax._src import distributed

    return distributed.global_state


@functools.cache
def _add() -> Callable[[jax.Array], jax.Array]:
    """Adds the processes' parts."""
    everywhere = NamedSharding(sharding.mesh(1), PartitionSpec())
    return jax.jit(lambda x: jnp.sum(x, axis=0, dtype=x.dtype), out_shardings=everywhere)
