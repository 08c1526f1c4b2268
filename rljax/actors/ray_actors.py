"""Actors as Ray processes (Moritz et al. 2018, arXiv:1712.05889), here or on other machines.

For simulators that need more CPUs than the learner's machine has. Each actor opens its own pool and
makes the agent from its name and config; it acts with JAX on the CPU and sends back NumPy arrays.
It is handed the same jobs in the same order as a thread would be, so it collects the same rows.

An actor that dies is started anew and given its jobs again: its simulators start new episodes.
"""

import collections
import dataclasses
import logging
import os
import socket
import time
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rljax import registry, rollout, row_keys, sources
from rljax.actors.base import ActorError, Job, Rollout, Work
from rljax.actors.watched import Watched
from rljax.envs.base import HostEnv

log = logging.getLogger(__name__)

# An actor has one core. With the flags of the learner's process it would emulate its devices too.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "NPROC": "2",
    "OMP_NUM_THREADS": "1",
}


@dataclasses.dataclass(frozen=True)
class Ray:
    """Actors in processes of Ray, one core each."""

    agent: str  # its name in the registry
    agent_config: Any  # `Config` of its module; must survive pickling
    address: str = ""  # of a running cluster, or "auto"; "": starts one on this machine
    max_restarts: int = 3  # of one actor, without a rollout between them


class RayFleet:
    """A `Fleet` of Ray actors; they start at once, and the first `gather` waits for them."""

    def __init__(self, work: Work, env_sources: Sequence[sources.EnvSource], settings: Ray) -> None:
        """Connects to the cluster, or starts one, and asks it for one actor a source.

        Raises:
            ImportError: Ray is not installed.
            ActorError: there is no cluster at the address.
        """
        self.restarts = 0
        self._ray = import_ray()
        self._settings, self._timeout = settings, work.timeout_seconds
        self._owns_cluster = not self._ray.is_initialized()
        if self._owns_cluster:
            connect(self._ray, settings.address, len(env_sources))
        environment = dict(_ENVIRONMENT)
        cache = os.environ.get("JAX_COMPILATION_CACHE_DIR")
        if cache and not settings.address:
            environment["JAX_COMPILATION_CACHE_DIR"] = cache
        self._actor_class = self._ray.remote(
            num_cpus=1,
            max_restarts=0,  # a new one is started here, which knows what it must do again
            runtime_env={"env_vars": environment},
        )(_Collecting)
        shared = settings.agent, settings.agent_config, work.length, work.collector
        start_key = _key_data(work.start_key)
        self._seats = [
            _Seat(index, _Task(source, first_row, start_key, *shared))
            for index, (source, first_row) in enumerate(
                zip(env_sources, work.first_rows, strict=True)
            )
        ]
        for seat in self._seats:
            self._start(seat)

    def submit(self, job: Job) -> None:
        """Hands a job to every actor; the policy is stored once a machine."""
        policy = self._ray.put(jax.device_get(job.policy))
        order = _Order(job.number, job.version, _key_data(job.key))
        for seat in self._seats:
            seat.orders.append((order, policy, self._call(seat, order, policy)))

    def gather(self, number: int) -> list[Rollout]:
        """The rollouts of job `number`; actors that died are started anew.

        Raises:
            ActorError: an actor raised, gave nothing in time, or died too often in a row.
        """
        return [self._take(seat, number) for seat in self._seats]

    def close(self) -> None:
        """Kills the actors, and the cluster if it was started here; a second call is no harm."""
        for seat in self._seats:
            if seat.actor is not None:
                self._ray.kill(seat.actor)
            seat.actor = None
            seat.orders.clear()
        if self._owns_cluster and self._ray.is_initialized():
            self._ray.shutdown()

    def _start(self, seat: "_Seat") -> None:
        seat.actor = self._actor_class.remote()
        seat.started = seat.actor.start.remote(seat.task)

    def _call(self, seat: "_Seat", order: "_Order", policy: Any) -> Any:
        return seat.actor.collect.remote(order, policy)

    def _take(self, seat: "_Seat", number: int) -> Rollout:
        while True:
            order, _, result = seat.orders[0]
            assert order.number == number, f"rollout {order.number} in the place of {number}"
            try:
                if seat.started is not None:
                    self._get(seat, seat.started, "starting")
                    seat.started = None
                collected = self._get(seat, result, f"collecting rollout {number}")
            except self._ray.exceptions.RayActorError:
                self._restart(seat, number)
                continue
            seat.orders.popleft()
            seat.deaths = 0
            return collected

    def _get(self, seat: "_Seat", reference: Any, stage: str) -> Any:
        try:
            return self._ray.get(reference, timeout=self._timeout)
        except self._ray.exceptions.RayTaskError as failure:
            error = failure.cause
            raise ActorError(
                f"actor {seat.index} failed while {stage}: {type(error).__name__}: {error}"
            ) from error
        except self._ray.exceptions.GetTimeoutError:
            free = self._ray.available_resources().get("CPU", 0.0)
            lacking = (
                f" Ray has {free:g} CPUs free for the actors that wait for one."
                if stage == "starting" and free < 1
                else ""
            )
            raise ActorError(
                f"actor {seat.index} gave no rollout within {self._timeout:g} seconds: it was "
                f"{stage}, with {seat.task.source.name}.{lacking} A longer --actor_timeout waits "
                "longer; a checkpoint can be resumed."
            ) from None

    def _restart(self, seat: "_Seat", number: int) -> None:
        """Starts a dead actor anew and gives it all its orders again, in order."""
        seat.deaths += 1
        limit = self._settings.max_restarts
        if seat.deaths > limit:
            raise ActorError(
                f"actor {seat.index} died {seat.deaths} times without giving rollout {number}, "
                f"and --actor_restarts={limit}: its output in Ray's logs says why it died."
            )
        self.restarts += 1
        log.warning(
            "Actor %d died; it is started anew (%d of %d) and collects rollout %d again.",
            *(seat.index, seat.deaths, limit, number),
        )
        self._start(seat)
        seat.orders = collections.deque(
            (order, policy, self._call(seat, order, policy)) for order, policy, _ in seat.orders
        )


def import_ray() -> Any:
    """Ray; ImportError, naming the extra, where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would ask a server on the internet
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            "--actors=ray needs Ray, which is not installed: pip install 'rljax[ray]'."
        ) from error
    return ray


class _Task(NamedTuple):
    """What an actor is started with."""

    source: sources.EnvSource
    first_row: int
    start_key: np.ndarray
    agent: str
    agent_config: Any
    length: int
    collector: rollout.Kind


class _Order(NamedTuple):
    number: int
    version: int
    key: np.ndarray


@dataclasses.dataclass
class _Seat:
    """One actor, whoever fills its place."""

    index: int
    task: _Task
    actor: Any = None
    started: Any = None  # a reference that is there until the actor has been seen to be ready
    deaths: int = 0  # since its last rollout
    orders: collections.deque[Any] = dataclasses.field(default_factory=collections.deque)


class _Collecting:
    """What runs in an actor's process."""

    def start(self, task: _Task) -> None:
        """Opens the environments; not in the constructor, whose errors Ray takes for a death."""
        env = sources.open(task.source)
        agent = registry.agent_module(task.agent).make(task.agent_config, env.spec)
        self._watched = Watched(env) if isinstance(env, HostEnv) else None
        self._collector = rollout.make(
            agent, self._watched or env, task.source.num_envs, task.length, task.collector
        )
        self._first_row = task.first_row
        self._state = self._collector.init(self._key(task.start_key))
        self._idle_since = time.perf_counter()

    def collect(self, order: _Order, policy: Any) -> Rollout:
        """One rollout, as NumPy arrays."""
        start = time.perf_counter()
        key = self._key(order.key)
        self._state, trajectory, episodes = self._collector.collect(policy, self._state, key)
        trajectory, episodes = jax.tree.map(np.asarray, (trajectory, episodes))
        end = time.perf_counter()
        seconds = {
            "time/queue_wait_actor_seconds": start - self._idle_since,
            "time/collect_seconds": end - start,
            **(self._watched.split(end - start) if self._watched else {}),
        }
        self._idle_since = end
        return Rollout(order.number, order.version, None, trajectory, episodes, seconds)

    def _key(self, data: np.ndarray) -> jax.Array:
        return row_keys.starting_at(self._first_row, jax.random.wrap_key_data(jnp.asarray(data)))


def _key_data(key: jax.Array) -> np.ndarray:
    return np.asarray(jax.random.key_data(key))


def connect(ray: Any, address: str, num_actors: int) -> None:
    """Joins the cluster at `address`, or starts one here with a core for every actor ("").

    Raises:
        ActorError: there is no cluster at the address.
    """
    quiet: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    if not address:
        # Logical cores: every actor finds a place, whatever this machine has.
        cores = max(num_actors, os.cpu_count() or 1)
        with warnings.catch_warnings():
            # JAX's, of forks: Ray's go on to another program at once.
            warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
            ray.init(address="local", num_cpus=cores, include_dashboard=False, **quiet)
        return
    try:
        host, colon, port = address.rpartition("//")[2].rpartition(":")
        if colon and port.isdecimal():  # Ray would try for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise ActorError(
            f"there is no Ray cluster at --ray_address={address}: start one with "
            "`ray start --head`, or leave the flag out to start one here."
        ) from error
